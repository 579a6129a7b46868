"""Progress of bytes: bars on a terminal, a line now and then in a log."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
WORTH_A_BAR_BYTES = 10_000_000

Advance = Callable[[int], Any]


class ByteProgress:
    """Of a whole run and, on a terminal, of each large part of it. Threads may share it.

    listener, if given, is told every number of bytes and replaces bars and lines.
    """

    def __init__(self, name: str, *, listener: Advance | None = None) -> None:
        self.name, self.listener = name, listener
        self.bytes_done = self.total_bytes = self.parts_done = self.num_parts = 0
        self._lock = threading.Lock()
        self._started = self._last_line = self._last_byte = time.monotonic()
        self._bar = None

    def expect(self, total_bytes: int, num_parts: int) -> None:
        """What this run has before it; starts the clock."""
        from tqdm import tqdm

        self.total_bytes, self.num_parts, self.bytes_done, self.parts_done = total_bytes, num_parts, 0, 0
        self._started = self._last_line = time.monotonic()
        if self.listener is None and sys.stderr.isatty():
            self._bar = tqdm(total=total_bytes or None, desc=self.name, unit="B", unit_scale=True)

    def advance(self, num_bytes: int) -> None:
        """Bytes that arrived."""
        with self._lock:
            self._last_byte = time.monotonic()
            self.bytes_done += num_bytes
            if self.listener is not None:
                self.listener(num_bytes)
            elif self._bar is not None:
                self._bar.update(num_bytes)
            elif self._last_byte - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = self._last_byte
                log.info("%s", self.line())

    @property
    def idle_s(self) -> float:
        """Seconds since the last byte, or since the start."""
        return time.monotonic() - self._last_byte

    @contextmanager
    def part(self, name: str, total_bytes: int | None) -> Iterator[Advance]:
        """One archive of the run: gives what to call with its bytes, counts it done when it ends well.

        The run's own `advance` is called beside it.
        """
        bar = self._part_bar(name, total_bytes)
        try:
            yield (lambda num_bytes: None) if bar is None else bar.update
            with self._lock:
                self.parts_done += 1
        finally:
            if bar is not None:
                bar.close()

    def _part_bar(self, name: str, total_bytes: int | None):
        from tqdm import tqdm

        if self._bar is None or (total_bytes or 0) < WORTH_A_BAR_BYTES:
            return None
        return tqdm(total=total_bytes, desc=name, unit="B", unit_scale=True, leave=False)

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
        if self._bar is not None:
            self._bar.close()


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
