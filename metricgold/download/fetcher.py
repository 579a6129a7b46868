"""What all transfers of a run share: connections a host allows, patience, and the end.

fetcher        the limits of a run
mirrors        which mirror next, after which wait, when to give up
remote_file    one file whose bytes come here as they are needed
transport      one request, checked
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from metricgold.download.progress import Advance, no_progress
from metricgold.download.transport import host_of

MAX_RETRY_AFTER_S = 300.0
LOOK_UP_S = 0.1  # how soon a thread that waits sees that all is to stop


class Fetcher:
    """Limits, patience and end of all transfers of a run. Leaving it stops those that still run.

    connections_per_host  requests to one host at once
    patience_s            wasted seconds after which a file is given up, see metricgold.download.mirrors
    stall_s               seconds without bytes after which a connection is given up
    part_bytes            of a file that comes over several connections
    advance               called with the number of bytes whenever some have arrived and are kept; with all bytes of
                          a local file at once
    only_parts            never to fetch a full file where its mirrors do not serve ranges
    """

    first_wait_s = 1.0  # the longest first wait between two rounds over all mirrors; doubled each time
    max_wait_s = 60.0

    def __init__(
        self,
        *,
        connections_per_host: int = 4,
        patience_s: float = 300.0,
        stall_s: float = 30.0,
        part_bytes: int = 64 << 20,
        advance: Advance = no_progress,
        only_parts: bool = False,
    ) -> None:
        self.connections_per_host, self.part_bytes = connections_per_host, part_bytes
        self.patience_s, self.stall_s, self.only_parts = patience_s, stall_s, only_parts
        self.rangeless: set[str] = set()  # hosts that answer ranges with the full file
        self.suffixless: set[str] = set()  # hosts that refuse ranges from the end
        self._advance = advance
        self._lock = threading.Lock()
        self._connections: dict[str, threading.Semaphore] = {}
        self._paused_until: dict[str, float] = {}
        self._stops: WeakSet[threading.Event] = WeakSet()
        self._is_closed = False

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all transfers; their callers get an InterruptedError."""
        with self._lock:
            self._is_closed = True
            stops = list(self._stops)
        for stop in stops:
            stop.set()

    def new_stop(self) -> threading.Event:
        """A flag that is raised when the fetcher closes."""
        stop = threading.Event()
        with self._lock:
            self._stops.add(stop)
            if self._is_closed:
                stop.set()
        return stop

    def arrive(self, num_bytes: int, advance: Advance) -> None:
        """Report bytes to the run and to the file's own `advance`."""
        with self._lock:
            self._advance(num_bytes)
            advance(num_bytes)

    @contextmanager
    def connection(self, url: str, stop: threading.Event) -> Iterator[None]:
        """One of the host's connections, as soon as there is one."""
        host = host_of(url)
        if not host:
            yield
            return
        with self._lock:
            connections = self._connections.setdefault(host, threading.BoundedSemaphore(self.connections_per_host))
        while not connections.acquire(timeout=LOOK_UP_S):
            raise_if(stop)
        try:
            yield
        finally:
            connections.release()

    def pause_host(self, url: str, wait_s: float) -> None:
        """No new request to this host for so long."""
        with self._lock:
            self._paused_until[host_of(url)] = time.monotonic() + min(wait_s, MAX_RETRY_AFTER_S)

    def pause_s(self, url: str) -> float:
        """For how much longer the host wants no request."""
        with self._lock:
            return max(0.0, self._paused_until.get(host_of(url), 0.0) - time.monotonic())


def raise_if(stop: threading.Event) -> None:
    """InterruptedError once the flag is up."""
    if stop.is_set():
        raise InterruptedError("transfer was stopped")
