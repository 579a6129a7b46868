"""Zip and tar as untrusted input: what is extracted stays below its folder, is whole, and is no bomb."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_RATIO = 200  # extracted bytes per archive byte; images and depth stay below 10
SMALL_BYTES = 1 << 30  # any ratio is fine up to here
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError)


class Member(NamedTuple):
    name: str
    num_bytes: int
    stream: IO[bytes]


def is_archive(path: str) -> bool:
    """Whether the name says zip or tar."""
    return path.endswith(SUFFIXES)


def extract(archive: Path, into: Path, *, label: str, globs: Sequence[str] = ()) -> dict[str, int]:
    """Extract members that match a glob (all if there is none); answer name -> bytes, sorted.

    Folders are made as needed; AppleDouble side-cars are left out. Raises ValueError naming `label` and the
    member for a path that leaves the folder, a link, a device, a name given twice, declared sizes that do not
    fit the archive, broken bytes, and when nothing matches.
    """
    sizes: dict[str, int] = {}
    total = 0
    limit = max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size)
    try:
        for member in _members(archive, label, globs):
            if member.name in sizes:
                raise ValueError(f"{label}: member {member.name} lies in it twice")
            sizes[member.name] = member.num_bytes
            total += member.num_bytes
            if total > limit:
                raise ValueError(f"{label}: member {member.name}: {total:,} bytes declared so far, bomb refused")
            _write(member, into / member.name, label)
    except BROKEN as error:
        raise ValueError(f"{label}: broken archive: {error}") from error
    if not sizes:
        raise ValueError(f"{label}: no member matches {list(globs) or 'anything'}")
    return dict(sorted(sizes.items()))


def _members(archive: Path, label: str, globs: Sequence[str]) -> Iterator[Member]:
    listing = _zip_members(archive, label) if zipfile.is_zipfile(archive) else _tar_members(archive, label)
    for name, is_plain, num_bytes, open_member in listing:
        path = _safe_name(name, label)
        if _is_side_car(path) or (globs and not any(fnmatchcase(path, glob) for glob in globs)):
            continue
        if not is_plain:
            raise ValueError(f"{label}: member {name} is a link or device, refused")
        with open_member() as stream:
            yield Member(path, num_bytes, stream)


def _zip_members(archive: Path, label: str):
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir():
                kind = stat.S_IFMT(info.external_attr >> 16)
                yield info.filename, kind in (0, stat.S_IFREG), info.file_size, lambda info=info: file.open(info)


def _tar_members(archive: Path, label: str):
    with tarfile.open(archive) as file:
        for info in file:
            if not info.isdir():
                yield info.name, info.isreg(), info.size, lambda info=info: file.extractfile(info)
            file.members = []  # else a list of all members grows with the archive


def _safe_name(name: str, label: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or any(bad in name for bad in "\\:\0"):
        raise ValueError(f"{label}: member {name!r} would leave the folder, refused")
    return path.as_posix()


def _is_side_car(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] == "__MACOSX" or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def _write(member: Member, path: Path, label: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        shutil.copyfileobj(member.stream, out, 1 << 20)
        written = out.tell()
    if written != member.num_bytes:
        raise ValueError(f"{label}: member {member.name}: {member.num_bytes:,} bytes declared, {written:,} found")
