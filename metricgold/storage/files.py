"""Bytes on disk: written aside and renamed, hashed, one writer per folder."""

import ctypes
import getpass
import glob
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zlib
from collections import deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOSPC, ENOTSUP
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20  # the index of a cache of a million frames has 2 MB; memory takes twenty times as much
SYNCS_AT_ONCE = 16
LEFT_S = 86_400.0  # a temporary file of another machine is treated as abandoned after this age
_ASIDE = re.compile(r"\..+\.(?P<writer>\d+-[0-9a-f]{8})\.(part|old)", re.DOTALL)
_AT_WORKING_FOLDER, _EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def write_aside(path: Path, *, durable: bool = True, marks: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place on success, delete it on failure.

    Works for a file or a folder; readers of `path` see the old one or the complete new one. Its bytes are on the disk
    before it is renamed, and its name when this returns, unless `durable` is False: then a power cut may shorten it, a
    kill never does.

    marks  globs of files by which a folder shows that this project made it. A folder that holds anything else and none
           of them is never replaced: FileExistsError. What killed writers of the folder left is cleared first
    """
    path, marks = Path(path), tuple(marks)
    make_folder(path.parent, durable=durable)
    if marks:
        clear_left(path)
        require_ours(path, marks)
    aside = path.with_name(f".{_short(path.name)}.{this_writer()}.part")
    remove(aside)
    try:
        yield aside
        if durable:
            sync_tree(aside)
        if aside.is_dir():
            require_ours(path, marks)
            _put_folder(aside, path)
        else:
            aside.replace(path)
        if durable:
            sync(path.parent)
    except Exception as error:
        # The system does not name the file, and what safetensors and shutil raise is no OSError of this number.
        if os.strerror(ENOSPC) in str(error):
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(path)) from error
        raise
    finally:
        remove(aside)


def require_ours(folder: Path, marks: Iterable[str]) -> None:
    """FileExistsError unless a folder that will be replaced or cleared is missing, empty, or holds one of the marks."""
    if folder.is_dir():
        if any(folder.iterdir()) and not any(any(folder.glob(mark)) for mark in marks):
            expected = f"none of {', '.join(marks)}" if marks else "files"
            raise FileExistsError(f"{folder} holds {expected}: it was not made here, move it away or delete it")
    elif folder.exists():
        raise FileExistsError(f"{folder}: expected a folder, found a file; move it away or delete it")


def _put_folder(aside: Path, path: Path) -> None:
    """Give a folder its name; the one that had it before gets the name `aside`, or is deleted.

    Linux exchanges the two in one step. Where the system or the disk cannot, a kill between two renames leaves no
    folder of that name; clear_left brings the old one back.
    """
    if not os.path.lexists(path):
        aside.rename(path)
    elif not _exchange(aside, path):
        old = aside.with_suffix(".old")
        remove(old)
        path.rename(old)
        aside.rename(path)
        remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where that cannot be done."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (_AT_WORKING_FOLDER, os.fsencode(one), _AT_WORKING_FOLDER, os.fsencode(other))
    return renameat2 is not None and renameat2(*names, _EXCHANGE) == 0


def _short(name: str) -> str:
    """The name, or its digest: the longest leave no room for more, 255 bytes is all that file systems take."""
    return name if len(os.fsencode(name)) < 200 else hashlib.sha256(os.fsencode(name)).hexdigest()


def clear_left(path: Path) -> None:
    """Clear what killed writers of this file or folder left beside it. A folder moved out of the way comes back."""
    for left in path.parent.glob(f".{glob.escape(_short(path.name))}.*"):
        if not _is_left(left):
            continue
        if left.suffix == ".old" and not os.path.lexists(path):
            left.rename(path)
        else:
            remove(left)


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
    """`sync` a file, or a folder and all below it, several at a time: the disk takes those together."""
    if not path.is_dir():
        sync(path)
        return
    below = [Path(folder, name) for folder, _, names in os.walk(path) for name in ("", *names)]
    plain = [one for one in below if (one.is_file() or one.is_dir()) and not one.is_symlink()]
    with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
        deque(pool.map(sync, plain), maxlen=0)


def remove_left_aside(folder: Path) -> None:
    """Delete the temporary files that killed writers left in a folder and below it; hidden folders are passed over."""
    folders = [Path(folder)]
    while folders:  # os.walk calls itself for each level
        with suppress(OSError), os.scandir(folders.pop()) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False) and not item.name.startswith("."):
                    folders.append(Path(item.path))
                elif item.name.startswith("."):
                    with suppress(OSError):  # deleted meanwhile, or not ours to delete
                        if _is_left(Path(item.path)):
                            Path(item.path).unlink()


def _is_left(path: Path) -> bool:
    """Whether this is what write_aside makes, and its writer is dead.

    That is a process of this machine that has ended; of another one, which may be at work on a shared disk, what is
    LEFT_S old.
    """
    name = _ASIDE.fullmatch(path.name)
    if name is None:
        return False
    if name["writer"].endswith(f"-{_machine_tag()}"):  # whatever the clock says meanwhile
        return has_ended(name["writer"])
    return time.time() - path.lstat().st_mtime > LEFT_S


def this_writer() -> str:
    """This process, for what it leaves if it is killed: see has_ended."""
    return f"{os.getpid()}-{_machine_tag()}"


def user_name() -> str:
    """The account's name, for records of who did something."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def has_ended(writer: str) -> bool:
    """Whether a writer was a process of this machine that has ended."""
    import psutil

    pid, _, tag = writer.partition("-")
    return tag == _machine_tag() and not psutil.pid_exists(int(pid))


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
    """Read JSON; ValueError names the file when it is not, or has more than MAX_JSON_BYTES."""
    return parse_json(read_at_most(path, MAX_JSON_BYTES), path)


def read_at_most(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file. ValueError naming one that has more, whatever size the disk states."""
    with Path(path).open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path}: has more than {max_bytes:,} bytes, the most that such a file may have")
    return content


def parse_json(data: bytes | str, name: object) -> Any:
    """The value of JSON from elsewhere. ValueError naming it where it is not JSON or is nested too deep."""
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


def digest_folder(path: Path, *, without: Container[str] = ()) -> str:
    """sha256 over the names and bytes of all files below a folder, also of those that links lead to.

    without: names of files in the folder itself that do not count

    Raises ValueError for a link to a folder that it is in and for what is neither file nor folder, such as a pipe;
    OSError for a link to nothing.
    """
    digests = {}
    for folder, folders, names in os.walk(path, followlinks=True, onerror=_raise):
        for name in folders:
            if Path(folder).resolve().is_relative_to(Path(folder, name).resolve()):
                raise ValueError(f"{folder}/{name}: a link to a folder that it is in")
        for file in (Path(folder, name) for name in names if name not in without or folder != os.fspath(path)):
            if file.exists() and not file.is_file():
                raise ValueError(f"{file}: expected a file")
            digests[file.relative_to(path).as_posix()] = digest_file(file)
    return digest_json(digests)


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def only_writer(folder: Path, lock_path: Path | None = None, *, waits: bool = False) -> Iterator[None]:
    """Hold the lock of an output folder, so that no second process writes into it.

    The lock file is stored beside the folder if no other path is given; the kernel frees it even after kill -9. What
    killed writers of the folder left beside it is cleared.
    Raises BlockingIOError naming the folder when another process holds it, unless it `waits` for that one.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    lock_path = lock_path or folder.with_name(f".{folder.name}.lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path, timeout=-1 if waits else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{folder} is being written by another process") from error
    try:
        clear_left(folder)
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
