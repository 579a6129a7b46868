"""Progress of bytes over several archives: one bar, or a line now and then in a log, with rate and time left."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from metricgold.storage import Progress, one_line

WORTH_A_BAR_BYTES = 10_000_000

Advance = Callable[[int], Any]  # called with a number of bytes


def no_progress(num_bytes: int) -> None:
    """An Advance that ignores them."""


class ByteProgress:
    """Of a run and, on a terminal, of each large archive of it. Threads may share it.

    listener        if given, is called with every number of bytes and replaces bar, lines and progress file
    is_whole_stage  False where a stage does more than fetch these bytes: then they are not its progress file's share
    """

    def __init__(self, name: str, *, listener: Advance | None = None, is_whole_stage: bool = True) -> None:
        self.name, self.listener, self.is_whole_stage = name, listener, is_whole_stage
        self.bytes_done = self.total_bytes = self.parts_done = self.num_parts = 0
        self._lock = threading.Lock()
        self._started = self._last_byte = time.monotonic()
        self._shown: Progress | None = None

    def expect(self, total_bytes: int, num_parts: int) -> None:
        """What is to be fetched; starts the clock."""
        self.total_bytes, self.num_parts, self.bytes_done, self.parts_done = total_bytes, num_parts, 0, 0
        self._started = time.monotonic()
        if self.listener is None:
            self.close()
            total = (total_bytes or None) if self.is_whole_stage else None
            self._shown = Progress(self.name, total, "B", line=self.line, unit_scale=True)

    def advance(self, num_bytes: int) -> None:
        """Bytes that arrived."""
        with self._lock:
            self._last_byte = time.monotonic()
            self.bytes_done += num_bytes
            if self.listener is not None:
                self.listener(num_bytes)
            elif self._shown is not None:
                # What is fetched twice is not progress: never more than the total.
                left = num_bytes if self._shown.total is None else self._shown.total - self._shown.done
                if count := min(num_bytes, left):
                    self._shown.advance(count)

    @property
    def idle_s(self) -> float:
        """Seconds since the last byte, or since the start."""
        return time.monotonic() - self._last_byte

    @contextmanager
    def part(self, name: str, total_bytes: int | None) -> Iterator[Advance]:
        """One archive of the run: gives what to call with its bytes, counts it done when it ends well.

        The run's own `advance` is called beside it.
        """
        from tqdm import tqdm

        is_large = self.listener is None and (total_bytes or 0) >= WORTH_A_BAR_BYTES
        disable = not (is_large and sys.stderr.isatty())
        with tqdm(
            total=total_bytes, desc=one_line(name), unit="B", unit_scale=True, leave=False, disable=disable
        ) as bar:
            yield bar.update
            with self._lock:
                self.parts_done += 1

    def line(self) -> str:
        """Where the run stands, for a log: `progress 4.4 %: hypersim, 12.3 of 280.1 GB, …`."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = self.bytes_done / seconds
        done, total = self.bytes_done, max(self.total_bytes, self.bytes_done, 1)
        left = f", {show_seconds((total - done) / rate)} left" if done else ""
        return (
            f"progress {100 * done / total:.1f} %: {self.name}, {show_bytes(done)} of {show_bytes(total)}, "
            f"{self.parts_done} of {self.num_parts} archives, {show_bytes(rate)}/s{left}"
        )

    def close(self) -> None:
        if self._shown is not None:
            self._shown.close()


def show_bytes(num_bytes: float) -> str:
    """1234567 -> '1.2 MB', decimal like the sizes that hosts publish."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def show_seconds(seconds: float) -> str:
    """Two parts are enough: '3 h 20 min', '4 min 10 s', '8 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
