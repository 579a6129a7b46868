"""Fetch what a manifest names into a raw folder (its layout: metricgold.download.raw_folder), as few bytes as possible.

A run that was killed, moved to another disk or cut off by a bad server resumes where it stopped.
"""

import errno
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metricgold.datasets import Manifest
from metricgold.download.archives import require_unpackers
from metricgold.download.arrival import Cost
from metricgold.download.fetcher import Fetcher
from metricgold.download.ledger import DONE, LEDGER, Ledger
from metricgold.download.licence import check_licence, is_accepted
from metricgold.download.progress import Advance, ByteProgress, show_bytes
from metricgold.download.raw_folder import RawFolder
from metricgold.download.selection import wanted_groups
from metricgold.download.sources import WantedSource, resolve_sources
from metricgold.download.transport import shown
from metricgold.params import Download
from metricgold.storage import Lines, only_writer, remove, write_yaml

log = logging.getLogger(__name__)

MANY_ARCHIVES = 20  # asking so many for their sizes deserves a line


def download(
    manifest: Manifest,
    into: Path,
    *,
    params: Download | None = None,
    accept_licence: bool = False,
    progress: Advance | None = None,
) -> Path:
    """Bring `into` to what manifest and params say; returns the path of ledger.json.

    `progress` is called with numbers of bytes that arrive, instead of a bar or lines. One archive's fault does not
    stop the others; all are raised together, each naming its archive: ValueError for what is wrong with bytes, names,
    scenes or for a licence that was not accepted, OSError when something could not be fetched or written. A full disk
    stops the run at once, before it starts where sizes are known.
    """
    params = params or Download()
    with open_raw_folder(manifest, into, params, accept_licence=accept_licence, progress=progress) as folder:
        groups = wanted_groups(folder, params, skip_training=manifest.name in (params.streamed or ()))
        sources = [source for group in groups for source in group.sources]
        if not all(map(folder.has, sources)):
            remove(folder.into / "ledger.json")
        fetch(folder, sources, params.num_workers)
        num_wanted = len(sources) + sum(source.is_file for source in folder.sources)
        log.info("%s: %d of %d archives and files were fetched", manifest.name, folder.num_fetched, num_wanted)
        folder.note_passing(folder.passing() - {source.path for source in sources})
        return folder.write_ledger()


@contextmanager
def open_raw_folder(
    manifest: Manifest,
    into: Path,
    params: Download,
    *,
    accept_licence: bool = False,
    is_whole_stage: bool = True,
    progress: Advance | None = None,
) -> Iterator[RawFolder]:
    """The raw folder, locked for this process, with manifest and the manifest's plain files in it.

    is_whole_stage  the bytes to fetch are the stage's progress
    """
    into = Path(into)
    bar = ByteProgress(manifest.name, listener=progress, is_whole_stage=is_whole_stage)
    with only_writer(into), closing(Ledger(into / LEDGER)) as ledger, closing(bar):
        check_licence(manifest, into, accept=accept_licence)
        with open_fetcher(params, bar) as fetcher:
            folder = RawFolder(manifest, into, resolve_sources(manifest, fetcher), ledger, fetcher, bar)
            folder.forget_stale()
            write_yaml(into / "manifest.yaml", without_signatures(manifest))
            try:
                # Plain files may decide splits; without one of them ledger.json is not true.
                files = [source for source in folder.sources if source.is_file]
                if not all(map(folder.has, files)):
                    remove(into / "ledger.json")
                fetch(folder, files, 1)
                yield folder
            finally:
                if (parts := into / ".part").is_dir() and not any(parts.iterdir()):
                    parts.rmdir()


@contextmanager
def look_at_raw_folder(manifest: Manifest, into: Path, params: Download) -> Iterator[RawFolder]:
    """The raw folder for those who only look: its ledger is a copy, listings arrive elsewhere, nothing changes there.

    It need not exist, may be read-only, and another process may be writing it.
    """
    into, bar = Path(into), ByteProgress(manifest.name)
    with TemporaryDirectory(prefix="metricgold-") as name, open_fetcher(params, bar, only_parts=True) as fetcher:
        scratch, sources = Path(name), resolve_sources(manifest, fetcher)
        with closing(Ledger.copy(into / LEDGER, scratch / "ledger.sqlite")) as ledger:
            yield RawFolder(manifest, into, sources, ledger, fetcher, bar, parts=scratch / "part")


def open_fetcher(params: Download, bar: ByteProgress, *, only_parts: bool = False) -> Fetcher:
    """A fetcher as params want it."""
    return Fetcher(
        connections_per_host=params.connections_per_host,
        patience_s=params.patience_s,
        stall_s=params.stall_s,
        advance=bar.advance,
        only_parts=only_parts,
    )


def without_signatures(manifest: Manifest) -> dict[str, Any]:
    """A manifest's values; of its addresses without what follows a `?`, which may be a signature."""
    values = manifest.model_dump(mode="json", exclude_unset=True)
    if "mirrors" in values:
        values["mirrors"] = list(map(shown, values["mirrors"]))
    for source in (*values.get("archives", ()), *values.get("files", ())):
        if source.get("url"):
            source["url"] = shown(source["url"])
    return values


def fetch(folder: RawFolder, sources: Sequence[WantedSource], num_workers: int) -> None:
    """Fetch several archives side by side, except those that are here. Errors as in download."""
    todo = [source for source in sources if not folder.has(source)]
    if todo:
        with _pool(folder, num_workers) as pool:
            costs = ask_costs(folder, pool, todo)
            check_disk(folder, costs, num_workers)
            folder.progress.expect(sum(cost.transfer_bytes for cost in costs.values()), len(todo))
            require_unpackers(source.path for source in todo)
            errors = _fetch_all(pool, folder, todo)
        raise_together(errors, len(todo))
    folder.num_fetched += len(todo)


@contextmanager
def _pool(folder: RawFolder, num_workers: int) -> Iterator[Executor]:
    """Threads that end at once, and all transfers with them, when something leaves the block that way."""
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            yield pool
        except BaseException:
            folder.fetcher.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def ask_costs(folder: RawFolder, pool: Executor, todo: Sequence[WantedSource]) -> dict[str, Cost]:
    """Costs by path; an archive whose size cannot be queried now reports its error when it is fetched."""
    if len(todo) >= MANY_ARCHIVES:
        log.info("%s: asking for the contents of %d archives", folder.manifest.name, len(todo))

    def ask(source: WantedSource) -> Cost | None:
        try:
            return folder.cost(source)
        except (OSError, ValueError) as error:
            is_of_this_disk = getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS)
            if is_of_this_disk or _is_cut_off(folder):
                folder.ledger.failed(source.path, source.identity, str(error))
                raise
            log.warning("%s: size unknown: %s", source.path, error)
            return None

    costs = zip(todo, pool.map(ask, todo), strict=True)
    return {source.path: cost for source, cost in costs if cost is not None}


def disk_needed(costs: Mapping[str, Cost], num_workers: int) -> int:
    """Bytes on the disk when it is fullest: all members, and the largest archives that are on their way together."""
    largest = sorted((cost.transfer_bytes for cost in costs.values()), reverse=True)[:num_workers]
    return sum(cost.disk_bytes for cost in costs.values()) + sum(largest)


def check_disk(folder: RawFolder, costs: Mapping[str, Cost], num_workers: int) -> None:
    """OSError, before anything is fetched, if the disk has no room for it."""
    here = sum(file.stat().st_blocks * 512 for file in (folder.into / ".part").rglob("*") if file.is_file())
    needed, free = disk_needed(costs, num_workers) - here, shutil.disk_usage(folder.into).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"disk too small: {show_bytes(needed)} needed, {show_bytes(free)} free, "
            f"{show_bytes(needed - free)} missing; see --scenes, --limit-gb and encode --from-remote",
            str(folder.into),
        )


def _fetch_all(pool: Executor, folder: RawFolder, todo: Sequence[WantedSource]) -> list[Exception]:
    """Fetch all; errors of single archives are returned, a full disk and a dead network end the run."""
    errors: list[Exception] = []
    for future in as_completed([pool.submit(folder.fetch, source) for source in todo]):
        error = future.exception()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            rows = [row for source in todo if (row := folder.row(source)) and row.state != DONE]
            left, free = sum(row.disk_bytes or 0 for row in rows), shutil.disk_usage(folder.into).free
            text = f"disk full: about {show_bytes(left)} are still to come, {show_bytes(free)} free"
            raise OSError(errno.ENOSPC, f"{text}; make room and run it again", str(folder.into)) from error
        if isinstance(error, OSError) and _is_cut_off(folder):
            raise error
        if isinstance(error, ValueError | OSError):
            errors.append(error)
        else:
            future.result()
    return errors


def _is_cut_off(folder: RawFolder) -> bool:
    """Whether nothing has come from anywhere for as long as a single archive is waited for: then all would fail."""
    return folder.progress.idle_s >= folder.fetcher.patience_s


def raise_together(errors: Sequence[Exception], num_archives: int) -> None:
    """One error with the texts of all; none, no error."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = ValueError if all(isinstance(error, ValueError) for error in errors) else OSError
        raise kind(Lines([f"{len(errors)} of {num_archives} failed:", *sorted(map(str, errors))]))


def plan(
    manifest: Manifest, into: Path, *, params: Download | None = None, accept_licence: bool = False
) -> dict[str, Any]:
    """What download would do: archives, files and bytes to fetch, disk needed and free, licence.

    Fetches only listings and changes nothing. `bytes_on_disk_at_most` counts members and the archives that are on
    their way. What upstream does not say the size of is counted in `archives_of_unknown_size`, `files_of_unknown_size`.
    `archives_to_delete` are here, but no longer named, or no longer wanted as they are.
    """
    params, into = params or Download(), Path(into)
    with look_at_raw_folder(manifest, into, params) as folder:
        num_stale = sum(folder.ledger.archives()[path].state == DONE for path in folder.stale())
        groups = wanted_groups(folder, params, skip_training=manifest.name in (params.streamed or ()))
        archives = [source for group in groups for source in group.sources]
        files = [source for source in folder.sources if source.is_file]
        todo = [source for source in (*files, *archives) if not folder.has(source)]
        with _pool(folder, params.num_workers) as pool:
            costs = ask_costs(folder, pool, todo)
    return {
        "dataset": manifest.name,
        "licence": f"{manifest.licence.name}, {manifest.licence.url}",
        "licence_accepted": accept_licence or is_accepted(manifest, into),
        **_counts("archives", archives, todo, costs),
        **_counts("files", files, todo, costs),
        "archives_to_delete": num_stale,
        "bytes_to_fetch": sum(cost.transfer_bytes for cost in costs.values()),
        "bytes_on_disk_at_most": disk_needed(costs, params.num_workers),
        "bytes_on_disk_after": sum(cost.disk_bytes for cost in costs.values()),
        "bytes_free": shutil.disk_usage(next(path for path in (into, *into.absolute().parents) if path.is_dir())).free,
    }


def _counts(
    kind: str, sources: Sequence[WantedSource], todo: Sequence[WantedSource], costs: Mapping[str, Cost]
) -> dict[str, int]:
    """Of archives or files: how many are wanted, are here, and are to be fetched without a size."""
    absent = {source.path for source in todo} & {source.path for source in sources}
    return {
        kind: len(sources),
        f"{kind}_here": len(sources) - len(absent),
        f"{kind}_of_unknown_size": len(absent - costs.keys()),
    }


def verify(
    manifest: Manifest, into: Path, *, params: Download | None = None, accept_licence: bool = False
) -> dict[str, Any]:
    """Read every member that the ledger knows and repair those whose bytes changed, see RawFolder.repair."""
    params = params or Download()
    with open_raw_folder(manifest, into, params, accept_licence=accept_licence) as folder:
        here = [source for source in folder.sources if (row := folder.row(source)) and row.state == DONE]
        with _pool(folder, params.num_workers) as pool:
            broken = dict(zip((source.path for source in here), pool.map(folder.broken, here), strict=True))
        for source in here:
            if names := broken[source.path]:
                log.warning("%s: %d members are broken, first %s", source.path, len(names), names[0])
                folder.repair(source, names)
        ledger = folder.write_ledger()
    names = [name for broken_names in broken.values() for name in broken_names]
    return {
        "dataset": manifest.name,
        "archives": len(here),
        "repaired": len(names),
        "members": names,
        "ledger": str(ledger),
    }
