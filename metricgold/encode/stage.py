"""Stage encode: which frames each scene of a raw folder has, what it was read from, and all of them to latents."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from itertools import groupby
from pathlib import Path
from typing import Any

from metricgold.datasets import (
    IN_NO_SPLIT,
    Listing,
    contents_by_scene,
    list_frames,
    own_data,
    read_manifest,
    require_training,
    scene_splits,
)
from metricgold.download import refuse_edited
from metricgold.encode.scene_encoder import SPLIT, SceneJob, open_encoder
from metricgold.params import Encode, LogDepthRange
from metricgold.shards import cache_files
from metricgold.storage import Progress, digest_json, only_writer, read_json, remove

log = logging.getLogger(__name__)


def encode(
    dataset: str,
    params: Encode,
    range_m: LogDepthRange,
    raw: Path,
    backbone: Path,
    out: Path,
    *,
    device: str = "",
    executor: Executor | None = None,
) -> Path:
    """Encode the training frames of one data set to the latent cache `out`; returns the path of its index.

    range_m   metres that the log depth maps to -1 and +1
    device    cuda or cpu; empty: a GPU if there is one
    executor  encodes scenes in other processes, which see the same folders

    A frame that cannot be read or has too few valid latents is dropped and counted by reason. Raises ValueError when
    the size or the dtype does not suit the VAE, the data set never trains, a camera of own data cannot be right, a
    downloaded file was edited, `out` holds what is not a latent cache, or no frame is left, BlockingIOError when
    another run writes to `out`, and OSError when the disk is full. The next run resumes.
    """
    raw, backbone, out = (Path(path).absolute() for path in (raw, backbone, out))
    require_training(dataset, raw)
    listing = list_frames(dataset, raw, split=SPLIT)
    by_scene = groupby(sorted(listing.frames, key=lambda ref: ref.scene), key=lambda ref: ref.scene)
    refs = {scene: list(of_scene) for scene, of_scene in by_scene}
    if own_data.has_statement(raw):
        own_data.check_cameras(raw, listing.frames)
    digest_of = source_digests(raw, listing)
    scenes = sorted({*training_scenes(listing), *archived_scenes(raw)})
    jobs = [SceneJob(scene, refs.get(scene, []), digest_of(scene), listing.gaps_of(scene)) for scene in scenes]
    log.info("%s: %d frames to be in the cache", dataset, len(listing.frames))
    with (
        open_encoder(dataset, params, range_m, backbone, out, device=device) as encoder,
        Progress(f"encode {dataset}", len(listing.frames), "frames") as progress,
    ):
        if executor is None:
            for job in jobs:
                encoder.encode_scene(*job)
                progress.advance(len(job.refs))
        else:
            for scene in encoder.encode_on(executor, jobs):
                progress.advance(len(refs.get(scene, [])))
        return encoder.finish()


def leave_empty(out: Path) -> None:
    """Leave a cache's folder without a cache: of a data set that never trains, DVC expects the stage's output too."""
    with only_writer(out):
        for path in cache_files(out):
            remove(path)
        out.mkdir(parents=True, exist_ok=True)


def training_scenes(listing: Listing) -> list[str]:
    """Scenes of a listing of the split; a scene of which every frame is in no split is left out."""
    in_split = {ref.scene for ref in listing.frames}
    return [scene for scene in listing.scenes if scene in in_split or listing.gaps_of(scene).keys() - {IN_NO_SPLIT}]


def archived_scenes(raw: Path) -> set[str]:
    """Training scenes for which archives were downloaded, whether these held a frame or not."""
    archives = read_archives(raw) or {}
    named = {scene for entry in archives.values() for scene in entry.get("scenes") or ()}
    if not named or not (raw / "manifest.yaml").is_file():
        return set()
    splits_of = scene_splits(read_manifest(raw / "manifest.yaml"), raw)
    return {scene for scene in named if SPLIT in splits_of(scene)}


def read_archives(raw: Path) -> dict[str, dict[str, Any]] | None:
    """The ledger's entries by archive; None without a ledger."""
    ledger = raw / "ledger.json"
    return read_json(ledger)["archives"] if ledger.is_file() else None


def source_digests(raw: Path, listing: Listing) -> Callable[[str], str]:
    """A function scene -> digest of its source: downloaded archives, and its files where no archive vouches for them.

    That is a team's own data, whose statement counts too, and what was put into a raw folder by hand. ValueError names
    a downloaded file that was edited.
    """
    archives, is_own = read_archives(raw), own_data.has_statement(raw)
    if archives is None or is_own:
        contents, stated = contents_by_scene(raw, listing.frames), own_data.digest(raw) if is_own else None
        return lambda scene: digest_json([stated, contents.get(scene)])
    vouched = refuse_edited(raw)
    added = [ref for ref in listing.frames if vouched is not None and not vouched.issuperset(ref.paths)]
    by_hand = contents_by_scene(raw, added)

    def digest_of(scene: str) -> str:
        downloaded = source_digest(archives, scene)
        return digest_json([downloaded, by_hand[scene]]) if scene in by_hand else downloaded

    return digest_of


def source_digest(archives: Mapping[str, Mapping[str, Any]], scene: str) -> str:
    """Digest of what a scene is read from: the members of the ledger's archives that hold it.

    An archive that names no scenes belongs to all of them.
    """
    holding = {path: entry for path, entry in archives.items() if scene in (entry.get("scenes") or [scene])}
    return digest_json({path: entry["members_sha256"] for path, entry in holding.items()})
