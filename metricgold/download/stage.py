"""Fetch what a manifest names into a raw folder (its layout: metricgold.download.raw_folder), as few bytes as possible.

Killed, moved to another disk or cut off by a bad server, the next run goes on where the last one stood.
"""

import errno
import getpass
import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metricgold.datasets import Archive, Manifest, Source, scene_splits
from metricgold.download.fetcher import Fetcher
from metricgold.download.ledger import DONE, Ledger
from metricgold.download.progress import Advance, ByteProgress, show_bytes
from metricgold.download.raw_folder import Store
from metricgold.params import Download
from metricgold.storage import digest_json, only_writer, read_json, remove, write_aside, write_json

log = logging.getLogger(__name__)

GB = 1_000_000_000
MANY_ARCHIVES = 20  # asking so many for their sizes deserves a line
PASSING = ".ledger/passing.json"  # in the raw folder: archives that are fetched in order to be deleted again


class Group(NamedTuple):
    """Archives that go together, because some scene needs them all."""

    scenes: tuple[str, ...]  # empty where the manifest does not say
    sources: tuple[Source, ...]


def download(
    manifest: Manifest,
    into: Path,
    *,
    params: Download | None = None,
    accept_licence: bool = False,
    progress: Advance | None = None,
) -> Path:
    """Bring `into` to what manifest and params say; answer the path of ledger.json.

    `progress` is told the bytes that arrive, instead of a bar or lines. One archive's fault does not stop the
    others; all are raised together, each naming its archive: ValueError for what is wrong with bytes, names, scenes
    or for a licence that nobody accepted, OSError when something could not be fetched or written. A full disk stops
    the run at once, before it starts where sizes are known.
    """
    params = params or Download()
    with open_store(manifest, into, params, accept_licence=accept_licence, progress=progress) as store:
        groups = wanted_groups(store, params, skip_training=manifest.name in (params.streamed or ()))
        sources = [source for group in groups for source in group.sources]
        if not all(map(store.has, sources)):
            remove(store.into / "ledger.json")
        bring(store, sources, params.num_workers)
        note_passing(store, read_passing(store) - {source.path for source in sources})
        return _write_ledger(store)


@contextmanager
def open_store(
    manifest: Manifest,
    into: Path,
    params: Download,
    *,
    accept_licence: bool = False,
    is_looking: bool = False,
    progress: Advance | None = None,
) -> Iterator[Store]:
    """The raw folder, locked for this process, with licence, manifest and the manifest's plain files in it.

    is_looking  only listings are wanted: nobody has to accept a licence for that
    """
    into = Path(into)
    bar = ByteProgress(manifest.name, listener=progress)
    with only_writer(into), closing(_open_ledger(into)) as ledger, closing(bar):
        if not is_looking:
            check_licence(manifest, into, accept=accept_licence)
        with _fetcher(params, bar) as fetcher:
            store = Store(manifest, into, ledger, fetcher, bar)
            store.sources = resolve_sources(store)
            store.forget_stale(store.sources)
            _write_manifest(manifest, into)
            try:
                _bring_files(store)
                yield store
            finally:
                _remove_if_empty(into / ".part")


def _bring_files(store: Store) -> None:
    """The manifest's plain files, which may decide splits; without one of them ledger.json is not true."""
    files = [source for source in store.sources if not isinstance(source, Archive)]
    if not all(map(store.has, files)):
        remove(store.into / "ledger.json")
    bring(store, files, 1, is_all=False)


def _open_ledger(into: Path) -> Ledger:
    into.mkdir(parents=True, exist_ok=True)
    return Ledger(into / ".ledger" / "ledger.sqlite")


def _fetcher(params: Download, bar: ByteProgress) -> Fetcher:
    return Fetcher(
        connections_per_host=params.connections_per_host,
        patience_s=params.patience_s,
        stall_s=params.stall_s,
        advance=bar.advance,
    )


def bring(store: Store, sources: Sequence[Source], num_workers: int, *, is_all: bool = True) -> None:
    """Bring several archives side by side, those that are here left alone. Errors as in download."""
    todo = [source for source in sources if not store.has(source)]
    if todo:
        with _pool(store, num_workers) as pool:
            expected = _expect(store, pool, todo)
            _check_disk(store, expected, num_workers)
            store.progress.expect(sum(one.transfer_bytes for one in expected.values()), len(todo))
            errors = _run_all(pool, store, todo)
        raise_together(errors, len(todo))
    if is_all:
        log.info("%s: %d of %d archives and files were fetched", store.manifest.name, len(todo), len(sources))


def _expect(store: Store, pool: Executor, todo: Sequence[Source]) -> dict[str, Any]:
    """Sizes of what can be asked; an archive that does not answer now has its say when it is fetched."""
    if len(todo) >= MANY_ARCHIVES:
        log.info("%s: asking for the contents of %d archives", store.manifest.name, len(todo))

    def expect(source: Source):
        try:
            return store.expect(source)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS) or _is_dark(store):
                store.ledger.failed(source.path, store.identity(source), str(error))
                raise
            log.warning("%s: size unknown: %s", source.path, error)
            return None

    found = zip(todo, pool.map(expect, todo), strict=True)
    return {source.path: one for source, one in found if one is not None}


def _check_disk(store: Store, expected: dict[str, Any], num_workers: int) -> None:
    """OSError before anything is fetched that has no room: all members, and the archives that are on their way."""
    kept = (one.transfer_bytes for path, one in expected.items() if not path.endswith(".tar"))  # tars only pass through
    largest = sorted(kept, reverse=True)[:num_workers]
    needed = sum(one.disk_bytes for one in expected.values()) + sum(largest)
    there = sum(file.stat().st_blocks * 512 for file in (store.into / ".part").rglob("*") if file.is_file())
    free = shutil.disk_usage(store.into).free
    if needed - there > free:
        raise OSError(
            errno.ENOSPC,
            f"disk too small: {show_bytes(needed - there)} needed, {show_bytes(free)} free, "
            f"{show_bytes(needed - there - free)} missing; see --scenes, --limit-gb and encode --from-remote",
            str(store.into),
        )


@contextmanager
def _pool(store: Store, num_workers: int) -> Iterator[Executor]:
    """Threads that end at once, and all transfers with them, when something leaves the block that way."""
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            yield pool
        except BaseException:
            store.fetcher.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_all(pool: Executor, store: Store, todo: Sequence[Source]) -> list[Exception]:
    errors = []
    for future in as_completed([pool.submit(store.bring, source) for source in todo]):
        error = future.exception()
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise _disk_full(store, todo) from error
        if isinstance(error, OSError) and _is_dark(store):
            raise error
        if isinstance(error, ValueError | OSError):
            errors.append(error)
        else:
            future.result()
    return errors


def _is_dark(store: Store) -> bool:
    """Whether nothing has come from anywhere for as long as a single archive is waited for: then all would fail."""
    return store.progress.idle_s >= store.fetcher.patience_s


def raise_together(errors: Sequence[Exception], num_archives: int) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = ValueError if all(isinstance(error, ValueError) for error in errors) else OSError
        raise kind("\n".join([f"{len(errors)} of {num_archives} failed:", *sorted(map(str, errors))]))


def _disk_full(store: Store, todo: Sequence[Source]) -> OSError:
    rows = (store.row(source) for source in todo)
    left = sum(row.disk_bytes or 0 for row in rows if row and row.state != DONE)
    free = shutil.disk_usage(store.into).free
    return OSError(
        errno.ENOSPC,
        f"disk full: about {show_bytes(left)} are still to come, {show_bytes(free)} free; make room and run it again",
        str(store.into),
    )


# The licence


def check_licence(manifest: Manifest, into: Path, *, accept: bool = False) -> None:
    """ValueError unless the data set's licence was accepted for this folder, now or earlier."""
    licence = manifest.licence
    if not is_accepted(manifest, into, accept=accept):
        raise ValueError(
            f"{manifest.name} is under {licence.name} ({licence.url}): {licence.terms} "
            f"Accept it once: metricgold download {manifest.name} --accept-licence"
        )


def is_accepted(manifest: Manifest, into: Path, *, accept: bool = False) -> bool:
    """Whether somebody accepted the licence for this folder; with `accept` that is recorded now."""
    record, licence = Path(into) / ".ledger" / "licence.json", manifest.licence
    known = read_json(record) if record.exists() else {}
    if not licence.needs_acceptance or (known.get("name"), known.get("url")) == (licence.name, licence.url):
        return True
    if accept:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(record, {"name": licence.name, "url": licence.url, "accepted": now, "by": _user()})
        log.info("%s: licence %s accepted", manifest.name, licence.name)
    return accept


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


# What to fetch


def resolve_sources(store: Store) -> list[Source]:
    """Archives and files with their checksums filled in from the published list, if there is one."""
    manifest = store.manifest
    listed = _published_checksums(store)
    algorithm = manifest.checksums.algorithm if manifest.checksums else None
    sources: Iterable[Source] = (*manifest.files, *manifest.archives)
    if not manifest.archives:
        known = {file.path for file in manifest.files}
        sources = (*manifest.files, *(Archive(path=path) for path in sorted(listed) if path not in known))
    return [_with_checksum(source, algorithm, listed.get(source.path)) for source in sources]


def _with_checksum(source: Source, algorithm: str | None, digest: str | None) -> Source:
    if digest is None:
        return source
    own = getattr(source, algorithm)
    if own not in (None, digest):
        raise ValueError(f"{source.path}: the manifest's {algorithm} is {own}, the published list has {digest}")
    return source.model_copy(update={algorithm: digest})


def _published_checksums(store: Store) -> dict[str, str]:
    checksums = store.manifest.checksums
    if checksums is None:
        return {}
    text = store.fetcher.read(store.urls(Source(path=checksums.path)))
    return parse_checksums(text.decode(errors="replace"), checksums.path)


def parse_checksums(text: str, label: str) -> dict[str, str]:
    """path -> hex digest of a list in md5sum's form. ValueError names `label` and the line that is not."""
    digests = {}
    for line in filter(str.strip, text.splitlines()):
        digest, _, name = line.strip().partition(" ")
        path = name.strip().removeprefix("*").removeprefix("./")
        if not path or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{label}: not a line of a checksum list: {line!r}")
        digests[Source(path=path).path] = digest
    return digests


def wanted_groups(store: Store, params: Download, *, skip_training: bool = False) -> list[Group]:
    """Archives by scene as params ask: `scenes`, then `limit_gb`. Raises ValueError when no scene is meant."""
    name = store.manifest.name
    groups = group_by_scene([source for source in store.sources if isinstance(source, Archive)])
    if globs := (params.scenes or {}).get(name):
        groups = _matching(name, groups, globs)
    if skip_training:
        splits_of = scene_splits(store.manifest, store.into)
        groups = [group for group in groups if not group.scenes or any(splits_of(s) - {"train"} for s in group.scenes)]
    if limit_gb := (params.limit_gb or {}).get(name):
        groups = _within(store, groups, limit_gb)
    return groups


def group_by_scene(sources: Iterable[Archive]) -> list[Group]:
    """Sets of archives that share no scene, in the manifest's order; an archive that names none holds all."""
    sources = list(sources)
    if any(not source.scenes for source in sources):
        return [Group((), tuple(sources))] if sources else []
    groups: list[tuple[dict[str, None], list[Archive]]] = []
    for source in sources:
        scenes, members = dict.fromkeys(source.scenes), [source]
        apart = []
        for group in groups:
            if scenes.keys() & group[0].keys():
                scenes, members = group[0] | scenes, [*group[1], *members]
            else:
                apart.append(group)
        groups = [*apart, (scenes, members)]
    return [Group(tuple(scenes), tuple(members)) for scenes, members in groups]


def _matching(name: str, groups: Sequence[Group], globs: Sequence[str]) -> list[Group]:
    if any(not group.scenes for group in groups):
        raise ValueError(
            f"the archives of {name} do not say which scenes they hold: scenes {list(globs)} cannot be told"
        )
    found = [group for group in groups if any(fnmatchcase(s, glob) for s in group.scenes for glob in globs)]
    if not found:
        known = [scene for group in groups for scene in group.scenes]
        raise ValueError(
            f"no scene of {name} matches {list(globs)}; it has {len(known)}, from {known[0]} to {known[-1]}"
        )
    return found


def _within(store: Store, groups: Sequence[Group], limit_gb: float) -> list[Group]:
    """The first groups whose members fit into the limit together."""
    kept, num_bytes = [], 0
    for group in groups:
        num_bytes += sum(store.expect(source).disk_bytes for source in group.sources)
        if num_bytes > limit_gb * GB:
            break
        kept.append(group)
    if not kept:
        raise ValueError(
            f"{store.manifest.name}: limit_gb {limit_gb:g} holds no scene; the first has {show_bytes(num_bytes)}"
        )
    log.info("%s: %d of %d groups of scenes fit into %g GB", store.manifest.name, len(kept), len(groups), limit_gb)
    return kept


# Before and after


def plan(
    manifest: Manifest, into: Path, *, params: Download | None = None, accept_licence: bool = False
) -> dict[str, Any]:
    """What download would do: archives and bytes to fetch, disk needed and free, licence. Fetches only listings.

    Sizes that upstream does not tell are counted in `archives_of_unknown_size`.
    """
    params, into = params or Download(), Path(into)
    accepted = is_accepted(manifest, into, accept=accept_licence)
    with open_store(manifest, into, params, is_looking=True) as store:
        groups = wanted_groups(store, params, skip_training=manifest.name in (params.streamed or ()))
        sources = [source for group in groups for source in group.sources]
        todo = [source for source in sources if not store.has(source)]
        with _pool(store, params.num_workers) as pool:
            expected = _expect(store, pool, todo)
    return {
        "dataset": manifest.name,
        "licence": f"{manifest.licence.name}, {manifest.licence.url}",
        "licence_accepted": accepted,
        "archives": len(sources),
        "archives_here": len(sources) - len(todo),
        "archives_of_unknown_size": len(todo) - len(expected),
        "bytes_to_fetch": sum(one.transfer_bytes for one in expected.values()),
        "bytes_on_disk_after": sum(one.disk_bytes for one in expected.values()),
        "bytes_free": shutil.disk_usage(into).free,
    }


def verify(
    manifest: Manifest, into: Path, *, params: Download | None = None, accept_licence: bool = False
) -> dict[str, Any]:
    """Read every member that the ledger knows and fetch again those whose bytes changed, and only those."""
    params = params or Download()
    with open_store(manifest, into, params, accept_licence=accept_licence) as store:
        here = [source for source in store.sources if (row := store.row(source)) and row.state == DONE]
        with _pool(store, params.num_workers) as pool:
            broken = {source.path: names for source, names in zip(here, pool.map(store.broken, here), strict=True)}
        for source in here:
            if names := broken[source.path]:
                log.warning("%s: %d members are broken, first %s", source.path, len(names), names[0])
                store.repair(source, names)
        names = [name for found in broken.values() for name in found]
        ledger = _write_ledger(store)
    return {
        "dataset": manifest.name,
        "archives": len(here),
        "repaired": len(names),
        "members": names,
        "ledger": str(ledger),
    }


def _write_manifest(manifest: Manifest, into: Path) -> None:
    values = manifest.model_dump(mode="json", exclude_unset=True)
    with write_aside(into / "manifest.yaml") as aside:
        aside.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def _write_ledger(store: Store) -> Path:
    """What lies here and what decided it. Where it came from may change without a trace, its bytes may not."""
    scenes = {source.path: list(getattr(source, "scenes", ())) for source in store.sources}
    rows, passing = store.ledger.archives().items(), read_passing(store)
    archives = {
        path: ledger_entry(row, scenes[path]) for path, row in rows if row.state == DONE and path not in passing
    }
    decided_by = store.manifest.model_dump(mode="json", include={"name", "members", "splits", "exclude"})
    ledger = {"dataset": store.manifest.name, "archives": archives, "manifest_sha256": digest_json(decided_by)}
    write_json(store.into / "ledger.json", ledger)
    return store.into / "ledger.json"


def read_passing(store: Store) -> set[str]:
    """Archives that `encode --from-remote` fetches in order to delete them again, also those a killed run left."""
    note = store.into / PASSING
    return set(read_json(note)) if note.is_file() else set()


def note_passing(store: Store, paths: Collection[str]) -> None:
    """Replace the note; no paths, no note."""
    if paths:
        write_json(store.into / PASSING, sorted(paths))
    else:
        remove(store.into / PASSING)


def ledger_entry(row: Any, scenes: Collection[str]) -> dict[str, Any]:
    """An archive in ledger.json."""
    return {
        "scenes": sorted(scenes),
        "members": row.num_members,
        "bytes": row.disk_bytes,
        "members_sha256": row.members_sha256,
    }


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
