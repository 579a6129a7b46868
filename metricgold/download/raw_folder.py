"""One data set's raw folder: archives come in, their members lie there, the ledger knows each of them.

    into/manifest.yaml            the manifest that decided
    into/.ledger/ledger.sqlite    archives and members: state, bytes, CRC, source, time; what a rerun trusts
    into/.ledger/licence.json     who may: the licence as accepted, with the date
    into/.part/                   archives and members on their way; gone after a run that found everything
    into/ledger.json              written last: all that was asked for is here; equal data give equal bytes

Of a zip only the members that are wanted travel, a plain tar is extracted while it arrives, all else comes whole.
An archive's members appear in `into` only after all of them were extracted and verified.
"""

import logging
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from metricgold.datasets import ALGORITHMS, Manifest, Source, is_archive
from metricgold.download.archives import ZipMember, extract, extract_tar, join_ranges, list_zip
from metricgold.download.fetcher import Fetcher, RemoteFile
from metricgold.download.ledger import DONE, DROPPED, PLACING, ArchiveRow, Ledger, MemberRow
from metricgold.download.progress import Advance, ByteProgress, show_bytes
from metricgold.download.transport import shown
from metricgold.storage import BLOCK_BYTES, digest_crc32, digest_json, remove

log = logging.getLogger(__name__)

RESERVED = ("manifest.yaml", "ledger.json", ".ledger", ".part")
NUM_TRIES = 3  # of an archive whose bytes were wrong, each with another mirror first
TAIL_BYTES = 65_536 + 22  # first contact: holds the end of every zip's directory
DIRECTORY_BYTES = 4 << 20  # a zip's directory is rarely longer
WORTH_A_LINE_BYTES = 10_000_000


class Expected(NamedTuple):
    """What an archive will cost: bytes to fetch, bytes of its members."""

    transfer_bytes: int
    disk_bytes: int


class Store:
    """Archives of one manifest, in and out of one raw folder. Threads may share it; see download.open_store."""

    def __init__(self, manifest: Manifest, into: Path, ledger: Ledger, fetcher: Fetcher, progress: ByteProgress):
        self.manifest, self.into, self.ledger = manifest, Path(into), ledger
        self.fetcher, self.progress = fetcher, progress
        self._placing = threading.Lock()
        self._advances: dict[str, Advance] = {}  # of the archives that are on their way

    # What is there

    def identity(self, source: Source) -> str:
        """Digest of what the manifest wants of an archive; where it comes from is left out."""
        wanted = source.model_dump(exclude={"url", "scenes", "members"}) | {"members": list(self.globs(source))}
        return digest_json(wanted)

    def globs(self, source: Source) -> tuple[str, ...]:
        """Globs of the members that are wanted of an archive."""
        own = getattr(source, "members", None)
        return self.manifest.members if own is None else own

    def urls(self, source: Source) -> list[str]:
        """Where it lies, in order of preference."""
        return [source.url] if source.url else [_join(mirror, source.path) for mirror in self.manifest.mirrors]

    def row(self, source: Source) -> ArchiveRow | None:
        """The ledger's row, if it is about what the manifest wants now."""
        row = self.ledger.archive(source.path)
        return row if row and row.identity == self.identity(source) else None

    def has(self, source: Source) -> bool:
        """Whether all members lie here in their sizes."""
        row = self.row(source)
        return row is not None and row.state == DONE and not self.missing(source)

    def missing(self, source: Source) -> list[str]:
        """Members in the ledger that are not here or have another size."""
        return [row.name for row in self.ledger.members(source.path) if _size(self.into / row.name) != row.bytes]

    def broken(self, source: Source) -> list[str]:
        """Members in the ledger whose bytes are not those that arrived; every byte is read."""
        return [
            row.name
            for row in self.ledger.members(source.path)
            if _size(self.into / row.name) != row.bytes or digest_crc32(self.into / row.name) != row.crc32
        ]

    def forget_stale(self, sources: Collection[Source]) -> None:
        """Remove what came from archives that the manifest no longer names or wants in another way.

        And what killed runs left: files written aside, parts of archives that are here.
        """
        for left in (*self.into.glob(".*.part"), *(self.into / ".part").glob(".*")):
            if left.name != ".part":
                remove(left)
        wanted = {source.path: self.identity(source) for source in sources}
        for path, row in self.ledger.archives().items():
            if row.state in (DONE, DROPPED):
                _remove_parts(self.into, path)
            if wanted.get(path) != row.identity:
                if row.state == DONE:
                    log.info("%s: removing what came from %s, replaced or no longer wanted", self.into, path)
                self._delete([member.name for member in self.ledger.members(path)])
                self.ledger.forget(path)
                _remove_parts(self.into, path)

    # What it will cost

    def expect(self, source: Source) -> Expected:
        """Bytes to fetch and on disk; asks upstream once and keeps the answer in the ledger."""
        row = self.row(source)
        if row is None or row.transfer_bytes is None or row.disk_bytes is None:
            found = self._list(source)
            self.ledger.listed(source.path, self.identity(source), **found._asdict())
            return found
        return Expected(row.transfer_bytes, row.disk_bytes)

    def _list(self, source: Source) -> Expected:
        with closing(self._open(source, self.urls(source), tail_bytes=TAIL_BYTES)) as remote:
            if source.path.endswith(".tar"):
                remote.remove()  # it will be streamed
            if not source.path.endswith(".zip"):
                return Expected(remote.total_bytes, remote.total_bytes)
            members = self._listing(remote, source)
            whole = bool(_digests(source))
            parts = [(0, remote.total_bytes)] if whole else join_ranges([(m.start, m.end) for m in members.values()])
            return Expected(sum(end - start for start, end in parts), sum(m.num_bytes for m in members.values()))

    def _listing(self, remote: RemoteFile, source: Source) -> dict[str, ZipMember]:
        with closing(remote.reader()) as reader:
            return list_zip(reader, label=self._label(source, remote), globs=self.globs(source))

    # In and out

    def bring(self, source: Source) -> None:
        """Fetch, verify, extract, move into place, account for it. Nothing happens when it is here.

        Raises ValueError for wrong bytes or names, OSError when no mirror delivers or the disk does not take it;
        both name the archive, and the ledger keeps the reason.
        """
        if self.has(source):
            return
        row, identity = self.row(source), self.identity(source)
        if row is None or row.state not in (DONE, PLACING):
            self.ledger.fetching(source.path, identity)
        try:
            with self.progress.part(source.path, row.transfer_bytes if row else source.bytes) as advance:
                self._advances[source.path] = advance
                if row is not None and row.state == DONE:
                    self.repair(source, self.missing(source))
                elif not self._finish_placing(source, row):
                    self._settle(source, *self._take(source))
        except (ValueError, OSError) as error:
            if row is None or row.state != DONE:  # else its row stays true of what is here
                self.ledger.failed(source.path, identity, str(error))
            raise

    def drop(self, source: Source) -> None:
        """Delete an archive's members on purpose; the ledger remembers what they were."""
        self._delete([member.name for member in self.ledger.members(source.path)])
        self.ledger.dropped(source.path)

    def repair(self, source: Source, names: Sequence[str]) -> None:
        """Bring single members again, as few bytes as the archive's kind allows."""
        rows = {row.name: row for row in self.ledger.members(source.path)}
        self._delete(names)
        if source.path.endswith(".zip") and not _digests(source):
            _, members = self._take(source, only={self._inside(source, name) for name in names})
        elif all(rows[name].start is not None for name in names):
            members = self._take_slices(source, [rows[name] for name in names])
        else:
            _, members = self._take(source)
        members = self._named(source, members)
        for member in members:
            if member.name in rows and (member.bytes, member.crc32) != (
                rows[member.name].bytes,
                rows[member.name].crc32,
            ):
                raise ValueError(f"{source.path}: member {member.name} is another one upstream now; download it anew")
        self._move(source, [member for member in members if member.name in names])
        _remove_parts(self.into, source.path)

    # One archive

    def _take(self, source: Source, only: Collection[str] | None = None) -> tuple[str, list[MemberRow]]:
        """Where the members came from, and those that now lie in the staging folder.

        Wrong bytes are asked for again, of another mirror first.
        """
        urls, faults = self.urls(source), []
        is_local = all(url.startswith("file:") for url in urls)
        for number in range(1 if is_local and len(urls) == 1 else max(NUM_TRIES, len(urls))):
            turn = number % len(urls)
            try:
                return self._take_once(source, [*urls[turn:], *urls[:turn]], only)
            except ValueError as error:
                log.warning("%s: %s", self.manifest.name, error)
                faults.append(str(error))
                _remove_parts(self.into, source.path)
        raise ValueError("; ".join(dict.fromkeys(faults)))

    def _take_once(self, source: Source, urls: list[str], only: Collection[str] | None):
        staged = self._staged(source)
        if source.path.endswith(".tar"):
            origin, members = self._take_tar(source, urls, staged)
        else:
            with closing(self._open(source, urls, tail_bytes=TAIL_BYTES)) as remote:
                if is_archive(source.path):
                    take = self._take_zip if source.path.endswith(".zip") else self._take_whole
                    members = take(source, remote, staged, only)
                else:
                    members = self._take_file(source, remote, staged)
                origin = remote.url
        return origin, members

    def _open(self, source: Source, urls: Sequence[str], *, tail_bytes: int = 0) -> RemoteFile:
        path = self.into / ".part" / _slug(source.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        advance = self._advances.get(source.path, lambda num_bytes: None)
        return self.fetcher.open(urls, path, tail_bytes=tail_bytes, total_bytes=source.bytes, advance=advance)

    def _take_zip(self, source: Source, remote: RemoteFile, staged: Path, only: Collection[str] | None):
        self._check_whole(source, remote)
        label, found = self._label(source, remote), {}
        for number in range(NUM_TRIES):
            members = self._listing(remote, source)
            wanted = {name: member for name, member in members.items() if only is None or name in only}
            remote.need(join_ranges([(member.start, member.end) for member in wanted.values()]))
            broken: list[str] = []
            found |= extract(
                remote.partial.path, staged, label=label, names=wanted.keys() - found.keys(), broken=broken
            )
            if not broken:
                return [MemberRow(name, *member) for name, member in found.items()]
            log.warning("%s: %d members arrived broken, first %s", label, len(broken), broken[0])
            for name in broken:
                remote.doubt(wanted[name].start, wanted[name].end)
            if number:  # twice wrong: what the directory says of them may be wrong instead
                remote.doubt(max(0, remote.total_bytes - DIRECTORY_BYTES), remote.total_bytes)
        raise ValueError(f"{label}: member {broken[0]} does not have its CRC-32, {NUM_TRIES} times over")

    def _take_tar(self, source: Source, urls: list[str], staged: Path):
        label = f"{source.path} from {shown(urls[0])}"
        origins: list[str] = []
        advance = self._advances.get(source.path, lambda num_bytes: None)

        def open_at(start: int) -> Iterator[bytes]:
            stream = self.fetcher.stream(urls, start, total_bytes=source.bytes, advance=advance)
            yield from stream
            origins.append(stream.url)

        algorithms = tuple(_digests(source))
        result = extract_tar(open_at, staged, label=label, globs=self.globs(source), algorithms=algorithms)
        _compare(source, result.digests | {"bytes": result.num_bytes}, label)
        rows = [MemberRow(name, found.num_bytes, found.crc32, found.start) for name, found in result.members.items()]
        return (origins or [shown(urls[0])])[-1], rows

    def _take_whole(self, source: Source, remote: RemoteFile, staged: Path, only: Collection[str] | None):
        self._check_whole(source, remote)
        remote.need([(0, remote.total_bytes)])
        found = extract(remote.partial.path, staged, label=self._label(source, remote), globs=self.globs(source))
        return [MemberRow(name, *member) for name, member in found.items()]

    def _take_file(self, source: Source, remote: RemoteFile, staged: Path) -> list[MemberRow]:
        found = self._check_whole(source, remote, "crc32")
        target = staged / source.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if remote.url.startswith("file:"):
            shutil.copyfile(remote.partial.path, target)
        else:
            _link(remote.partial.path, target)
        return [MemberRow(source.path, remote.total_bytes, int(found["crc32"], 16))]

    def _take_slices(self, source: Source, rows: Sequence[MemberRow]) -> list[MemberRow]:
        """Members of a plain tar by their place in it."""
        staged = self._staged(source)
        with closing(self._open(source, self.urls(source), tail_bytes=1)) as remote:
            remote.need([(row.start, row.start + row.bytes) for row in rows])
            for row in rows:
                path = staged / self._inside(source, row.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                _write_range(remote, row.start, row.start + row.bytes, path)
        members = [
            MemberRow(name, row.bytes, digest_crc32(staged / name), row.start)
            for row in rows
            for name in [self._inside(source, row.name)]
        ]
        return members

    def _check_whole(self, source: Source, remote: RemoteFile, *more: str) -> dict[str, str]:
        """Fetch the whole and compare what the manifest says of it; the digests, those of `more` too."""
        if not (algorithms := (*_digests(source), *more)):
            return {}
        found = remote.digests(algorithms)
        _compare(source, {name: found[name] for name in _digests(source)}, self._label(source, remote))
        return found

    # Into place

    def _settle(self, source: Source, origin: str, members: Sequence[MemberRow]) -> None:
        """Move staged members into the raw folder and account for them; a kill in between loses nothing."""
        rows, identity = self._named(source, members), self.identity(source)
        with self._placing:
            if taken := self.ledger.owner((row.name for row in rows), source.path):
                one, other = sorted((taken[1], source.path))
                raise ValueError(f"{self.into / taken[0]} lies in both {one} and {other}")
            self.ledger.placing(source.path, identity, origin, rows)
        self._move(source, rows)
        self.ledger.done(source.path, identity, origin, rows)
        _remove_parts(self.into, source.path)
        # Hundreds of small archives would drown a log; the ledger names each of them.
        num_bytes = sum(row.bytes for row in rows)
        level = logging.INFO if num_bytes >= WORTH_A_LINE_BYTES else logging.DEBUG
        log.log(level, "%s: %s, %d members, %s", self.manifest.name, source.path, len(rows), show_bytes(num_bytes))

    def _finish_placing(self, source: Source, row: ArchiveRow | None) -> bool:
        """Go on with the moves of a run that was killed; False where that is not how it ended."""
        if row is None or row.state != PLACING:
            return False
        rows, staged = self.ledger.members(source.path), self._staged(source)
        places = ((row, (self.into / row.name, staged / self._inside(source, row.name))) for row in rows)
        if not all(row.bytes in map(_size, paths) for row, paths in places):
            return False
        self._settle(source, row.source, [row._replace(name=self._inside(source, row.name)) for row in rows])
        return True

    def _named(self, source: Source, members: Sequence[MemberRow]) -> list[MemberRow]:
        """Rows with the names that members have in the raw folder."""
        folder = Path(getattr(source, "into", "."))
        rows = [row._replace(name=(folder / row.name).as_posix()) for row in members]
        for row in rows:
            if row.name.split("/")[0] in RESERVED:
                raise ValueError(f"{source.path}: member {row.name} has a name that is kept for the ledger, refused")
        return rows

    def _move(self, source: Source, rows: Sequence[MemberRow]) -> None:
        for row in rows:
            staged, target = self._staged(source) / self._inside(source, row.name), self.into / row.name
            with self._placing:  # no other thread takes the folder away in between
                if staged.exists():  # else a run that was killed has moved it
                    target.parent.mkdir(parents=True, exist_ok=True)
                    staged.replace(target)

    def _inside(self, source: Source, name: str) -> str:
        return Path(name).relative_to(getattr(source, "into", ".")).as_posix()

    def _staged(self, source: Source) -> Path:
        return self.into / ".part" / f"{_slug(source.path)}.members"

    def _label(self, source: Source, remote: RemoteFile) -> str:
        return f"{source.path} from {remote.url}"

    def _delete(self, names: Collection[str]) -> None:
        folders = set()
        for name in names:
            (self.into / name).unlink(missing_ok=True)
            folders.update(parent for parent in Path(name).parents if parent != Path())
        with self._placing:
            for folder in sorted(folders, reverse=True):
                if (self.into / folder).is_dir() and not any((self.into / folder).iterdir()):
                    (self.into / folder).rmdir()


def _join(mirror: str, path: str) -> str:
    return f"{mirror.rstrip('/')}/{quote(path) if mirror.startswith('http') else path}"


def _slug(path: str) -> str:
    # The last letter is one that quote() never leaves, so that no archive's parts look like another's.
    return f"{quote(path, safe='')}@"


def _remove_parts(into: Path, path: str) -> None:
    for left in (into / ".part").glob(f"{_slug(path)}*"):
        remove(left)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _link(path: Path, target: Path) -> None:
    """Give a file a second name, so that a kill before it is accounted for still finds the first."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:  # not every file system has second names
        path.replace(target)


def _digests(source: Source) -> dict[str, str]:
    return {name: digest for name in ALGORITHMS if (digest := getattr(source, name))}


def _compare(source: Source, found: Mapping[str, str | int], label: str) -> None:
    for key, value in found.items():
        expected = getattr(source, key)
        if expected not in (None, value):
            raise ValueError(f"{label}: {key} is {value}, expected {expected}")


def _write_range(remote: RemoteFile, start: int, end: int, path: Path) -> None:
    with path.open("wb") as file:
        for begin in range(start, end, BLOCK_BYTES):
            file.write(remote.partial.read(begin, min(begin + BLOCK_BYTES, end)))
