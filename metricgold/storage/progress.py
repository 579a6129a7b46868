"""How far a stage is: a bar on a terminal, else a line in the log now and then, and one small file for its starter.

Whoever starts a stage may name a file in the variable METRICGOLD_PROGRESS of its environment, and read that file with
`read_progress`. The stage replaces it as it works, and the command line adds the code with which the stage ends, which
DVC keeps to itself. Writer and reader share this module: no log line is parsed.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from types import TracebackType

from metricgold.storage.files import read_json, write_json
from metricgold.storage.messages import one_line

log = logging.getLogger(__name__)

PROGRESS_FILE = "METRICGOLD_PROGRESS"  # the variable that names the file
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_WRITES = 1.0
STOPPED_AND_SAVED = 128 + signal.SIGTERM  # exit code of work that SIGTERM ended, and that the same command resumes


@dataclass(frozen=True, slots=True)
class StageProgress:
    """`done` of `total` units of work, such as steps, frames or bytes; `exit_code` once a stage left with one."""

    done: float
    total: float
    unit: str
    exit_code: int | None = None

    @property
    def percent(self) -> float:
        """Of the work, to a tenth; 0 where the total is 0."""
        return round(100 * self.done / self.total, 1) if self.total else 0.0


def write_progress(progress: StageProgress) -> None:
    """Replace the progress file that the environment names; without one do nothing. A full disk costs the file only."""
    if not (path := os.environ.get(PROGRESS_FILE)):
        return
    try:
        write_json(Path(path), asdict(progress))
    except OSError as error:
        log.debug("%s not written: %s", path, error)


def read_progress(path: Path) -> StageProgress | None:
    """What a stage wrote last; None before its first report."""
    return StageProgress(**read_json(path)) if path.is_file() else None


def write_exit_code(code: object) -> None:
    """Add the code that the stage leaves with to what it wrote last; without a progress file do nothing."""
    if (path := os.environ.get(PROGRESS_FILE)) and isinstance(code, int):
        last = read_progress(Path(path)) or StageProgress(0, 0, "")
        write_progress(replace(last, exit_code=code))


class Progress:
    """Counts the units of a stage's work, from any thread, and shows them.

    total  units in all; None while that is not known: then neither a share nor a progress file is written
    done   units that an earlier run has finished
    line   what a log line says; `<name>: <done> of <total> <unit>` if not given
    """

    def __init__(
        self,
        name: str,
        total: float | None,
        unit: str,
        *,
        done: float = 0,
        line: Callable[[], str] | None = None,
        unit_scale: bool = False,
    ) -> None:
        from tqdm import tqdm

        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._line, self._lock, self._note = line, Lock(), ""
        self._logged_at = self._written_at = time.monotonic()
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, desc=one_line(name), unit=unit, unit_scale=unit_scale, disable=not is_terminal
        )

    def advance(self, count: float = 1, *, note: str = "") -> None:
        """So many units more are done; `note` joins the bar and the line, such as the loss of a step."""
        with self._lock:
            self.done += count
            if note:
                self._note = note
                self._bar.set_postfix_str(one_line(note), refresh=False)
            self._bar.update(count)
            now, is_last = time.monotonic(), self.done == self.total
            if self._bar.disable and (is_last or now - self._logged_at >= SECONDS_BETWEEN_LINES):
                self._logged_at = now
                log.info("%s", self.line())
            if self.total and (is_last or now - self._written_at >= SECONDS_BETWEEN_WRITES):
                self._written_at = now
                write_progress(StageProgress(self.done, self.total, self.unit))

    def expect(self, total: float) -> None:
        """So many units there are in all, as is known by now."""
        with self._lock:
            self.total = self._bar.total = total

    def line(self) -> str:
        """Where the work stands, for a log."""
        if self._line is not None:
            return self._line()
        note = f", {self._note}" if self._note else ""
        return f"{self.name}: {self.done:g}{f' of {self.total:g}' if self.total else ''} {self.unit}{note}"

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
