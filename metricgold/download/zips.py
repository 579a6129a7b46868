"""Members of a zip of which only some byte ranges may have arrived.

`list_zip` says which ranges a member needs, `ranges.join_ranges` makes few requests of them, `extract_zip` reads no
others.
"""

import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from metricgold.download.gate import Extracted, Gate, refusing, write
from metricgold.storage import BLOCK_BYTES

LOCAL_HEADER = struct.Struct("<26x2H")  # bytes of the name, bytes of the extra field
MAX_EXTRA_BYTES = (1 << 16) - 1 + 24  # the longest extra field of a local header, a data descriptor behind the data
END_BYTES = 65_536 + 22  # of a zip, with the longest comment, that say where its directory is
ENCRYPTED = 0x1 | 0x40


class ZipMember(NamedTuple):
    """Size, checksum and place of a member in its zip."""

    num_bytes: int
    crc32: int
    start: int  # [start, end) in the archive is all that extraction reads of it
    end: int


def list_zip(file: BinaryIO, *, label: str, globs: Sequence[str] = ()) -> dict[str, ZipMember]:
    """What `extract` would take from a zip, and which bytes it needs for each; reads the directory only.

    `file` has to be seekable. Raises ValueError as `extract` does; OSErrors of `file` pass.
    """
    gate = Gate(label, globs=globs, archive_bytes=file.seek(0, 2))
    with refusing(label, is_local=False), _open_zip(file) as zipped:
        return {name: member for name, (_, member) in sorted(_wanted_entries(zipped, gate).items())}


def extract_zip(archive: Path, into: Path, gate: Gate, broken: list[str] | None) -> dict[str, Extracted]:
    """Extract what the gate admits; name -> bytes and CRC-32. `broken`, if given, takes the names of broken members."""
    found = {}
    with archive.open("rb") as raw, _open_zip(raw) as file:
        for name, (info, member) in _wanted_entries(file, gate).items():
            try:
                with refusing(gate.label):
                    # The lengths are repeated in the local header, and zipfile uses those.
                    raw.seek(member.start)
                    name_bytes, extra_bytes = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
                    if member.start + LOCAL_HEADER.size + name_bytes + extra_bytes + info.compress_size > member.end:
                        raise zipfile.BadZipFile(f"member {info.orig_filename} overlaps what follows it")
                    with file.open(info) as stream:
                        found[name] = write(iter(partial(stream.read, BLOCK_BYTES), b""), into, name, info.file_size)
            except ValueError:
                if broken is None:
                    raise
                broken.append(name)
    return found


def _open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    # zipfile takes an OSError at the end of the file, such as a dead network's, for a bad zip: so read it first.
    file.seek(-min(file.seek(0, 2), END_BYTES), 2)
    file.read()
    return zipfile.ZipFile(file)


def _wanted_entries(file: zipfile.ZipFile, gate: Gate) -> dict[str, tuple[zipfile.ZipInfo, ZipMember]]:
    """Name below the folder -> entry of the directory, and the bytes it needs."""
    entries = {}
    for info, end in entries_with_ends(file, gate):
        # The name as it is written, up to the end: zipfile's own stops at the first NUL. Windows separates by \\.
        written = info.orig_filename.replace("\\", "/")
        if written.endswith("/"):
            continue
        name = gate.admit(
            written,
            info.file_size,
            is_plain=stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG),
            packed_bytes=info.compress_size,
            is_encrypted=bool(info.flag_bits & ENCRYPTED),
        )
        if name is not None:
            entries[name] = info, ZipMember(info.file_size, info.CRC, info.header_offset, end)
    gate.close()
    return entries


def entries_with_ends(file: zipfile.ZipFile, gate: Gate) -> Iterator[tuple[zipfile.ZipInfo, int]]:
    """Every entry in the order of its bytes, and where they end at the latest."""
    infos = sorted(file.infolist(), key=lambda info: info.header_offset)
    starts = [info.header_offset for info in infos]
    for info, start, following in zip(infos, starts, [*starts, file.start_dir][1:], strict=True):
        encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
        least = start + LOCAL_HEADER.size + len(info.orig_filename.encode(encoding)) + info.compress_size
        if start < 0 or least > following:
            raise gate.refusal(info.orig_filename, "overlaps what comes before or after it, refused")
        yield info, min(following, least + MAX_EXTRA_BYTES)
