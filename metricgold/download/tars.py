"""Plain tars, extracted while they arrive; what a kill leaves behind is enough to go on.

    into/.members   a JSON line for each member before its content arrives: name, start, num_bytes; without a name for
                    what nobody wants: a stretch that is not kept, or (0 bytes) a place from which to go on
    into/.glue      the bytes between contents, in order: headers, padding, small members that nobody wants
    into/.part      the member that is arriving

The digest runs over the whole stream, and a running digest cannot be stored. So every byte is kept somewhere: a later
run hashes glue and members once more and asks for what follows. Of members that nobody wants only small ones are
kept; larger ones are asked for again, if a digest is wanted at all.

tarfile parses the headers. It is never given contents, it may not go back, and what it takes for an end has to be one.
"""

import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from metricgold.download.gate import BadArchive, Extracted, Gate, refusing, write
from metricgold.storage import remove

BLOCK_BYTES = 1 << 20
RECORD_BYTES = 512
MAX_HEADER_BYTES = 1 << 16  # of one member with all its extensions: tarfile's regular expressions are quadratic
KEPT_BYTES = 1 << 20  # an unwanted member up to here is cheaper kept than asked for again


class TarMember(NamedTuple):
    num_bytes: int
    crc32: int
    start: int  # of its content in the tar


class TarResult(NamedTuple):
    members: dict[str, TarMember]
    digests: dict[str, str]
    num_bytes: int


class Segment(NamedTuple):
    """A stretch of contents; all bytes between two segments are glue. Without a name nobody wants them."""

    name: str | None
    start: int
    num_bytes: int
    pax: dict[str, str]  # global extensions that are in force

    @property
    def next_header(self) -> int:
        return _whole_records(self.start + self.num_bytes)


def _whole_records(num_bytes: int) -> int:
    return -(-num_bytes // RECORD_BYTES) * RECORD_BYTES


# Reading


class Tap:
    """A tar's bytes in order: headers for tarfile, contents for us. `saw` is told all that is not taken as content."""

    def __init__(self, stream: Iterator[bytes], label: str, start: int = 0, limit_bytes: int | None = None) -> None:
        self.stream, self.label, self.limit_bytes = stream, label, limit_bytes
        self.position = start
        self.saw: Callable[[bytes], Any] = lambda piece: None
        self.fault: BaseException | None = None  # of the stream, not of the tar
        self.header_bytes = 0
        self.last_record = b""
        self._chunk = memoryview(b"")

    def take(self, num_bytes: int | None = None) -> Iterator[memoryview]:
        """The next bytes in pieces; all that are left without a number. BadArchive when they end before."""
        while num_bytes is None or num_bytes > 0:
            if not self._chunk and not self._pull():
                if num_bytes is None:
                    return
                raise BadArchive(f"{self.label}: broken archive: it ends {num_bytes:,} bytes early")
            piece = self._chunk[:num_bytes]
            self._chunk = self._chunk[len(piece) :]
            num_bytes = None if num_bytes is None else num_bytes - len(piece)
            self.position += len(piece)
            yield piece

    def _pull(self) -> bool:
        if self.limit_bytes is not None and self.position > self.limit_bytes:
            raise BadArchive(f"{self.label}: more than {self.limit_bytes:,} bytes in it, bomb refused")
        try:
            chunk = next((chunk for chunk in self.stream if chunk), b"")
        except BaseException as error:
            self.fault = error
            raise
        self._chunk = memoryview(chunk)
        return bool(chunk)

    def skip(self, num_bytes: int | None = None) -> None:
        for piece in self.take(num_bytes):
            self.saw(piece)

    # What tarfile sees

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError(f"members overlap at byte {position:,}")
        self.skip(position - self.position)

    def read(self, num_bytes: int) -> bytes:
        self.header_bytes += num_bytes
        if num_bytes < 0 or self.header_bytes > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header at byte {self.position:,} of {num_bytes:,} bytes")
        self.last_record = b"".join(self.take(num_bytes))
        self.saw(self.last_record)
        return self.last_record


def _walk(tap: Tap, pax: dict[str, str]) -> Iterator[tuple[tarfile.TarInfo, int, dict[str, str]]]:
    """Every member with the bytes from here to the next header and the global extensions in force.

    Whoever takes less than those bytes leaves the rest to the next step. Ends behind the end mark.
    """
    file = _parse(tap, lambda: tarfile.TarFile(fileobj=tap, encoding="utf-8", pax_headers=pax))
    infos = iter(file)
    while (info := _parse(tap, lambda: next(infos, None))) is not None:
        content_bytes = file.offset - tap.position
        if content_bytes < 0:
            raise BadArchive(f"{tap.label}: member {info.name!r} declares {info.size:,} bytes, refused")
        yield info, content_bytes, dict(file.pax_headers)
        file.members.clear()  # else a list of all members grows with the archive
        tap.header_bytes = 0
    # A broken header in the middle is an end to tarfile, too.
    if tap.last_record != bytes(RECORD_BYTES):
        raise BadArchive(f"{tap.label}: broken archive: no header at byte {tap.position - len(tap.last_record):,}")


def _parse(tap: Tap, step: Callable[[], Any]) -> Any:
    try:
        with refusing(tap.label):
            return step()
    except BadArchive:
        if tap.fault is not None:
            raise tap.fault from None
        raise


def _admit(gate: Gate, info: tarfile.TarInfo, content_bytes: int) -> str | None:
    if info.isdir():
        return None
    name = gate.admit(info.name, info.size, is_plain=info.isreg())
    if name is not None and (info.issparse() or content_bytes != _whole_records(info.size)):
        raise gate.refusal(name, f"declares {info.size:,} bytes and has {content_bytes:,}: sparse or forged, refused")
    return name


def extract_whole_tar(archive: Path, into: Path, gate: Gate, *, is_gzip: bool = False) -> dict[str, Extracted]:
    """Extract a tar that lies on the disk; of gzip the CRC-32 of the whole is checked."""
    found = {}
    with archive.open("rb") as raw:
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        tap = Tap(iter(partial(file.read, BLOCK_BYTES), b""), gate.label, limit_bytes=gate.limit_bytes)
        for info, content_bytes, _ in _walk(tap, {}):
            if name := _admit(gate, info, content_bytes):
                found[name] = write(tap.take(info.size), into, name, info.size)
        tap.skip()
    gate.close()
    return found


# Resuming


def extract_tar(
    open_at: Callable[[int], Iterator[bytes]],
    into: Path,
    *,
    label: str,
    globs: Sequence[str] = (),
    algorithms: Sequence[str] = (),
) -> TarResult:
    """Extract a plain tar while it arrives; `open_at` answers its bytes from an offset on.

    Killed at any moment and called again with the same folder, it goes on where it was: at most a header, padding and
    the last few kilobytes are asked for twice, and what the module's docstring says of unwanted members. Afterwards
    the folder keeps its journal, and a further call asks for nothing.

    Digests are over all bytes, those behind the end as well. If upstream changed in between they come out wrong, and
    without a digest nobody notices: `open_at` has to refuse that, or the caller compares and calls again with a fresh
    folder. What `open_at` raises passes. Raises ValueError as `archives.extract` does.
    """

    def arrive() -> TarResult:
        return _Arrival(open_at, into, Gate(label, globs=globs), algorithms).run()

    try:
        return arrive()
    except _Stale:
        Journal(into).remove()
        return arrive()


class _Stale(Exception):
    """What lies in the folder is not what its journal says, or was extracted with other globs."""


class Journal:
    """The files beside the members; each line of `.members` is written when all glue before it is."""

    def __init__(self, into: Path) -> None:
        self.glue_path, self.lines_path, self.part_path = (into / name for name in (".glue", ".members", ".part"))
        self.segments: list[Segment] = []
        self.finish: dict | None = None
        self._num_bytes = 0  # of the lines that hold segments
        if self.lines_path.exists():
            self._read()

    def _read(self) -> None:
        with self.lines_path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # torn by a kill
                    return
                value = json.loads(line)
                if "digests" in value:
                    self.finish = value
                    return
                self.segments.append(Segment(**value))
                self._num_bytes += len(line)

    @contextmanager
    def open(self, glue_bytes: int) -> Iterator[None]:
        """Go on behind the last segment and so many bytes of glue; what was written behind them is dropped."""
        with self.glue_path.open("ab") as self._glue, self.lines_path.open("ab") as self._lines:
            self._glue.truncate(glue_bytes)
            self._lines.truncate(self._num_bytes)
            yield

    def write_glue(self, piece: bytes) -> None:
        self._glue.write(piece)

    def write(self, value: Segment | dict) -> None:
        self._glue.flush()
        self._lines.write(json.dumps(value._asdict() if isinstance(value, Segment) else value).encode() + b"\n")
        self._lines.flush()

    def remove(self) -> None:
        for path in (self.lines_path, self.glue_path, self.part_path):
            remove(path)


class _Arrival:
    """One tar on its way into a folder."""

    def __init__(
        self, open_at: Callable[[int], Iterator[bytes]], into: Path, gate: Gate, algorithms: Sequence[str]
    ) -> None:
        into.mkdir(parents=True, exist_ok=True)
        self.open_at, self.into, self.gate = open_at, into, gate
        self.journal = Journal(into)
        self.hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        self.members: dict[str, TarMember] = {}
        self.part_bytes, self.part_crc32 = 0, 0  # of the last segment's content, if it is not in place yet

    def run(self) -> TarResult:
        finish = self.journal.finish
        if finish and self.hashes.keys() <= finish["digests"].keys():
            self.hashes = {}  # known already: replaying only shows that all files are there
            self._replay()
            return TarResult(dict(sorted(self.members.items())), finish["digests"], finish["num_bytes"])
        position, glue_bytes = self._replay()
        with self._open_at(position) as tap, self.journal.open(glue_bytes):
            return self._go_on(tap)

    @contextmanager
    def _open_at(self, position: int) -> Iterator[Tap]:
        stream = self.open_at(position)
        try:
            yield Tap(iter(stream), self.gate.label, start=position)
        finally:
            if hasattr(stream, "close"):
                stream.close()

    def _hash(self, piece: bytes) -> None:
        for running in self.hashes.values():
            running.update(piece)

    # What is here already

    def _replay(self) -> tuple[int, int]:
        """Hash what earlier runs kept; answer the offset behind it and the bytes of glue. Raises _Stale."""
        position = glue_bytes = 0
        segments = self.journal.segments
        if not segments:
            return 0, 0
        with self.journal.glue_path.open("rb") as glue:
            for segment in segments:
                piece = glue.read(segment.start - position)
                if len(piece) != segment.start - position:
                    raise _Stale
                self._hash(piece)
                glue_bytes += len(piece)
                position = self._repeat(segment, is_last=segment is segments[-1])
        return position, glue_bytes

    def _repeat(self, segment: Segment, *, is_last: bool) -> int:
        if segment.name is None:
            if self.hashes and segment.num_bytes:
                self._refetch(segment)
            return segment.start + segment.num_bytes
        if self.gate.admit(segment.name, segment.num_bytes, is_plain=True) != segment.name:
            raise _Stale
        path = self.into / segment.name
        is_part = is_last and not path.exists()
        num_bytes, crc32 = self._repeat_file(self.journal.part_path if is_part else path)
        if num_bytes > segment.num_bytes or (num_bytes < segment.num_bytes and not is_part):
            raise _Stale
        if is_part:
            self.part_bytes, self.part_crc32 = num_bytes, crc32
        else:
            self.members[segment.name] = TarMember(num_bytes, crc32, segment.start)
        return segment.start + num_bytes

    def _repeat_file(self, path: Path) -> Extracted:
        num_bytes = crc32 = 0
        if path.exists():
            with path.open("rb") as file:
                while piece := file.read(BLOCK_BYTES):
                    self._hash(piece)
                    num_bytes, crc32 = num_bytes + len(piece), zlib.crc32(piece, crc32)
        return Extracted(num_bytes, crc32)

    def _refetch(self, segment: Segment) -> None:
        with self._open_at(segment.start) as tap:
            for piece in tap.take(segment.num_bytes):
                self._hash(piece)

    # What arrives

    def _go_on(self, tap: Tap) -> TarResult:
        tap.saw = self._keep
        pax: dict[str, str] = {}
        if self.journal.segments:
            last = self.journal.segments[-1]
            if last.name is not None and last.name not in self.members:
                self._receive(last, tap)
            tap.skip(last.next_header - tap.position)
            pax = last.pax
        for info, content_bytes, in_force in _walk(tap, pax):
            name = _admit(self.gate, info, content_bytes)
            if name is None:
                self._pass(tap, content_bytes, in_force)
            else:
                self._begin(Segment(name, tap.position, info.size, in_force), tap)
        tap.saw = self._hash
        tap.skip()
        self.gate.close()
        digests = {name: running.hexdigest() for name, running in self.hashes.items()}
        self.journal.write({"digests": digests, "num_bytes": tap.position})
        return TarResult(dict(sorted(self.members.items())), digests, tap.position)

    def _keep(self, piece: bytes) -> None:
        self._hash(piece)
        self.journal.write_glue(piece)

    def _begin(self, segment: Segment, tap: Tap) -> None:
        # A file of that name from an older run must not be taken for this member.
        remove(self.into / segment.name)
        remove(self.journal.part_path)
        self.journal.write(segment)
        self.part_bytes, self.part_crc32 = 0, 0
        self._receive(segment, tap)

    def _receive(self, segment: Segment, tap: Tap) -> None:
        crc32 = self.part_crc32
        with self.journal.part_path.open("ab") as part:
            for piece in tap.take(segment.num_bytes - self.part_bytes):
                part.write(piece)
                self._hash(piece)
                crc32 = zlib.crc32(piece, crc32)
        path = self.into / segment.name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.journal.part_path.replace(path)
        self.members[segment.name] = TarMember(segment.num_bytes, crc32, segment.start)

    def _pass(self, tap: Tap, num_bytes: int, pax: dict[str, str]) -> None:
        """Go by a member that nobody wants."""
        if num_bytes > KEPT_BYTES:
            self.journal.write(Segment(None, tap.position, num_bytes, pax))
            for piece in tap.take(num_bytes):
                self._hash(piece)
        elif num_bytes:
            tap.skip(num_bytes)
            self.journal.write(Segment(None, tap.position, 0, pax))
