"""Members of a tar, plain or in gzip. tarfile parses the headers and sees nothing else.

Left to itself tarfile trusts an archive: it seeks backwards for a negative size, reads names of any length with
regular expressions that take quadratic time, and takes a broken header in the middle for the end of the archive.
"""

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from metricgold.download.gate import BadArchive, Extracted, Gate, write
from metricgold.storage import BLOCK_BYTES

RECORD_BYTES = 512
MAX_HEADER_BYTES = 1 << 16  # of one member with all its extensions


def extract_tar(archive: Path, into: Path, gate: Gate, *, is_gzip: bool = False) -> dict[str, Extracted]:
    """Extract what the gate admits; name -> bytes and CRC-32. Raises as `archives.extract`, which calls it."""
    found = {}
    with archive.open("rb") as raw:
        tar = ForwardTar(cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_gzip else raw, gate)
        for info, content_bytes in read_headers(tar):
            if info.isdir() or (name := gate.admit(info.name, info.size, is_plain=info.isreg())) is None:
                continue
            if info.issparse() or content_bytes != -(-info.size // RECORD_BYTES) * RECORD_BYTES:
                sizes = f"declares {info.size:,} bytes and has {content_bytes:,}"
                raise gate.refusal(name, f"{sizes}: sparse or forged, refused")
            found[name] = write(tar.blocks(info.size), into, name, info.size)
        for _ in tar.blocks():  # gzip compares its CRC-32 when it has read the last one
            pass
    gate.close()
    return found


class ForwardTar:
    """A tar's bytes in order: the file that tarfile reads headers from, and the contents of members for us."""

    def __init__(self, file: IO[bytes], gate: Gate) -> None:
        self.label, self._limit_bytes, self._file = gate.label, gate.limit_bytes, file
        self.position = 0
        self.header_bytes = 0  # that tarfile has read of the present member; `read_headers` resets it
        self.last_record = b""

    def blocks(self, num_bytes: int | None = None) -> Iterator[bytes]:
        """The next bytes, all that are left without a number. BadArchive when it ends earlier or is a bomb."""
        while num_bytes is None or num_bytes > 0:
            block = self._file.read(BLOCK_BYTES if num_bytes is None else min(num_bytes, BLOCK_BYTES))
            if not block:
                if num_bytes is None:
                    return
                raise BadArchive(f"{self.label}: broken archive: it ends {num_bytes:,} bytes early")
            self.position += len(block)
            if self._limit_bytes is not None and self.position > self._limit_bytes:
                raise BadArchive(f"{self.label}: more than {self._limit_bytes:,} bytes in it, bomb refused")
            num_bytes = None if num_bytes is None else num_bytes - len(block)
            yield block

    # What tarfile calls

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError(f"members overlap at byte {position:,}")
        for _ in self.blocks(position - self.position):
            pass

    def read(self, num_bytes: int) -> bytes:
        self.header_bytes += num_bytes
        if num_bytes < 0 or self.header_bytes > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header at byte {self.position:,} of {num_bytes:,} bytes")
        self.last_record = b"".join(self.blocks(num_bytes))
        return self.last_record


def read_headers(tar: ForwardTar) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every member with the bytes from here to the next header, up to the end mark. Not all of them need be read."""
    file: Any = tarfile.TarFile(fileobj=cast(IO[bytes], tar), encoding="utf-8")
    while (info := file.next()) is not None:
        content_bytes = file.offset - tar.position
        if content_bytes < 0:
            raise BadArchive(f"{tar.label}: member {info.name!r} declares {info.size:,} bytes, refused")
        yield info, content_bytes
        file.members.clear()  # else a list of all members grows with the archive
        tar.header_bytes = 0
    # tarfile also stops at a broken header: only a record of zeros is the end.
    if tar.last_record != bytes(RECORD_BYTES):
        raise BadArchive(f"{tar.label}: broken archive: no header at byte {tar.position - len(tar.last_record):,}")
