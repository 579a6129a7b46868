"""Zip, tar, tar.gz and 7z as untrusted input: what is extracted stays below its folder, is whole, and is no bomb.

Zips are read through files of which only some byte ranges may have arrived: `list_zip` says which ranges a member
needs, `join_ranges` makes few requests of them, `extract` reads no others.
"""

import stat
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from metricgold.datasets import is_archive
from metricgold.download.gate import Extracted, Gate, Writer, refusing, write
from metricgold.download.tars import TarMember, TarResult, extract_tar, extract_whole_tar

__all__ = [
    "Extracted",
    "TarMember",
    "TarResult",
    "ZipMember",
    "extract",
    "extract_tar",
    "is_archive",
    "join_ranges",
    "list_zip",
]

BLOCK_BYTES = 1 << 20
ZIP_MAGIC, SEVEN_ZIP_MAGIC, GZIP_MAGIC, TAR_MAGIC = b"PK", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b", b"ustar"
LOCAL_HEADER = struct.Struct("<26x2H")  # bytes of the name, bytes of the extra field
MAX_EXTRA_BYTES = (1 << 16) - 1 + 24  # the longest extra field of a local header, a data descriptor behind the data
ENCRYPTED = 0x1 | 0x40

Range = tuple[int, int]  # [start, end)


class ZipMember(NamedTuple):
    num_bytes: int
    crc32: int
    start: int  # [start, end) in the archive is all that extraction reads of it
    end: int


def extract(
    archive: Path,
    into: Path,
    *,
    label: str,
    globs: Sequence[str] = (),
    names: Collection[str] | None = None,
    broken: list[str] | None = None,
) -> dict[str, Extracted]:
    """Extract members that match a glob (all if there is none); answer name -> bytes and CRC-32, sorted.

    With `names` only those, and of a zip no other member's bytes are read. With `broken` a zip's members whose bytes
    are wrong are noted there instead of raised, and the others extracted. Folders are made as needed, files that lie
    there are replaced; AppleDouble side-cars are left out. Raises ValueError naming `label` and the member for a path
    that leaves the folder, a link, a device, an encrypted member, a name given twice or in two spellings, members
    that overlap, declared sizes that do not fit the archive, broken bytes, and when nothing matches.
    """
    gate = Gate(label, globs=globs, names=names, archive_bytes=archive.stat().st_size)
    with refusing(label):
        kind = _kind(archive)
        if kind == "zip":
            found = _extract_zip(archive, into, gate, broken)
        elif kind == "7z":
            found = _extract_7z(archive, into, gate)
        else:
            found = extract_whole_tar(archive, into, gate, is_gzip=kind == "gzip")
    return dict(sorted(found.items()))


def _kind(archive: Path) -> str:
    # By the first bytes where there are any: a tar may well end in a member that is a zip. In a zip of which only
    # parts have arrived they may be missing, but then its end is there.
    with archive.open("rb") as file:
        head = file.read(512)
    for magic, kind in ((SEVEN_ZIP_MAGIC, "7z"), (GZIP_MAGIC, "gzip"), (ZIP_MAGIC, "zip")):
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == TAR_MAGIC or not zipfile.is_zipfile(archive) else "zip"


# Zip


def list_zip(file: BinaryIO, *, label: str, globs: Sequence[str] = ()) -> dict[str, ZipMember]:
    """What `extract` would take from a zip, and which bytes it needs for each; reads the directory only.

    `file` has to be seekable. Raises ValueError as `extract` does; what `file` raises as OSError passes.
    """
    gate = Gate(label, globs=globs, archive_bytes=file.seek(0, 2))
    with refusing(label, is_local=False), _open_zip(file) as zipped:
        return {name: member for name, (_, member) in sorted(_zip_entries(zipped, gate).items())}


def _open_zip(file: BinaryIO | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        if isinstance(fault := error.__context__, OSError):  # zipfile takes a dead network for a bad zip
            raise fault from None
        raise


def _zip_entries(file: zipfile.ZipFile, gate: Gate) -> dict[str, tuple[zipfile.ZipInfo, ZipMember]]:
    entries = {}
    for info, end in _zip_ends(file, gate):
        # The name as it is written, up to the end: zipfile's own stops at the first NUL.
        if info.orig_filename.endswith("/"):
            continue
        name = gate.admit(
            info.orig_filename,
            info.file_size,
            is_plain=stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG),
            packed_bytes=info.compress_size,
            is_encrypted=bool(info.flag_bits & ENCRYPTED),
        )
        if name is not None:
            entries[name] = info, ZipMember(info.file_size, info.CRC, info.header_offset, end)
    gate.close()
    return entries


def _zip_ends(file: zipfile.ZipFile, gate: Gate) -> Iterator[tuple[zipfile.ZipInfo, int]]:
    """Every entry in the order of its bytes, and where they end at the latest."""
    infos = sorted(file.infolist(), key=lambda info: info.header_offset)
    starts = [info.header_offset for info in infos]
    for info, start, following in zip(infos, starts, [*starts, file.start_dir][1:], strict=True):
        encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
        least = start + LOCAL_HEADER.size + len(info.orig_filename.encode(encoding)) + info.compress_size
        if start < 0 or least > following:
            raise gate.refusal(info.orig_filename, "overlaps what lies before or behind it, refused")
        yield info, min(following, least + MAX_EXTRA_BYTES)


def _extract_zip(archive: Path, into: Path, gate: Gate, broken: list[str] | None) -> dict[str, Extracted]:
    found = {}
    with archive.open("rb") as raw, _open_zip(raw) as file:
        for name, (info, member) in _zip_entries(file, gate).items():
            try:
                with refusing(gate.label):
                    _check_header(raw, info, member)
                    with file.open(info) as stream:
                        found[name] = write(_blocks(stream), into, name, info.file_size)
            except ValueError:
                if broken is None:
                    raise
                broken.append(name)
    return found


def _check_header(file: IO[bytes], info: zipfile.ZipInfo, member: ZipMember) -> None:
    # Its lengths stand here once more, and zipfile goes by these.
    file.seek(member.start)
    name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if member.start + LOCAL_HEADER.size + name_bytes + extra_bytes + info.compress_size > member.end:
        raise zipfile.BadZipFile(f"member {info.orig_filename} overlaps what lies behind it")


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(partial(stream.read, BLOCK_BYTES), b"")


# 7z


def _extract_7z(archive: Path, into: Path, gate: Gate) -> dict[str, Extracted]:
    import py7zr
    from py7zr.exceptions import ArchiveError, PasswordRequired

    try:
        with archive.open("rb") as raw, py7zr.SevenZipFile(raw) as file:  # of an open file it makes no threads
            wanted = _list_7z(file, gate)
            found: dict[str, Extracted] = {}
            root = into.absolute()
            file.extract(root, targets=list(wanted), factory=_shelf(root, dict(wanted.values()), found))
    except (ArchiveError, PasswordRequired) as error:
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error
    finally:
        (into / ".part").unlink(missing_ok=True)
    if missing := dict(wanted.values()).keys() - found.keys():
        raise gate.refusal(min(missing), "was not found where the directory says")
    return found


def _list_7z(file: Any, gate: Gate) -> dict[str, tuple[str, int]]:
    """Name in the archive -> path below the folder, bytes."""
    wanted = {}
    is_encrypted = file.needs_password()
    for info in file.list():
        if not info.is_directory:
            name = gate.admit(info.filename, info.uncompressed, is_plain=info.is_file, is_encrypted=is_encrypted)
            if name is not None:
                wanted[info.filename] = name, info.uncompressed
    gate.close()
    return wanted


def _shelf(root: Path, sizes: dict[str, int], found: dict[str, Extracted]) -> Any:
    """What py7zr asks for a file to write each member to; members that are whole appear in `found`."""
    from py7zr.io import Py7zIO, WriterFactory

    class Member(Py7zIO):
        def __init__(self, name: str) -> None:
            self.writer = Writer(root, name, sizes[name])

        def write(self, chunk: bytes | bytearray) -> int:
            return self.writer.write(chunk)

        def close(self) -> None:  # after the CRC-32 was compared
            found[self.writer.name] = self.writer.place()

        def size(self) -> int:
            return self.writer.written

        def read(self, size: int | None = None) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def flush(self) -> None:
            pass

    class Shelf(WriterFactory):
        def create(self, filename: str) -> Member:
            return Member(Path(filename).relative_to(root).as_posix())

    return Shelf()


# Ranges


def join_ranges(ranges: Iterable[Range], *, spare: float = 0.01) -> list[Range]:
    """Few ranges that cover all of `ranges`, sorted and apart from each other.

    Gaps are bridged, the smallest first, while all bridged bytes together stay within `spare` of the wanted ones.
    """
    apart: list[Range] = []
    for start, end in sorted(ranges):
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        elif start < end:
            apart.append((start, end))
    left = spare * sum(end - start for start, end in apart)
    bridged = set()
    for gap, after in sorted((apart[i + 1][0] - apart[i][1], i) for i in range(len(apart) - 1)):
        left -= gap
        if left < 0:
            break
        bridged.add(after)
    joined: list[Range] = []
    for i, (start, end) in enumerate(apart):
        if i - 1 in bridged:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined
