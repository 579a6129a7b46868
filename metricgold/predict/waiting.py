"""How many files a batch job still has to do: its input is listed once more beside it, to the end."""

import logging
import time
from collections.abc import Callable, Iterable
from threading import Event, Thread
from types import TracebackType

from metricgold.storage import StoredObject

log = logging.getLogger(__name__)

COUNT_AFTER_S = 10.0  # a job that is over by then needs no second listing
TELL_EVERY_S = 10.0


class Waiting:
    """Counts what is listed in a thread, from when a job has worked for a while; its own listing is read as it works.

    entries  lists the input of the job
    tell     takes the number of files that wait, now and then
    """

    def __init__(self, entries: Callable[[], Iterable[StoredObject]], tell: Callable[[int], None]) -> None:
        self._entries, self._tell = entries, tell
        self.total: int | None = None  # until all are counted
        self._thread, self._is_over = Thread(target=self._count, daemon=True), Event()
        self._started_at = self._told_at = time.monotonic()

    def after(self, num_seen: int) -> int | None:
        """Files that wait while so many have a row; None before all are counted."""
        now = time.monotonic()
        if self._thread.ident is None and now - self._started_at >= COUNT_AFTER_S:
            self._thread.start()
        if self.total is None:
            return None
        waiting = max(0, self.total - num_seen)  # files may have come since
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._tell(waiting)
        return waiting

    def _count(self) -> None:
        count = 0
        try:
            for _ in self._entries():
                count += 1
                if self._is_over.is_set():
                    return
        except Exception as error:  # a figure beside the job, which meets the same error where it matters
            log.debug("what waits was not counted: %s", error)
            return
        self.total = count

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()  # not joined: it may wait for a store, and nothing waits for it
