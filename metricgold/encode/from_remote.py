"""Archives to latents with only a scene or two on the disk: fetch, encode, delete, next.

The cache is the same, byte for byte, as one encoded from the complete raw folder. What was fetched and deleted stays in
the ledger, so a killed run fetches nothing again that is already latents.

The raw folder keeps a journal, `.ledger/passing.json`: the archives that this stage fetches in order to delete them
again. It is written before the first of them is fetched and removed when all are encoded. So a run that finds it after
a kill deletes what is encoded and was not deleted yet, `ledger.json` never lists what is about to go, and archives
that were there before, or that a download has fetched since (it takes them off the list), are kept.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from metricgold.datasets import Listing, Manifest, NoFramesError, list_frames, require_training, scene_splits
from metricgold.download import (
    DONE,
    DROPPED,
    Group,
    RawFolder,
    fetch,
    ledger_entry,
    open_raw_folder,
    raise_together,
    refuse_edited,
    wanted_groups,
)
from metricgold.encode.scene_encoder import SPLIT, SceneEncoder, open_encoder
from metricgold.encode.stage import source_digest, training_scenes
from metricgold.params import Params
from metricgold.storage import Progress, remove

log = logging.getLogger(__name__)


def encode_from_remote(
    manifest: Manifest,
    params: Params,
    raw: Path,
    backbone: Path,
    out: Path,
    *,
    accept_licence: bool = False,
    device: str = "",
) -> Path:
    """Encode the training scenes that `params.download` asks for, fetched one after the other; returns the index.

    While one group of scenes is encoded the next is fetched. Archives that were in `raw` before stay there. A scene
    that cannot be fetched does not hold up the others; then no index is written, and the next run tries it again.
    Raises as download and encode do.
    """
    require_training(manifest.name, raw)
    errors: list[Exception] = []
    with (
        open_raw_folder(manifest, raw, params.download, accept_licence=accept_licence, is_whole_stage=False) as folder,
        open_encoder(manifest.name, params.encode, params.depth_range, backbone, out, device=device) as encoder,
    ):
        refuse_edited(folder.into)  # what was here before
        splits_of = scene_splits(manifest, folder.into)
        groups = [
            (group, [scene for scene in group.scenes if SPLIT in splits_of(scene)])
            for group in wanted_groups(folder, params.download)
        ]
        groups = [(group, scenes) for group, scenes in groups if not group.scenes or scenes]
        todo = [(group, scenes) for group, scenes in groups if not is_encoded(folder, encoder, group, scenes)]
        log.info("%s: %d groups of scenes to fetch and encode", manifest.name, len(todo))
        kept = note_what_passes(folder, [group for group, _ in groups], [group for group, _ in todo])
        fetching = fetch_ahead(folder, params.download.num_workers, [group for group, _ in todo])
        with Progress(manifest.name, len(todo), "groups of scenes") as progress, closing(fetching) as fetched:
            for (group, scenes), error in zip(todo, fetched, strict=True):
                if error is not None:
                    log.warning("%s: %s", manifest.name, error)
                    errors.append(error)
                    continue
                encode_group(folder, encoder, group, scenes)
                for source in group.sources:
                    if source.path not in kept:
                        folder.drop(source)
                progress.advance()
        raise_together(errors, len(todo))
        folder.note_passing(())
        return encoder.finish()


def is_encoded(folder: RawFolder, encoder: SceneEncoder, group: Group, scenes: Sequence[str]) -> bool:
    """Whether every training scene of the group is in the cache, made from these archives."""
    rows = [folder.row(source) for source in group.sources]
    if not group.scenes or any(row is None or row.state not in (DONE, DROPPED) for row in rows):
        return False
    digest_of = _digest_of(folder)
    return all([encoder.has_scene(scene, digest_of(scene)) for scene in scenes])


def _digest_of(folder: RawFolder) -> Callable[[str], str | None]:
    """A function scene -> digest of its source, from what the ledger knows, on the disk or no longer."""
    scenes = {source.path: source.scenes for source in folder.sources}
    rows = folder.ledger.archives().items()
    entries = {path: ledger_entry(row, scenes[path]) for path, row in rows if row.state in (DONE, DROPPED)}
    return lambda scene: source_digest(entries, scene)


def note_what_passes(folder: RawFolder, groups: Sequence[Group], todo: Sequence[Group]) -> set[str]:
    """Write passing.json (see the module's docstring); returns the paths of archives that are to stay.

    What a killed run has noted and encoded, but not deleted, is deleted now.
    """
    noted = folder.passing()
    for source in (source for group in groups if group not in todo for source in group.sources):
        row = folder.row(source)
        if source.path in noted and row is not None and row.state == DONE:
            folder.drop(source)
    sources = [source for group in todo for source in group.sources]
    kept = {source.path for source in sources if source.path not in noted and folder.has(source)}
    folder.note_passing({source.path for source in sources} - kept)
    return kept


def fetch_ahead(
    folder: RawFolder, num_workers: int, groups: Sequence[Group]
) -> Generator[Exception | None, None, None]:
    """Fetch groups in order, each while the caller works on the one before; gives what went wrong, or None."""

    def fetch_group(group: Group) -> Exception | None:
        try:
            fetch(folder, group.sources, num_workers)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # this disk, not that archive
            return error
        return None

    with ThreadPoolExecutor(1) as pool:
        try:
            coming = [pool.submit(fetch_group, group) for group in groups[:1]]
            for following in range(1, len(groups) + 1):
                error = coming.pop().result()
                coming += [pool.submit(fetch_group, group) for group in groups[following : following + 1]]
                yield error
        except BaseException:
            folder.fetcher.close()
            raise


def encode_group(folder: RawFolder, encoder: SceneEncoder, group: Group, scenes: Sequence[str]) -> None:
    """Encode a group's training scenes from a raw folder with its members only: the next group may be arriving.

    `scenes`: those that the manifest names; where it names none, all that the members hold.
    """
    links = folder.into / ".part" / "view"
    try:
        _link_members(folder, group, links)
        try:
            listing = list_frames(folder.manifest.name, links, split=SPLIT)
        except NoFramesError:
            listing = Listing([])
        digest_of = _digest_of(folder)
        for scene in sorted({*training_scenes(listing), *scenes}):
            refs = [ref for ref in listing.frames if ref.scene == scene]
            if not refs:
                log.warning("%s: %s has no frame to train on", folder.manifest.name, scene)
            encoder.encode_scene(scene, refs, digest_of(scene), listing.gaps_of(scene))
        encoder.wait()  # what they were made from is about to be deleted
    finally:
        remove(links)


def _link_members(folder: RawFolder, group: Group, links: Path) -> None:
    """A folder of links to the manifest, its plain files and the top folders of a group's members."""
    names = {"manifest.yaml", *(file.path for file in folder.manifest.files)}
    names |= {row.name for source in group.sources for row in folder.ledger.members(source.path)}
    remove(links)
    links.mkdir(parents=True)
    for top in sorted({name.split("/")[0] for name in names}):
        (links / top).symlink_to((folder.into / top).absolute())
