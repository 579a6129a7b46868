"""Archives to latents with only a scene or two on the disk: fetch, encode, delete, next.

The cache is the same, byte for byte, as one encoded from the whole raw folder. What was fetched and deleted stays in
the ledger, so a killed run fetches nothing again that is already latents.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metricgold.datasets import Listing, Manifest, NoFramesError, list_frames, scene_splits
from metricgold.download import (
    DONE,
    DROPPED,
    Group,
    Store,
    bring,
    ledger_entry,
    note_passing,
    open_store,
    raise_together,
    read_passing,
    wanted_groups,
)
from metricgold.encode.scene_encoder import SPLIT, SceneEncoder, open_encoder
from metricgold.encode.stage import source_digest, training_scenes
from metricgold.params import Params
from metricgold.storage import remove

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

    While one group of scenes is encoded the next is fetched. Archives that lay in `raw` before stay there. A scene
    that cannot be fetched does not hold up the others; then there is no index, and the next run tries it again.
    Raises as download and encode do.
    """
    errors: list[Exception] = []
    with (
        open_store(manifest, raw, params.download, accept_licence=accept_licence) as store,
        open_encoder(manifest.name, params.encode, params.log_depth, backbone, out, device=device) as encoder,
    ):
        train_on = _scenes_to_train_on(store)
        groups = [group for group in wanted_groups(store, params.download) if not group.scenes or train_on(group)]
        todo = [group for group in groups if not _is_encoded(store, encoder, group, train_on(group))]
        log.info("%s: %d groups of scenes to fetch and encode", manifest.name, len(todo))
        kept = _settle_who_stays(store, groups, todo)
        for number, (group, error) in enumerate(_fetched(store, params.download.num_workers, todo), start=1):
            if error is not None:
                log.warning("%s: %s", manifest.name, error)
                errors.append(error)
                continue
            _encode_group(store, encoder, group, train_on(group))
            for source in group.sources:
                if source.path not in kept:
                    store.drop(source)
            share = 100 * number / len(todo)
            log.info("progress %.1f %%: %s, %d of %d groups of scenes", share, manifest.name, number, len(todo))
        raise_together(errors, len(todo))
        note_passing(store, ())
        return encoder.finish()


def _settle_who_stays(store: Store, groups: Sequence[Group], todo: Sequence[Group]) -> set[str]:
    """Paths of archives that lay here before; all others are noted, so that a killed run leaves none for good.

    What a killed run has noted, encoded and not deleted is deleted now. A download takes off the note what it means
    to stay.
    """
    noted = read_passing(store)
    for source in (source for group in groups if group not in todo for source in group.sources):
        row = store.row(source)
        if source.path in noted and row is not None and row.state == DONE:
            store.drop(source)
    sources = [source for group in todo for source in group.sources]
    kept = {source.path for source in sources if source.path not in noted and store.has(source)}
    note_passing(store, {source.path for source in sources} - kept)
    return kept


def _digest_of(store: Store) -> Callable[[str], str | None]:
    """A function scene -> digest of its source, from what the ledger knows, on the disk or no longer."""
    scenes = {source.path: getattr(source, "scenes", ()) for source in store.sources}
    rows = store.ledger.archives().items()
    entries = {path: ledger_entry(row, scenes[path]) for path, row in rows if row.state in (DONE, DROPPED)}
    return lambda scene: source_digest(entries, scene)


def _is_encoded(store: Store, encoder: SceneEncoder, group: Group, scenes: Sequence[str]) -> bool:
    """Whether every training scene of the group is in the cache, made from these archives."""
    rows = [store.row(source) for source in group.sources]
    if not group.scenes or any(row is None or row.state not in (DONE, DROPPED) for row in rows):
        return False
    digest_of = _digest_of(store)
    return all([encoder.has_scene(scene, digest_of(scene)) for scene in scenes])


def _scenes_to_train_on(store: Store) -> Callable[[Group], list[str]]:
    """A function group -> its scenes of the training split; a large csv behind it is read once."""
    splits_of = scene_splits(store.manifest, store.into)
    return lambda group: [scene for scene in group.scenes if SPLIT in splits_of(scene)]


def _fetched(store: Store, num_workers: int, groups: Sequence[Group]) -> Iterator[tuple[Group, Exception | None]]:
    """Groups in order, each with what went wrong or None; the next is fetched while one is worked on."""

    def fetch(group: Group) -> Exception | None:
        try:
            bring(store, group.sources, num_workers, is_all=False)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # this disk, not that archive
            return error
        return None

    with ThreadPoolExecutor(1) as pool:
        try:
            coming = [pool.submit(fetch, group) for group in groups[:1]]
            for number, group in enumerate(groups):
                error = coming.pop().result()
                coming += [pool.submit(fetch, following) for following in groups[number + 1 : number + 2]]
                yield group, error
        except BaseException:
            store.fetcher.close()
            raise


def _encode_group(store: Store, encoder: SceneEncoder, group: Group, scenes: Sequence[str]) -> None:
    view = store.into / ".part" / "view"
    try:
        _make_view(store, group, view)
        listing = _list(store.manifest.name, view)
        digest_of = _digest_of(store)
        for scene in sorted({*training_scenes(listing), *scenes}):
            refs = [ref for ref in listing.frames if ref.scene == scene]
            if not refs:
                log.warning("%s: %s has no frame to train on", store.manifest.name, scene)
            encoder.encode_scene(scene, refs, digest_of(scene), listing.gaps_of(scene))
        encoder.wait()  # what they were made from is about to be deleted
    finally:
        remove(view)


def _list(name: str, raw: Path) -> Listing:
    try:
        return list_frames(name, raw, split=SPLIT)
    except NoFramesError:
        return Listing([])


def _make_view(store: Store, group: Group, view: Path) -> None:
    """A raw folder with this group's members only, the next one's may be arriving: links to what lies beside."""
    names = {"manifest.yaml", *(file.path for file in store.manifest.files)}
    names |= {row.name for source in group.sources for row in store.ledger.members(source.path)}
    remove(view)
    view.mkdir(parents=True)
    for top in sorted({name.split("/")[0] for name in names}):
        (view / top).symlink_to((store.into / top).absolute())
