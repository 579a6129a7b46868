"""Which mirror next, after which wait, and when to give up.

An attempt asks one mirror. A round makes an attempt at each mirror that is left, in order, until one works.

    fault      what happened                        costs the mirror                            then
    Missing    the file is not there                all its strikes                             the next mirror
    Changed    other bytes than it had before       a strike                                    the next mirror
    Unfit      not what was requested               a strike, unless it has answered a range    the next mirror
    NoRanges   the full file instead of a range     nothing, but is counted                     the next mirror
    Refused    no permission, signature expired     nothing                                     the next mirror
    Busy       overload, dead or cut connection     nothing                                     the next mirror

A file with checksums is not taken for Changed by its validator alone, see metricgold.download.remote_file.

A mirror with three strikes is not tried again for this file. A server that sends Retry-After is left alone for so
long, for every file. When a round has failed at every mirror:

    no mirror is left                               give up: ValueError if all faults are Unfit, else OSError
    all that are left have no ranges, three times   raise NoRanges: the caller takes the full file
    `patience_s` are wasted                         give up, or raise NoRanges if that was the last fault of all
    otherwise                                       wait, at random up to 1, 2, 4 ... 60 s, and begin another round

A fault after some bytes costs the mirror the same, but no round: metricgold.download.remote_file keeps the bytes and
requests the rest after a second at most.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar
from urllib.parse import unquote

from metricgold.download.fetcher import Fetcher, raise_if
from metricgold.download.transport import Busy, Changed, FetchError, Missing, NoRanges, Unfit, shown

log = logging.getLogger(__name__)
T = TypeVar("T")
Attempt = Callable[[str, ExitStack], T]  # url, what is to be closed after it -> what was wanted

MAX_STRIKES = 3


class Mirrors:
    """Where one file can be had, in order of preference, and how each place has done so far."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(dict.fromkeys(urls))
        self.name = unquote(shown(self.urls[0]).rpartition("/")[2])
        self.last_byte_at = time.monotonic()
        self._lock = threading.Lock()
        self._faults: dict[str, FetchError] = {}
        self._strikes: Counter[str] = Counter()
        self._wholes: Counter[str] = Counter()  # answers with the full file to a request for a range
        self._ranged: set[str] = set()

    def left(self) -> list[str]:
        """Those without three strikes."""
        return [url for url in self.urls if self._strikes[url] < MAX_STRIKES]

    def note_success(self, url: str) -> None:
        """A range was answered as one: what goes wrong there from now on may pass."""
        self._ranged.add(url)

    def note_fault(self, url: str, fault: FetchError) -> None:
        """Remember the fault, and the strikes that it costs."""
        with self._lock:
            self._faults[url] = fault
            if isinstance(fault, Missing):
                self._strikes[url] = MAX_STRIKES
            elif isinstance(fault, NoRanges):
                self._wholes[url] += 1
            elif isinstance(fault, Changed) or (isinstance(fault, Unfit) and url not in self._ranged):
                self._strikes[url] += 1

    def have_no_ranges(self, *, after_all: bool = False) -> bool:
        """Whether all mirrors that are left answer with the full file; `after_all`: even those that once did better."""
        return all(
            isinstance(self._faults.get(url), NoRanges)
            and (after_all or (self._wholes[url] >= MAX_STRIKES and url not in self._ranged))
            for url in self.left()
        )

    def failure(self) -> OSError | ValueError:
        """All faults in one: ValueError if every mirror has something else than was requested."""
        with self._lock:
            unfit = all(isinstance(self._faults.get(url), Unfit) for url in self.urls)
            faults = "; ".join(f"from {shown(url)}: {self._faults.get(url, 'not asked')}" for url in self.urls)
        return (ValueError if unfit else OSError)(f"{self.name} {faults}")


class Retries:
    """Rounds over a file's mirrors until an attempt works; the module's table says when it stops.

    `avoid`: mirrors that are tried last, the more often they are named the later.
    """

    def __init__(self, fetcher: Fetcher, mirrors: Mirrors, stop: threading.Event, avoid: Sequence[str] = ()) -> None:
        self._fetcher, self._mirrors, self._stop, self._avoid = fetcher, mirrors, stop, avoid
        self._failing_s = 0.0  # spent in attempts that failed

    def run(self, attempt: Attempt[T]) -> T:
        """What the attempt gives. Raises NoRanges, or OSError or ValueError as `Mirrors.failure`."""
        fetcher, mirrors = self._fetcher, self._mirrors
        waited_s, longest_s = 0.0, fetcher.first_wait_s
        while True:
            try:
                return self._round(attempt)
            except Busy as fault:
                # Lost to failed attempts and waits, but never more than the time since any part of the file last
                # arrived: while its other parts do well this one is worth another try.
                wasted_s = min(self._failing_s + waited_s, time.monotonic() - mirrors.last_byte_at)
                if wasted_s >= fetcher.patience_s:
                    if mirrors.have_no_ranges(after_all=True):
                        raise NoRanges("no ranges") from None
                    raise mirrors.failure() from None
                wait_s = max(random.uniform(0, longest_s), min(map(fetcher.pause_s, mirrors.left())))
                log.warning("%s; next try in %.1f s", fault, wait_s)
                self._stop.wait(wait_s)
                waited_s, longest_s = waited_s + wait_s, min(2 * longest_s, fetcher.max_wait_s)

    def _round(self, attempt: Attempt[T]) -> T:
        """An attempt at each mirror that is left. Busy if all failed and another round may help."""
        mirrors = self._mirrors
        order = sorted(mirrors.left(), key=self._avoid.count)
        for url in order:
            raise_if(self._stop)
            if not self._fetcher.pause_s(url):
                try:
                    return self._attempt_at(url, attempt)
                except FetchError as fault:
                    level = logging.INFO if url == order[-1] else logging.WARNING
                    log.log(level, "%s from %s: %s; changing mirrors", mirrors.name, shown(url), fault)
        if not mirrors.left():
            raise mirrors.failure()
        if mirrors.have_no_ranges():
            raise NoRanges("no ranges")
        raise Busy(str(mirrors.failure()))

    def _attempt_at(self, url: str, attempt: Attempt[T]) -> T:
        """One attempt over one of the host's connections; its fault is noted."""
        with ExitStack() as stack:
            stack.enter_context(self._fetcher.connection(url, self._stop))
            raise_if(self._stop)
            began = time.monotonic()  # waiting for a connection does not count
            try:
                return attempt(url, stack)
            except FetchError as fault:
                self._failing_s += min(time.monotonic() - began, self._fetcher.stall_s)
                self._mirrors.note_fault(url, fault)
                if fault.wait_s:
                    self._fetcher.pause_host(url, fault.wait_s)
                raise
