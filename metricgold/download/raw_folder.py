"""One data set's raw folder: archives come in, their members stay, the ledger knows each of them.

    into/manifest.yaml            the manifest that decided
    into/.ledger/ledger.sqlite    archives and members: state, bytes, CRC, source, time; what a rerun trusts
    into/.ledger/licence.json     the licence as accepted, with the date and the user
    into/.ledger/passing.json     archives that `encode --from-remote` will delete again
    into/.content.sqlite          size, time, inode and CRC of each member as it arrived (metricgold.datasets.content)
    into/.part/                   archives and members on their way; gone after a run that fetched everything
    into/ledger.json              written last: all that was requested is here; equal data give equal bytes

An archive's members appear in `into` only after all of them were extracted and verified.
"""

import logging
import threading
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from metricgold.datasets import CONTENT_CACHE, Manifest, note_contents
from metricgold.download.arrival import Arrival, Cost, remove_parts
from metricgold.download.fetcher import Fetcher
from metricgold.download.ledger import DONE, DROPPED, PLACING, ArchiveRow, Ledger, MemberRow, not_a_ledger
from metricgold.download.progress import Advance, ByteProgress, no_progress, show_bytes
from metricgold.download.sources import WantedSource
from metricgold.storage import digest_crc32, paths_below, read_json, remove, sync, write_json

log = logging.getLogger(__name__)

RESERVED = ("manifest.yaml", "ledger.json", ".ledger", ".part", CONTENT_CACHE)
PASSING = ".ledger/passing.json"
WORTH_A_LINE_BYTES = 10_000_000  # hundreds of small archives would drown a log; the ledger names each of them


class RawFolder:
    """The folder `into` with archives and files of one manifest. Threads may share it; see stage.open_raw_folder.

    parts        where archives are on their way, .part if no other place is given
    num_fetched  archives and files that this run has fetched
    """

    def __init__(
        self,
        manifest: Manifest,
        into: Path,
        sources: Sequence[WantedSource],
        ledger: Ledger,
        fetcher: Fetcher,
        progress: ByteProgress,
        *,
        parts: Path | None = None,
    ) -> None:
        self.manifest, self.into, self.sources = manifest, Path(into), list(sources)
        self.ledger, self.fetcher, self.progress = ledger, fetcher, progress
        self.parts = parts or self.into / ".part"
        self.num_fetched = 0
        self._placing = threading.Lock()

    # What is here

    def row(self, source: WantedSource) -> ArchiveRow | None:
        """The ledger's row, if it is about what the manifest wants now."""
        row = self.ledger.archive(source.path)
        return row if row and row.identity == source.identity else None

    def has(self, source: WantedSource) -> bool:
        """Whether all members are here in their sizes."""
        row = self.row(source)
        return row is not None and row.state == DONE and not self.missing(source)

    def missing(self, source: WantedSource) -> list[str]:
        """Members in the ledger that are not here or have another size."""
        return [row.name for row, path in self.members(source.path) if _size(path) != row.bytes]

    def broken(self, source: WantedSource) -> list[str]:
        """Members in the ledger whose bytes are not those that arrived; every byte is read."""
        return [
            row.name
            for row, path in self.members(source.path)
            if _size(path) != row.bytes or digest_crc32(path) != row.crc32
        ]

    def members(self, archive: str) -> list[tuple[MemberRow, Path]]:
        """An archive's members in the ledger and their paths. ValueError for a name that no download has given."""
        rows = self.ledger.members(archive)
        try:
            return list(zip(rows, self._paths(row.name for row in rows), strict=True))
        except ValueError as error:
            raise not_a_ledger(self.ledger.path, error) from error

    def _paths(self, names: Iterable[str]) -> list[Path]:
        """Paths below the folder, all of them judged before one is used: a ledger may come from anywhere."""
        names = list(names)
        refuse_reserved(names, self.into)
        return paths_below(self.into, names)

    def cost(self, source: WantedSource) -> Cost:
        """Bytes to fetch and on disk; asks upstream once and keeps the answer in the ledger."""
        row = self.row(source)
        if row is not None and row.transfer_bytes is not None and row.disk_bytes is not None:
            return Cost(row.transfer_bytes, row.disk_bytes)
        cost = Arrival(source, self.parts, self.fetcher).cost()
        self.ledger.listed(source.path, source.identity, **cost._asdict())
        return cost

    def folder_of_splits(self) -> Path:
        """Where the csv that decides splits is: here, or with what somebody who only looks has fetched."""
        csv = self.manifest.splits and self.manifest.splits.csv
        source = next((source for source in self.sources if source.is_file and source.path == csv), None)
        if source is None or self.has(source):
            return self.into
        arrival = Arrival(source, self.parts, self.fetcher)
        arrival.fetch()
        return arrival.staged

    # In and out

    def fetch(self, source: WantedSource) -> None:
        """Fetch, verify, extract, move into place, account for it. Nothing happens when it is here.

        Raises ValueError for wrong bytes or names, OSError when no mirror delivers or the disk does not take it;
        both name the archive, and the ledger keeps the reason.
        """
        if self.has(source):
            return
        row = self.row(source)
        if row is None or row.state not in (DONE, PLACING):
            self.ledger.fetching(source.path, source.identity)
        try:
            with self.progress.part(source.path, row.transfer_bytes if row else source.num_bytes) as advance:
                arrival = Arrival(source, self.parts, self.fetcher, advance)
                if row is not None and row.state == DONE:
                    self.repair(source, self.missing(source), advance)
                elif row is not None and row.state == PLACING and self.is_all_staged(arrival):
                    self._place(arrival, row.source or "", self.ledger.members(source.path))
                else:
                    self._place(arrival, *arrival.fetch())
        except (ValueError, OSError) as error:
            if row is None or row.state != DONE:  # else its row stays true of what is here
                self.ledger.failed(source.path, source.identity, str(error))
            raise

    def repair(self, source: WantedSource, names: Collection[str], advance: Advance = no_progress) -> None:
        """Fetch single members again: of a zip without a published checksum only those, else the archive."""
        members = self.members(source.path)
        known = {row.name: row for row, _ in members}
        self._delete(path for row, path in members if row.name in names)
        arrival = Arrival(source, self.parts, self.fetcher, advance)
        is_selective = source.path.endswith(".zip") and not source.digests
        _, rows = arrival.fetch(only=names if is_selective else None)
        for row in rows:
            if row.name in known and row != known[row.name]:
                raise ValueError(f"{source.path}: upstream has another member {row.name} now; download it anew")
        self.move_in(arrival, [row for row in rows if row.name in names])
        arrival.remove()

    def drop(self, source: WantedSource) -> None:
        """Delete an archive's members on purpose; the ledger remembers what they were."""
        self._delete(path for _, path in self.members(source.path))
        self.ledger.dropped(source.path)

    def forget_stale(self) -> None:
        """Remove what came from archives that the manifest no longer names or wants in another way.

        And what killed runs left: files written aside, parts of archives that are here.
        """
        for left in (*self.into.glob(".*.part"), *self.parts.glob(".*")):
            if left.name != ".part":
                remove(left)
        stale = self.stale()
        if stale:
            remove(self.into / "ledger.json")  # first: it must not name what goes now
        for path, row in self.ledger.archives().items():
            if path in stale or row.state in (DONE, DROPPED):
                remove_parts(self.parts, path)
            if path in stale:
                if row.state == DONE:
                    log.info("%s: removing what came from %s, replaced or no longer wanted", self.into, path)
                self._delete(member for _, member in self.members(path))
                self.ledger.forget(path)

    def stale(self) -> set[str]:
        """Archives in the ledger that the manifest no longer names or wants in another way."""
        wanted = {source.path: source.identity for source in self.sources}
        return {path for path, row in self.ledger.archives().items() if wanted.get(path) != row.identity}

    def is_all_staged(self, arrival: Arrival) -> bool:
        """Whether a killed run had extracted every member: each is staged or moved into place."""
        rows = self.members(arrival.source.path)
        return all(row.bytes in (_size(path), _size(arrival.staged / row.name)) for row, path in rows)

    def _place(self, arrival: Arrival, origin: str, rows: Sequence[MemberRow]) -> None:
        """Move staged members into the raw folder and account for them; a kill in between loses nothing."""
        path, identity = arrival.source.path, arrival.source.identity
        refuse_reserved((row.name for row in rows), path)
        with self._placing:
            if taken := self.ledger.owner((row.name for row in rows), path):
                one, other = sorted((taken[1], path))
                raise ValueError(f"{self.into / taken[0]} is in both {one} and {other}")
            self.ledger.placing(path, identity, origin, rows)
        self.move_in(arrival, rows)
        self.ledger.done(path, identity, origin, rows)
        arrival.remove()
        num_bytes = sum(row.bytes for row in rows)
        level = logging.INFO if num_bytes >= WORTH_A_LINE_BYTES else logging.DEBUG
        log.log(level, "%s: %s, %d members, %s", self.manifest.name, path, len(rows), show_bytes(num_bytes))

    def move_in(self, arrival: Arrival, rows: Sequence[MemberRow]) -> None:
        """Rename staged members into the folder; those that a killed run has moved are left alone.

        Their new names are on the disk when this returns. What they hold is noted, so that nobody has to read them to
        know that they were not edited.
        """
        paths, arrived = self._paths(row.name for row in rows), {}
        for row, target in zip(rows, paths, strict=True):
            staged = arrival.staged / row.name
            with self._placing:  # no other thread takes the folder away in between
                if staged.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    arrived[row.name] = staged.stat(), row.crc32
                    staged.replace(target)
        note_contents(self.into, arrived)
        for folder in _folders_of(paths, self.into) | {self.into}:
            sync(folder)

    def _delete(self, members: Iterable[Path]) -> None:
        """Delete members and the folders that are empty then."""
        paths = list(members)
        for path in paths:
            path.unlink(missing_ok=True)
        with self._placing:
            for folder in sorted(_folders_of(paths, self.into), reverse=True):
                if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                    folder.rmdir()

    # What it says of itself

    def write_ledger(self) -> Path:
        """ledger.json: what is here and what decided it. Where it came from may change without a trace there."""
        scenes = {source.path: source.scenes for source in self.sources}
        passing = self.passing()
        archives = {
            path: ledger_entry(row, scenes[path])
            for path, row in self.ledger.archives().items()
            if row.state == DONE and path not in passing
        }
        digest = self.manifest.decisive_digest
        ledger = {"dataset": self.manifest.name, "archives": archives, "manifest_sha256": digest}
        write_json(self.into / "ledger.json", ledger)
        return self.into / "ledger.json"

    def passing(self) -> set[str]:
        """Archives that `encode --from-remote` fetches in order to delete them again, also those a killed run left."""
        note = self.into / PASSING
        paths = read_json(note) if note.is_file() else []
        return {path for path in paths if isinstance(path, str)} if isinstance(paths, list) else set()

    def note_passing(self, paths: Collection[str]) -> None:
        """Replace that note; no paths, no note."""
        if paths:
            write_json(self.into / PASSING, sorted(paths))
        else:
            remove(self.into / PASSING)


def ledger_entry(row: ArchiveRow, scenes: Collection[str]) -> dict[str, Any]:
    """An archive in ledger.json."""
    return {
        "scenes": sorted(scenes),
        "members": row.num_members,
        "bytes": row.disk_bytes,
        "members_sha256": row.members_sha256,
    }


def refuse_reserved(names: Iterable[str], label: Path | str) -> None:
    """ValueError for a member that would take the place of the ledger, or of another file of this folder's own."""
    for name in names:
        if str(name).split("/")[0] in RESERVED:
            raise ValueError(f"{label}: member {name} has a name that is kept for the ledger, refused")


def _folders_of(paths: Iterable[Path], root: Path) -> set[Path]:
    """The folders below `root` that these files are in."""
    nearest = {path.parent for path in paths}
    return {folder for path in nearest for folder in (path, *path.parents) if root in folder.parents}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
