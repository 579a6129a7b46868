"""A file of which some byte ranges have arrived: sparse data, and beside it a journal of the ranges that are there.

The journal (`<path>.have`) has one JSON line for each step, appended after the step's bytes were written, so a kill at
any moment leaves both in agreement. A power cut may not, for bytes are not forced to the disk: so the journal also
says in which boot of the machine it was written, and after another one only checksums can tell what is there.
"""

import errno
import json
import math
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metricgold.download.ranges import Range, Ranges
from metricgold.storage import machine, parse_json, remove, write_aside

SYNC_EVERY_S = 0.1
CLOSED = -1  # no open file has this number: later use is an OSError


class PartialFile:
    """Some bytes of a file; safe for threads. Made by `resume`, `create` or `of_local_file`.

    total_bytes  None until `finish_unknown_length` where it was not known
    origins      where bytes came from -> validator there
    is_local     a file of another place, seen as one that has arrived; never written, never removed
    """

    def __init__(
        self, path: Path, total_bytes: int | None, origins: dict[str, str | None], have: Ranges, *, is_local: bool
    ) -> None:
        self.path, self.total_bytes, self.origins, self.is_local = path, total_bytes, origins, is_local
        self._have = have
        self._lock = threading.Lock()
        self._data = os.open(path, os.O_RDONLY if is_local else os.O_RDWR)
        self._journal = CLOSED if is_local else os.open(_journal_path(path), os.O_WRONLY | os.O_APPEND)

    @classmethod
    def resume(cls, path: Path, *, is_checked: bool = True) -> "PartialFile | None":
        """What an earlier run left; None where nothing can be relied on.

        is_checked  checksums will tell whether bytes are right: then also what another boot of the machine left
        """
        path = Path(path)
        try:
            total_bytes, origins, have, boot = _replay(_journal_path(path).read_bytes())
            if boot != machine() and not is_checked:
                return None
            if path.stat().st_size != total_bytes:
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        _write_journal(path, total_bytes, origins, have)  # shorter, and without a torn end
        return cls(path, total_bytes, origins, have, is_local=False)

    @classmethod
    def create(cls, path: Path, total_bytes: int | None, *, origin: str, validator: str | None) -> "PartialFile":
        """An empty one; what was there is dropped. Without a total it can be resumed only once that is known."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(_journal_path(path))  # before the data: no journal may ever speak of other bytes
        remove(path)
        with path.open("xb") as file:
            file.truncate(total_bytes or 0)
        _write_journal(path, total_bytes, {origin: validator}, Ranges())
        return cls(path, total_bytes, {origin: validator}, Ranges(), is_local=False)

    @classmethod
    def of_local_file(cls, path: Path, *, origin: str) -> "PartialFile":
        """A local file as one that has arrived."""
        total_bytes = path.stat().st_size
        return cls(path, total_bytes, {origin: None}, Ranges([(0, total_bytes)]), is_local=True)

    @property
    def prefix(self) -> int:
        """Number of bytes from the start without a gap."""
        with self._lock:
            start, end = next(iter(self._have), (0, 0))
        return 0 if start else end

    def missing(self, ranges: Iterable[Range]) -> list[Range]:
        """What of these ranges is not there, sorted, each byte once; without what is outside of the file."""
        limit = math.inf if self.total_bytes is None else self.total_bytes
        wanted = Ranges((max(0, start), int(min(end, limit))) for start, end in ranges)
        with self._lock:
            return [gap for start, end in wanted for gap in self._have.gaps(start, end)]

    def write(self, start: int, chunk: bytes) -> None:
        """Put bytes in their place and into the journal. OSError when the disk is full, with its errno."""
        end = start + len(chunk)
        assert start >= 0 and (self.total_bytes is None or end <= self.total_bytes), (start, end, self.total_bytes)
        with self._lock:  # also against a close in between: the number of a closed file may be another file's
            left = memoryview(chunk)
            while left:
                left = left[os.pwrite(self._data, left, end - len(left)) :]
            self._note({"have": [start, end]})
            self._have.add(start, end)

    def forget(self, start: int, end: int) -> None:
        """These bytes are wrong."""
        with self._lock:
            self._note({"forget": [start, end]})
            self._have.drop(start, end)

    def add_origin(self, origin: str, validator: str | None) -> None:
        """Bytes come from there, too, or it has another file now."""
        with self._lock:
            self._note({"origin": origin, "validator": validator})
            self.origins[origin] = validator

    def finish_unknown_length(self) -> None:
        """The prefix is the complete file."""
        self.total_bytes = self.prefix
        with self._lock:
            _write_journal(self.path, self.total_bytes, self.origins, self._have)
            os.close(self._journal)
            self._journal = os.open(_journal_path(self.path), os.O_WRONLY | os.O_APPEND)

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), which must be there. OSError when another program has shortened the file."""
        with self._lock:
            chunk = os.pread(self._data, end - start, start)
        if len(chunk) != end - start:
            raise OSError(f"{self.path}: bytes {start} to {end} were requested, {len(chunk)} read")
        return chunk

    @contextmanager
    def synced_meanwhile(self) -> Iterator[None]:
        """Bring bytes to the disk as they arrive, so that a `sync` of the whole file has little to wait for."""
        done, data = threading.Event(), os.dup(self._data)

        def work() -> None:
            while not done.wait(SYNC_EVERY_S):
                os.fdatasync(data)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            os.close(data)

    def close(self) -> None:
        """Free the files; all stays on the disk."""
        with self._lock:
            for file in (self._data, self._journal):
                if file != CLOSED:
                    os.close(file)
            self._data = self._journal = CLOSED

    def remove(self) -> None:
        """Close, and delete journal and data; a local file is only closed."""
        self.close()
        if not self.is_local:
            remove(_journal_path(self.path))
            remove(self.path)

    def _note(self, step: dict[str, Any]) -> None:
        """Append a line to the journal, completely or not at all."""
        line = json.dumps(step).encode() + b"\n"
        size = os.lseek(self._journal, 0, os.SEEK_END)
        if os.write(self._journal, line) != len(line):
            os.ftruncate(self._journal, size)  # a torn line may only be the last
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(_journal_path(self.path)))


def _journal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.have")


def _write_journal(path: Path, total_bytes: int | None, origins: dict[str, str | None], have: Ranges) -> None:
    lines = [{"total_bytes": total_bytes, "origins": origins, "boot": machine()}, *({"have": span} for span in have)]
    with write_aside(_journal_path(path), durable=False) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _replay(journal: bytes) -> tuple[int, dict[str, str | None], Ranges, str | None]:
    """Total, origins, ranges and boot. ValueError, KeyError or TypeError for any wrong line but a torn last one."""
    head, *steps = [parse_json(line, "journal") for line in journal.split(b"\n")[:-1]] or [{}]
    total_bytes, origins, have = head["total_bytes"], head["origins"], Ranges()
    for step in steps:
        if "origin" in step:
            origins[step["origin"]] = step["validator"]
            continue
        change = have.add if "have" in step else have.drop
        start, end = step["have" if "have" in step else "forget"]
        if not 0 <= start <= end <= total_bytes:
            raise ValueError(f"range {start} to {end} in a file of {total_bytes} bytes")
        change(start, end)
    return total_bytes, origins, have, head.get("boot")
