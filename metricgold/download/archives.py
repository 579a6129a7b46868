"""Zip, tar, tar.gz and 7z as untrusted input: what is extracted stays in its folder, complete, and is not a bomb."""

import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from metricgold.download.gate import Extracted, Gate, Writer, refusing
from metricgold.download.tars import extract_tar
from metricgold.download.zips import extract_zip

ZIP_MAGIC, SEVEN_ZIP_MAGIC, GZIP_MAGIC, TAR_MAGIC = b"PK", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b", b"ustar"


def extract(
    archive: Path,
    into: Path,
    *,
    label: str,
    globs: Sequence[str] = (),
    names: Collection[str] | None = None,
    broken: list[str] | None = None,
) -> dict[str, Extracted]:
    """Extract members that match a glob (all if there is none); returns name -> bytes and CRC-32, sorted.

    With `names` only those, and of a zip no other member's bytes are read. With `broken` a zip's members whose bytes
    are wrong are noted there instead of raised, and the others extracted. Folders are made as needed, files of the
    same name are replaced; what operating systems add is left out. Raises ValueError naming `label` and the member
    for a path that leaves the folder, a link, a device, an encrypted member, a name given twice or in two spellings,
    members that overlap, declared sizes that do not fit the archive, broken bytes, and when nothing matches.
    """
    gate = Gate(label, globs=globs, names=names, archive_bytes=archive.stat().st_size)
    with refusing(label):
        kind = _kind_of(archive)
        if kind == "zip":
            found = extract_zip(archive, into, gate, broken)
        elif kind == "7z":
            found = extract_7z(archive, into, gate)
        else:
            found = extract_tar(archive, into, gate, is_gzip=kind == "gzip")
    return dict(sorted(found.items()))


def require_unpackers(paths: Iterable[str]) -> None:
    """ModuleNotFoundError, before anything is fetched, where one of the archives needs a package that is missing."""
    if any(path.endswith(".7z") for path in paths):
        import py7zr  # noqa: F401


def _kind_of(archive: Path) -> str:
    """zip, 7z, gzip or tar.

    By the first bytes where there are any, for a tar may end in a member that is a zip. In a zip of which only parts
    have arrived the first bytes may be missing, but then its end is there.
    """
    with archive.open("rb") as file:
        head = file.read(512)
    for magic, kind in ((SEVEN_ZIP_MAGIC, "7z"), (GZIP_MAGIC, "gzip"), (ZIP_MAGIC, "zip")):
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == TAR_MAGIC or not zipfile.is_zipfile(archive) else "zip"


def extract_7z(archive: Path, into: Path, gate: Gate) -> dict[str, Extracted]:
    """Extract what the gate admits; py7zr compares the CRC-32 of each member."""
    import py7zr
    from py7zr.exceptions import ArchiveError, PasswordRequired

    wanted: dict[str, str] = {}  # name in the archive -> path below the folder
    sizes: dict[str, int] = {}
    found: dict[str, Extracted] = {}
    root = into.absolute()
    try:
        with archive.open("rb") as raw, py7zr.SevenZipFile(raw) as file:  # of an open file it makes no threads
            is_encrypted = file.needs_password()
            for info in file.list():
                if info.is_directory:
                    continue
                name = gate.admit(info.filename, info.uncompressed, is_plain=info.is_file, is_encrypted=is_encrypted)
                if name is not None:
                    wanted[info.filename], sizes[name] = name, info.uncompressed
            gate.close()
            file.extract(root, targets=list(wanted), factory=writers_for_7z(root, sizes, found))
    except (ArchiveError, PasswordRequired) as error:
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error
    finally:
        (into / ".part").unlink(missing_ok=True)
    if missing := sizes.keys() - found.keys():
        raise gate.refusal(min(missing), "was not found where the directory says")
    return found


def writers_for_7z(root: Path, sizes: dict[str, int], found: dict[str, Extracted]) -> Any:
    """A factory that gives py7zr a file to write each member to; complete members appear in `found`."""
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

    class Factory(WriterFactory):
        def create(self, filename: str) -> Member:
            return Member(Path(filename).relative_to(root).as_posix())

    return Factory()
