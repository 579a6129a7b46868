"""Bytes on disk: written aside and renamed, hashed, one writer per folder."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOSPC, ENOTSUP
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
LEFT_S = 86_400.0  # a temporary file of another machine is treated as abandoned after this age
_ASIDE = re.compile(r"\..+\.(?P<pid>\d+)-(?P<tag>[0-9a-f]{8})\.part", re.DOTALL)


@contextmanager
def write_aside(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place on success, delete it on failure.

    Works for a file or a folder; readers of `path` see the old one or the complete new one. Its bytes are on the disk
    before it is renamed, and its name when this returns, unless `durable` is False: then a power cut may shorten it, a
    kill never does.
    """
    path = Path(path)
    make_folder(path.parent, durable=durable)
    # The longest names leave no room beside them: 255 bytes is all that file systems take.
    name = path.name if len(os.fsencode(path.name)) < 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    aside = path.with_name(f".{name}.{os.getpid()}-{_machine_tag()}.part")
    remove(aside)
    try:
        yield aside
        if durable:
            sync_tree(aside)
        if aside.is_dir():
            # A full folder cannot be renamed over: move the old one away first, then delete it.
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            remove(old)
            if path.exists():
                path.rename(old)
            aside.rename(path)
            remove(old)
        else:
            aside.replace(path)
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.errno == ENOSPC:
            error.filename = str(path)  # the system does not name the file when a disk is full
        raise
    finally:
        remove(aside)


def make_folder(folder: Path, *, durable: bool = True) -> None:
    """Make a folder and those above it, if they are missing; their names are on the disk when this returns."""
    missing = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        if durable:
            sync(made.parent)
    folder.mkdir(exist_ok=True)


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk.

    What vouches for a file is written after this: after a power cut a name may otherwise stand for no bytes.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks refuse it for folders: their names are on the server already.
        if error.errno not in (EINVAL, ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_disk(folder: Path) -> None:
    """Wait until all that was written to the disk of a folder is on it: for thousands of small files one call.

    Each file's own sync takes as long as making a small image.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):  # elsewhere than on Linux
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` a file, or a folder and all below it."""
    for folder, _, names in os.walk(path, topdown=False):
        for file in (Path(folder, name) for name in names):
            if file.is_file() and not file.is_symlink():
                sync(file)
        sync(Path(folder))
    if not path.is_dir():
        sync(path)


def remove_left_aside(folder: Path) -> None:
    """Delete the temporary files that killed writers left in a folder and below it; hidden folders are passed over.

    That is those of a process of this machine that has ended, and any that are LEFT_S old: on a shared disk another
    machine may be at work.
    """
    import psutil

    folders = [Path(folder)]
    while folders:  # os.walk calls itself for each level
        with suppress(OSError), os.scandir(folders.pop()) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False) and not item.name.startswith("."):
                    folders.append(Path(item.path))
                elif writer := _ASIDE.fullmatch(item.name):
                    is_dead = writer["tag"] == _machine_tag() and not psutil.pid_exists(int(writer["pid"]))
                    with suppress(OSError):  # deleted meanwhile, or not ours to delete
                        if is_dead or time.time() - item.stat().st_mtime > LEFT_S:
                            Path(item.path).unlink()


@cache
def machine() -> str:
    """This boot of this machine and its namespace of process numbers, of which each container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - names no path
    except OSError:
        return uuid.uuid4().hex  # without /proc no two can be compared


def _machine_tag() -> str:
    return f"{zlib.crc32(machine().encode()):08x}"


def remove(path: Path) -> None:
    """Delete a file or a folder; quiet when there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON completely or not at all, keys sorted, so that equal values give equal bytes."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; ValueError names the file when it is not."""
    return parse_json(Path(path).read_bytes(), path)


def parse_json(data: bytes | str, name: object) -> Any:
    """The value of JSON from elsewhere; ValueError with its name where it is none, or nested a thousand levels deep."""
    try:
        return json.loads(data)
    except ValueError as error:  # also of bytes that are not UTF-8, and of numbers with thousands of digits
        raise ValueError(f"{name} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is not JSON: nested too deep") from error


def paths_below(folder: Path, names: Iterable[str]) -> list[Path]:
    """`folder / name` for names that were read from a file, which anybody may have written.

    ValueError, before the first is used, unless all are below the folder, links of the folders on the way resolved.
    """
    folder = Path(folder)
    root, inside, paths = folder.resolve(), {folder}, []
    for name in names:
        parts = name.split("/") if isinstance(name, str) and "\0" not in name else [".."]
        path = folder.joinpath(*parts)
        is_plain = {"", ".", ".."}.isdisjoint(parts)
        if not is_plain or (path.parent not in inside and not path.parent.resolve().is_relative_to(root)):
            raise ValueError(f"{folder}: the name {name!r:.200} would leave the folder, refused")
        inside.add(path.parent)
        paths.append(path)
    return paths


def digest_file(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Crc32:
    """CRC-32 with the methods of a hashlib object."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, chunk: bytes) -> None:
        """Add these bytes."""
        self.value = zlib.crc32(chunk, self.value)

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""
        return f"{self.value:08x}"


def new_hash(algorithm: str) -> Any:
    """A running hash of a hashlib name, or of `crc32`."""
    return Crc32() if algorithm == "crc32" else hashlib.new(algorithm, usedforsecurity=False)


def digest_crc32(path: Path) -> int:
    """CRC-32 of a file: the checksum in zip archives, and fast enough to check terabytes again."""
    crc32 = 0
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def digest_folder(path: Path) -> str:
    """sha256 over the names and bytes of all files below a folder."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    return digest_json({file.relative_to(path).as_posix(): digest_file(file) for file in files})


@contextmanager
def only_writer(folder: Path, lock_path: Path | None = None) -> Iterator[None]:
    """Hold the lock of an output folder, so that no second process writes into it.

    The lock file is stored beside the folder if no other path is given; the kernel frees it even after kill -9.
    Raises BlockingIOError naming the folder when another process holds it.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    lock_path = lock_path or folder.with_name(f".{folder.name}.lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{folder} is being written by another process") from error
    try:
        yield
    finally:
        lock.release()


def cut_rows(path: Path, step: int) -> None:
    """Drop rows of a JSON-lines file beyond a step: they will be written again."""
    if not path.is_file():
        return
    rows = read_rows(path)
    with write_aside(path) as aside:
        aside.write_text("".join(row_line(row) for row in rows if row["step"] <= step))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file, none without the file; a last line cut short by a kill is left out.

    Raises ValueError naming the file and the line that is not JSON.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        rows.append(parse_json(line, f"{path}, line {number}"))
    return rows


def row_line(row: dict[str, Any]) -> str:
    """A row as one line of a JSON-lines file, keys sorted."""
    return json.dumps(row, sort_keys=True) + "\n"
