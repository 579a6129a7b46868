"""What may come out of an archive: names, kinds and sizes are judged before a byte is written."""

import lzma
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metricgold.datasets import is_clutter, matches_name

MAX_RATIO = 200  # extracted bytes per archive byte; images and depth stay below 10
SMALL_BYTES = 1 << 30  # any ratio is fine up to here
MAX_PART_BYTES = 255  # of one part of a path: what Linux file systems take
MAX_NAME_BYTES = 1024
RESERVED = (".part",)  # our own file in the folder that is extracted into

# What zipfile, tarfile and py7zr raise for broken bytes, checked for or not.
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)


class BadArchive(ValueError):
    """An archive that is refused; the message names it and says why."""


class Extracted(NamedTuple):
    """Size and checksum of a member as it was written."""

    num_bytes: int
    crc32: int


@contextmanager
def refusing(label: str, *, is_local: bool = True) -> Iterator[None]:
    """Turn what parsers raise for broken bytes into BadArchive. What the disk or the network raises passes.

    gzip and bz2 raise OSErrors of their own: those that have no errno. Where a network is read, so may its errors.
    """
    try:
        yield
    except BadArchive:
        raise
    except OSError as error:
        if error.errno is not None or not is_local:
            raise
        raise BadArchive(f"{label}: broken archive: {error}") from error
    except BROKEN as error:
        raise BadArchive(f"{label}: broken archive: {error or type(error).__name__}") from error


class Gate:
    """Judges the members of one archive, all of them, in any order.

    Wanted are those that match a glob (all if there is none) and, if `names` is given, are among them. The others are
    left where they are, whatever their names.
    """

    def __init__(
        self,
        label: str,
        *,
        globs: Sequence[str] = (),
        names: Collection[str] | None = None,
        archive_bytes: int | None = None,
    ) -> None:
        self.label = label
        self.globs = globs
        # A manifest may spell out a thousand members: those are looked up, not compared one by one.
        self._spelt_out = {glob for glob in globs if not any(wild in glob for wild in "*?[")}
        self._patterns = [glob for glob in globs if glob not in self._spelt_out]
        self.names = None if names is None else frozenset(names)
        self.limit_bytes = None if archive_bytes is None else max(SMALL_BYTES, MAX_RATIO * archive_bytes)
        self.total_bytes = 0
        self._files: dict[str, str] = {}  # folded name -> name
        self._folders: set[str] = set()

    def admit(
        self, name: str, num_bytes: int, *, is_plain: bool, packed_bytes: int | None = None, is_encrypted: bool = False
    ) -> str | None:
        """The path below the folder for a member; None when it is not wanted. Raises BadArchive to refuse it."""
        if not self.is_wanted(PurePosixPath(name).as_posix()):
            return None
        path = self.safe_path(name)
        if not is_plain:
            raise self.refusal(name, "is a link or device, refused")
        if is_encrypted:
            raise self.refusal(name, "is encrypted, refused")
        self.claim(path)
        if num_bytes < 0:
            raise self.refusal(path, f"declares {num_bytes:,} bytes, refused")
        self.total_bytes += num_bytes
        if self.limit_bytes is not None and self.total_bytes > self.limit_bytes:
            raise self.refusal(path, f"is a bomb: {self.total_bytes:,} bytes declared so far, refused")
        if packed_bytes is not None and num_bytes > max(SMALL_BYTES, MAX_RATIO * packed_bytes):
            raise self.refusal(path, f"is a bomb: {num_bytes:,} bytes declared in {packed_bytes:,}, refused")
        return path

    def close(self) -> None:
        """Every member was seen: raises BadArchive when nothing, or not everything that was named, is among them."""
        if self.names is not None:
            missing = self.names.difference(self._files.values())
            if missing:
                raise self.refusal(min(missing), "is not in it")
        elif not self._files:
            raise BadArchive(f"{self.label}: no member matches {list(self.globs) or 'anything'}")

    def refusal(self, name: str, why: str) -> BadArchive:
        shown = name[:300] if name and _bad_character(name) is None else repr(name[:300])
        return BadArchive(f"{self.label}: member {shown} {why}")

    def safe_path(self, name: str) -> str:
        """The path of a member whose name every file system can take and that stays below the folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or any(bad in name for bad in "\\:"):
            raise BadArchive(f"{self.label}: member {name[:300]!r} would leave the folder, refused")
        if bad := _bad_character(name):
            raise self.refusal(name, f"has the character {bad!r} in its name, refused")
        if len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in path.parts):
            limits = f"longer than {MAX_NAME_BYTES} or a part over {MAX_PART_BYTES} bytes"
            raise self.refusal(name, f"has a name {limits}, refused")
        if path.parts[0] in RESERVED:
            raise self.refusal(name, "has a name that extraction itself uses, refused")
        return path.as_posix()

    def is_wanted(self, path: str) -> bool:
        """Whether globs and names ask for a member; what operating systems add to archives is never wanted."""
        if is_clutter(path) or (self.names is not None and path not in self.names):
            return False
        return not self.globs or path in self._spelt_out or any(matches_name(path, glob) for glob in self._patterns)

    def claim(self, path: str) -> None:
        """Take a path for one member. Refused if another has it on a file system that ignores case and Unicode form."""
        key = folded(path)
        if other := self._files.get(key):
            if other == path:
                raise self.refusal(path, "is in it twice")
            raise self.refusal(path, f"differs from {other} in case or Unicode form only, refused")
        if key in self._folders:
            raise self.refusal(path, "is a file where another member needs a folder, refused")
        self._files[key] = path
        while "/" in key:
            key = key.rpartition("/")[0]
            if key in self._folders:
                break
            if key in self._files:
                raise self.refusal(path, f"needs a folder where {self._files[key]} is a file, refused")
            self._folders.add(key)


def _bad_character(name: str) -> str | None:
    """The first control character or half of a surrogate pair (a byte that is not UTF-8)."""
    if name.isprintable():
        return None
    return next((char for char in name if unicodedata.category(char) in ("Cc", "Cs")), None)


def folded(name: str) -> str:
    """A name as macOS and Windows compare it: without case, in one Unicode form."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


class Writer:
    """A member on its way to `into / name`: counted, summed, never longer than declared, in place once complete."""

    def __init__(self, into: Path, name: str, num_bytes: int) -> None:
        self.into, self.name, self.num_bytes = into, name, num_bytes
        self.written, self.crc32 = 0, 0
        into.mkdir(parents=True, exist_ok=True)
        self._file = (into / ".part").open("wb")

    def write(self, chunk: bytes | bytearray) -> int:
        if self.written + len(chunk) > self.num_bytes:
            raise zipfile.BadZipFile(f"member {self.name}: more than the {self.num_bytes:,} bytes declared")
        self.written += self._file.write(chunk)
        self.crc32 = zlib.crc32(chunk, self.crc32)
        return len(chunk)

    def place(self) -> Extracted:
        self._file.close()
        if self.written != self.num_bytes:
            raise zipfile.BadZipFile(f"member {self.name}: {self.num_bytes:,} bytes declared, {self.written:,} found")
        path = self.into / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.into / ".part").replace(path)
        return Extracted(self.written, self.crc32)

    def drop(self) -> None:
        """Nothing is left of a member that was not placed."""
        self._file.close()
        (self.into / ".part").unlink(missing_ok=True)


def write(chunks: Iterable[bytes], into: Path, name: str, num_bytes: int) -> Extracted:
    """Write a member of `num_bytes` to `into / name`, completely or not at all."""
    writer = Writer(into, name, num_bytes)
    try:
        for chunk in chunks:
            writer.write(chunk)
        return writer.place()
    finally:
        writer.drop()
