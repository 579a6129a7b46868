"""Raw frames to latents: reader -> fit to size -> VAE -> shards. Scene by scene; resumes at the first missing shard."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from metricgold.backbone import load_vae, vae_digest
from metricgold.datasets import FrameRef, list_frames, read_frame
from metricgold.frame import Frame
from metricgold.latents import (
    LatentFrame,
    encode_log_depth,
    encode_rgb,
    filled_log_depth,
    fit_frame,
    latent_valid_mask,
    rgb_to_tensor,
    vae_factor,
)
from metricgold.log_depth import LogDepth
from metricgold.params import Encode, LogDepthRange
from metricgold.shards import (
    INDEX,
    find_shard,
    is_part_of,
    is_whole,
    read_record,
    record_path,
    shard_path,
    write_index,
    write_record,
    write_shard,
)
from metricgold.storage import digest_json, only_writer, read_json, remove

log = logging.getLogger(__name__)

SPLIT = "train"
NUM_READERS = 2  # threads that decode ahead of the VAE


def encode(
    dataset: str, params: Encode, log_depth: LogDepthRange, raw: Path, backbone: Path, out: Path, *, device: str = ""
) -> Path:
    """Encode the training frames of one data set; returns the index.

    A frame that cannot be read or has no valid latent is dropped and counted by reason. Raises ValueError
    when the size does not suit the VAE or nothing is left, BlockingIOError when another run writes to `out`.
    """
    ledger = Path(raw) / "ledger.json"
    archives = read_json(ledger)["archives"] if ledger.is_file() else None
    listing = list_frames(dataset, raw, split=SPLIT)
    with open_encoder(dataset, params, log_depth, backbone, out, device=device) as encoder:
        log.info("%s: %d frames to be in the cache", dataset, len(listing.frames))
        with tqdm(total=len(listing.frames), desc=f"encode {dataset}", unit="frame", disable=None) as bar:
            by_scene = sorted(listing.frames, key=lambda ref: ref.scene)
            for scene, refs in groupby(by_scene, key=lambda ref: ref.scene):
                refs = list(refs)
                encoder.encode_scene(scene, refs, source_digest(archives, scene))
                bar.update(len(refs))
        return encoder.finish(listing.gaps)


def source_digest(archives: Mapping[str, Mapping[str, Any]] | None, scene: str) -> str | None:
    """Digest of what a scene is read from: the members of the ledger's archives that hold it.

    An archive that names no scenes belongs to all of them. None without a ledger.
    """
    if archives is None:
        return None
    holding = {path: entry for path, entry in archives.items() if scene in (entry.get("scenes") or [scene])}
    return digest_json({path: entry["members_sha256"] for path, entry in holding.items()})


@contextmanager
def open_encoder(
    dataset: str, params: Encode, log_depth: LogDepthRange, backbone: Path, out: Path, *, device: str = ""
) -> Iterator["SceneEncoder"]:
    """Open a cache for writing; what an encode of other params or another VAE left there is deleted.

    Until `finish` the cache has no index. Errors as in encode.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_vae(backbone, dtype=getattr(torch, params.dtype)).to(device).eval()
    factor = vae_factor(vae)
    if params.height % factor or params.width % factor:
        raise ValueError(
            f"encode.height x encode.width must be multiples of the VAE's {factor}, "
            f"got {params.height} x {params.width}"
        )
    # Everything that all latents depend on. Batch size is part of it: it can change the last bit.
    common = {
        "dataset": dataset,
        "split": SPLIT,
        "encode": params.model_dump(),
        "log_depth": log_depth.model_dump(),
        "vae": vae_digest(backbone),
    }
    with only_writer(out), ThreadPoolExecutor(NUM_READERS) as readers:
        yield SceneEncoder(vae, params, LogDepth(**log_depth.model_dump()), common, Path(out), readers)


class SceneEncoder:
    """A cache open for writing, made by open_encoder.

    When finished it holds the scenes for which encode_scene was called or has_scene was True, in order of their
    names, whatever the order of the calls.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        params: Encode,
        log_depth: LogDepth,
        common: dict[str, Any],
        out: Path,
        readers: Executor,
    ) -> None:
        self.vae, self.params, self.log_depth = vae, params, log_depth
        self.common, self.out, self.readers = common, out, readers
        self.records: dict[str, dict[str, Any]] = {}
        remove(out / INDEX)
        for path in _files(out):
            if not is_part_of(path, common):
                remove(path)

    def has_scene(self, scene: str, source: str | None) -> bool:
        """Whether the scene, read from what has this digest, is here undamaged; its raw data is not needed."""
        record = read_record(self.out, scene)
        if record is None or record["identity"] != self._identity(scene, source) or not is_whole(self.out, record):
            return False
        self.records[scene] = record
        return True

    def encode_scene(
        self, scene: str, refs: Sequence[FrameRef], source: str | None, gaps: Mapping[str, int] | None = None
    ) -> None:
        """Encode what is missing of a scene, and record that it is whole.

        refs: all its frames of the split, maybe none; source: digest of what they are read from; gaps: by reason,
        how many frames its listing left out.
        """
        identity, size = self._identity(scene, source), self.params.frames_per_shard
        refs = sorted(refs, key=lambda ref: ref.name)
        groups = [refs[start : start + size] for start in range(0, len(refs), size)]
        shards = self._find_shards(scene, identity, groups)
        for number, group in enumerate(groups):
            if shards[number] is None:
                shards[number] = self._encode_shard(scene, number, group, identity)
        self.records[scene] = write_record(self.out, scene, identity, gaps or {}, shards)

    def finish(self, gaps: Mapping[str, int] | None = None) -> Path:
        """Delete what belongs to none of the scenes and write the index. ValueError when there is no frame.

        gaps: by reason, frames that were left out and are in no scene's gaps.
        """
        wanted = {record_path(self.out, scene) for scene in self.records}
        wanted |= {self.out / shard["file"] for record in self.records.values() for shard in record["shards"]}
        for path in _files(self.out):
            if path not in wanted:
                remove(path)
        index = write_index(self.out, self.common, self.records, gaps or {})
        log.info("%s: %d scenes in the cache", self.common["dataset"], len(self.records))
        return index

    def _identity(self, scene: str, source: str | None) -> dict[str, Any]:
        return self.common | {"scene": scene, "source": source}

    def _find_shards(
        self, scene: str, identity: dict[str, Any], groups: Sequence[Sequence[FrameRef]]
    ) -> list[dict[str, Any] | None]:
        """The scene's whole shards; where one is missing or damaged, None, and neither it nor a record is left."""
        record = read_record(self.out, scene) or {"shards": []}
        digests = {shard["file"]: shard["sha256"] for shard in record["shards"]}
        shards = []
        for number, group in enumerate(groups):
            path = shard_path(self.out, scene, number)
            shards.append(find_shard(path, identity | _frames(group), digests.get(path.name)))
            if shards[-1] is None:
                remove(path)
        # Last, for it alone tells a damaged shard from a whole one.
        if None in shards:
            remove(record_path(self.out, scene))
        return shards

    def _encode_shard(
        self, scene: str, number: int, refs: Sequence[FrameRef], identity: dict[str, Any]
    ) -> dict[str, Any]:
        frames, dropped = self._encode_frames(refs)
        path = shard_path(self.out, scene, number)
        shard = write_shard(path, frames, dropped, identity | _frames(refs))
        # Hundreds of small scenes would drown a log; their records name each of them.
        level = logging.INFO if len(refs) == self.params.frames_per_shard else logging.DEBUG
        log.log(level, "%s: %s, %d frames", self.common["dataset"], path.name, len(frames))
        return shard

    def _encode_frames(self, refs: Sequence[FrameRef]) -> tuple[list[LatentFrame], list[str]]:
        frames, dropped = [], []
        batch: list[Frame] = []
        for outcome in self._read_ahead(refs):
            if isinstance(outcome, str):
                dropped.append(outcome)
                continue
            batch.append(outcome)
            if len(batch) == self.params.batch_size:
                frames += _encode_batch(self.vae, batch, self.log_depth)
                batch = []
        frames += _encode_batch(self.vae, batch, self.log_depth) if batch else []
        kept = [frame for frame in frames if frame.valid_mask.any()]
        return kept, dropped + ["no valid latent"] * (len(frames) - len(kept))

    def _read_ahead(self, refs: Sequence[FrameRef]) -> Iterator[Frame | str]:
        """Frames in order, decoded two batches ahead of the VAE; the reason instead of a frame that fails."""
        coming: deque[Future[Frame | str]] = deque()
        for ref in refs:
            coming.append(self.readers.submit(_read, ref, self.params.height, self.params.width))
            if len(coming) > 2 * self.params.batch_size:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _files(out: Path) -> list[Path]:
    return sorted(out.iterdir()) if out.is_dir() else []


def _frames(refs: Sequence[FrameRef]) -> dict[str, str]:
    """What a shard's identity has beyond its scene's."""
    return {"frames": digest_json([ref.name for ref in refs])}


def _read(ref: FrameRef, height: int, width: int) -> Frame | str:
    try:
        return fit_frame(read_frame(ref), height, width)
    except (ValueError, OSError) as error:
        log.warning("dropped %s: %s", ref.name, error)
        return "unreadable"


@torch.no_grad()
def _encode_batch(vae: AutoencoderKL, frames: Sequence[Frame], log_depth: LogDepth) -> list[LatentFrame]:
    rgb = rgb_to_tensor(np.stack([frame.rgb for frame in frames]))
    filled = [filled_log_depth(log_depth, frame.planar_depth_m, frame.valid_mask) for frame in frames]
    rgb_latents = encode_rgb(vae, rgb.to(vae.device))
    depth_latents = encode_log_depth(vae, torch.from_numpy(np.stack(filled)).to(vae.device))
    return [
        LatentFrame(
            rgb_latent=rgb_latent.cpu().numpy().astype(np.float16),
            depth_latent=depth_latent.cpu().numpy().astype(np.float16),
            valid_mask=latent_valid_mask(frame.valid_mask, vae_factor(vae)),
            intrinsics=frame.intrinsics,
            scene=frame.scene,
            name=frame.name,
        )
        for frame, rgb_latent, depth_latent in zip(frames, rgb_latents, depth_latents, strict=True)
    ]
