"""Bytes from one of several mirrors: tried again, changed over, resumed, never more than a host can be asked for."""

import io
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote
from weakref import WeakSet

from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event, wait_random_exponential

from metricgold.download.partial_file import Partial, Range
from metricgold.download.transport import (
    Busy,
    Changed,
    FetchError,
    Missing,
    NoRanges,
    Reply,
    Unfit,
    host_of,
    local_path,
    request,
    shown,
)
from metricgold.storage import BLOCK_BYTES, new_hash

log = logging.getLogger(__name__)
T = TypeVar("T")
Attempt = Callable[[str, ExitStack], T]  # url, what is to be closed after it -> what was wanted
Advance = Callable[[int], Any]  # told a number of bytes

FIRST_WAIT_S = 1.0
MAX_WAIT_S = 60.0
MAX_RETRY_AFTER_S = 300.0
MAX_STRIKES = 3
CONTACT_BYTES = 1 << 20
READ_AHEAD_BYTES = 1 << 16
MAX_READ_BYTES = 1 << 28
LOOK_UP_S = 0.1  # how soon a thread that waits sees that all is to stop


def _to_nobody(num_bytes: int) -> None:
    pass


class Fetcher:
    """What all transfers of a run share: limits, patience, and the end. Leaving it stops whatever still goes on.

    `advance` is told the number of bytes whenever some have arrived and are kept; all bytes of a local file at once.
    """

    def __init__(
        self,
        *,
        connections_per_host: int = 4,
        patience_s: float = 300.0,
        stall_s: float = 30.0,
        part_bytes: int = 64 << 20,
        advance: Advance = _to_nobody,
    ):
        self.connections_per_host, self.part_bytes = connections_per_host, part_bytes
        self.patience_s, self.stall_s = patience_s, stall_s
        self._advance = advance
        self._lock = threading.Lock()
        self._slots: dict[str, threading.Semaphore] = {}
        self._quiet_until: dict[str, float] = {}
        self.rangeless: set[str] = set()  # hosts that answer ranges with the whole
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

    def open(
        self,
        urls: Sequence[str],
        path: Path,
        *,
        tail_bytes: int = 0,
        total_bytes: int | None = None,
        advance: Advance = _to_nobody,
    ) -> "RemoteFile":
        """A remote file whose bytes are to lie at `path`, after first contact.

        What an earlier run left there is used if the mirror still has the same. `tail_bytes`: begin with so many from
        the end. `total_bytes`: what it must have. `advance`: told of this file's bytes, beside the fetcher's own.
        Raises OSError, or ValueError when all mirrors have something else.
        """
        return RemoteFile(self, urls, path, tail_bytes=tail_bytes, total_bytes=total_bytes, advance=advance)

    def stream(
        self, urls: Sequence[str], start: int = 0, *, total_bytes: int | None = None, advance: Advance = _to_nobody
    ) -> "Stream":
        """Bytes from `start` to the end, in order, not kept. Raises as `open`."""
        return Stream(self, urls, start, total_bytes=total_bytes, advance=advance)

    def read(self, urls: Sequence[str]) -> bytes:
        """All bytes of something small. Raises as `open`."""

        def attempt(url: str, stack: ExitStack) -> bytes:
            reply = stack.enter_context(request(url, stall_s=self.stall_s))
            chunks: list[bytes] = []
            for chunk in reply.chunks:
                chunks.append(chunk)
                if len(chunks) * BLOCK_BYTES > MAX_READ_BYTES:
                    raise Unfit(f"more than {MAX_READ_BYTES:,} bytes")
            return b"".join(chunks)

        return _Effort(self, _Mirrors(urls), self.new_stop()).make(attempt)

    # For the classes below

    def new_stop(self) -> threading.Event:
        """A flag that is raised when the fetcher closes."""
        stop = threading.Event()
        with self._lock:
            self._stops.add(stop)
            if self._is_closed:
                stop.set()
        return stop

    def arrive(self, num_bytes: int, advance: Advance) -> None:
        with self._lock:
            self._advance(num_bytes)
            advance(num_bytes)

    @contextmanager
    def slot(self, url: str, stop: threading.Event) -> Iterator[None]:
        """One of the host's connections, when there is one."""
        host = host_of(url)
        if not host:
            yield
            return
        with self._lock:
            slots = self._slots.setdefault(host, threading.BoundedSemaphore(self.connections_per_host))
        while not slots.acquire(timeout=LOOK_UP_S):
            _check(stop)
        try:
            yield
        finally:
            slots.release()

    def hush(self, url: str, wait_s: float) -> None:
        """No new request to this host for so long."""
        with self._lock:
            self._quiet_until[host_of(url)] = time.monotonic() + min(wait_s, MAX_RETRY_AFTER_S)

    def quiet_s(self, url: str) -> float:
        """For how much longer the host wants no request."""
        with self._lock:
            return max(0.0, self._quiet_until.get(host_of(url), 0.0) - time.monotonic())


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise InterruptedError("transfer was stopped")


# Mirrors and patience


class _Mirrors:
    """Where one file can be had, in order of preference, and how each place has done so far."""

    def __init__(self, urls: Sequence[str]):
        self.urls = list(dict.fromkeys(urls))
        self.name = unquote(shown(self.urls[0]).rpartition("/")[2])
        self.last_byte_at = time.monotonic()
        self._lock = threading.Lock()
        self._faults: dict[str, FetchError] = {}
        self._strikes: Counter[str] = Counter()
        self._wholes: Counter[str] = Counter()
        self._good: set[str] = set()

    def alive(self) -> list[str]:
        return [url for url in self.urls if self._strikes[url] < MAX_STRIKES]

    def praise(self, url: str) -> None:
        """A range was answered as one: what goes wrong there now may pass."""
        self._good.add(url)

    def blame(self, url: str, fault: FetchError) -> None:
        """Remember the fault. What is missing or unfit from the first, or has changed, is soon not asked for again."""
        with self._lock:
            self._faults[url] = fault
            if isinstance(fault, Missing):
                self._strikes[url] = MAX_STRIKES
            elif isinstance(fault, NoRanges):
                self._wholes[url] += 1
            elif isinstance(fault, Changed) or (isinstance(fault, Unfit) and url not in self._good):
                self._strikes[url] += 1

    def have_no_ranges(self, *, after_all: bool = False) -> bool:
        """Whether all mirrors that are left answer with the whole; `after_all`: even those that once did better."""
        return all(
            isinstance(self._faults.get(url), NoRanges)
            and (after_all or (self._wholes[url] >= MAX_STRIKES and url not in self._good))
            for url in self.alive()
        )

    def failure(self) -> OSError | ValueError:
        """All faults in one: ValueError if every mirror had something else than was asked for."""
        with self._lock:
            unfit = all(isinstance(self._faults.get(url), Unfit) for url in self.urls)
            told = "; ".join(f"from {shown(url)}: {self._faults.get(url, 'not asked')}" for url in self.urls)
        return (ValueError if unfit else OSError)(f"{self.name} {told}")


class _Effort:
    """Attempts on all mirrors in turn, and again after a wait, until one works or patience is at its end."""

    def __init__(self, fetcher: Fetcher, mirrors: _Mirrors, stop: threading.Event, avoid: Sequence[str] = ()):
        self._fetcher, self._mirrors, self._stop, self._avoid = fetcher, mirrors, stop, avoid
        self._spent_s = 0.0

    def make(self, attempt: Attempt[T]) -> T:
        """What the attempt gives. NoRanges when all mirrors said so repeatedly; OSError or ValueError as `failure`."""
        retrying = Retrying(
            retry=retry_if_exception_type(Busy),
            wait=self._wait_s,
            stop=self._is_over,
            sleep=sleep_using_event(self._stop),
            before_sleep=self._warn,
            retry_error_callback=self._give_up,
        )
        return retrying(self._round, attempt)

    def _round(self, attempt: Attempt[T]) -> T:
        mirrors = self._mirrors
        order = sorted(mirrors.alive(), key=self._avoid.count)
        for url in order:
            _check(self._stop)
            if not self._fetcher.quiet_s(url):
                try:
                    return self._once(attempt, url)
                except FetchError as fault:
                    level = logging.INFO if url == order[-1] else logging.WARNING
                    log.log(level, "%s from %s: %s; changing mirrors", mirrors.name, shown(url), fault)
        if not mirrors.alive():
            raise mirrors.failure()
        if mirrors.have_no_ranges():
            raise NoRanges("no ranges")
        raise Busy(str(mirrors.failure()), min(map(self._fetcher.quiet_s, mirrors.alive())))

    def _once(self, attempt: Attempt[T], url: str) -> T:
        with ExitStack() as stack:
            stack.enter_context(self._fetcher.slot(url, self._stop))
            _check(self._stop)
            began = time.monotonic()  # queueing for a slot is nobody's fault
            try:
                return attempt(url, stack)
            except FetchError as fault:
                self._spent_s += min(time.monotonic() - began, self._fetcher.stall_s)
                self._mirrors.blame(url, fault)
                if fault.wait_s:
                    self._fetcher.hush(url, fault.wait_s)
                raise

    def _wait_s(self, state: RetryCallState) -> float:
        return max(state.outcome.exception().wait_s, wait_random_exponential(FIRST_WAIT_S, MAX_WAIT_S)(state))

    def _is_over(self, state: RetryCallState) -> bool:
        # Other parts of the file may do well meanwhile: then it is worth going on.
        in_vain_s = min(self._spent_s + state.idle_for, time.monotonic() - self._mirrors.last_byte_at)
        return in_vain_s >= self._fetcher.patience_s

    def _warn(self, state: RetryCallState) -> None:
        log.warning("%s; next try in %.1f s", state.outcome.exception(), state.next_action.sleep)

    def _give_up(self, state: RetryCallState) -> None:
        raise NoRanges("no ranges") if self._mirrors.have_no_ranges(after_all=True) else self._mirrors.failure()


class _Crew:
    """Threads that work off one iterator. The first error stops all; none keeps the process alive."""

    def __init__(self, work: Callable[[T], Any], items: Iterator[T], num_threads: int, stop: threading.Event):
        self._work, self._items, self._stop = work, items, stop
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._work(item)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def _next(self) -> T | None:
        with self._lock:
            return None if self._stop.is_set() else next(self._items, None)

    def is_done(self) -> bool:
        return bool(self._errors) or not any(thread.is_alive() for thread in self._threads)

    def wait(self) -> None:
        """Until all is done. Raises the first error at once: what hangs on a dead connection is left behind."""
        try:
            while not (self.is_done() or self._stop.is_set()):
                for thread in self._threads:
                    thread.join(LOOK_UP_S)
        except BaseException:
            self._stop.set()
            raise
        for thread in self._threads:
            thread.join(LOOK_UP_S if self._stop.is_set() else None)
        if self._errors:
            raise self._errors[0]
        _check(self._stop)


# A file


class RemoteFile:
    """A file that lies elsewhere, of which the bytes that are needed come here. `Fetcher.open` makes it.

    `url`: without secrets, the last that delivered. `partial`: what is here; a view if a mirror is a local file.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        urls: Sequence[str],
        path: Path,
        *,
        tail_bytes: int = 0,
        total_bytes: int | None = None,
        advance: Advance = _to_nobody,
    ):
        self._fetcher, self._mirrors, self._path, self._advance = fetcher, _Mirrors(urls), Path(path), advance
        self._expected_bytes, self._tail_bytes = total_bytes, tail_bytes
        self._stop = fetcher.new_stop()
        self._needing = threading.Lock()
        self._arrived = threading.Condition()
        self._delivered: list[tuple[int, int, str]] = []
        self._doubted: list[tuple[int, int, str]] = []
        self.url = shown(self._mirrors.urls[0])
        self.partial = Partial.resume(path)
        if self.partial and total_bytes not in (None, self.partial.total_bytes):
            self._drop()
        is_rangeless = self.partial is None and all(host_of(url) in fetcher.rangeless for url in urls)
        self._with_ranges(lambda: self._make(self._contact), is_rangeless)

    @property
    def total_bytes(self) -> int:
        return self.partial.total_bytes

    def need(self, ranges: Iterable[Range]) -> None:
        """Fetch what of these ranges is missing. Raises as `Fetcher.open`, and OSError when the disk is full."""
        with self._needing:
            self._stop = self._fetcher.new_stop()
            self._with_ranges(lambda: self._fill_all(self.partial.missing(ranges)))

    def doubt(self, start: int, end: int) -> None:
        """These bytes were wrong: forget them, and ask who delivered them last when they are needed again."""
        senders = set(_overlapping(self._delivered, start, end)) or self._mirrors.alive()[:1]
        self._doubted += [(start, end, url) for url in senders]
        self._delivered = [one for one in self._delivered if not _overlapping([one], start, end)]
        if not self.partial.is_view:
            self.partial.forget(start, end)
        elif len(self._mirrors.alive()) > 1:
            self.partial.close()
            self.partial = Partial.create(self._path, self.total_bytes, origin=self.url, validator=None)

    def reader(self) -> io.RawIOBase:
        """The file as if it were here: what is read and missing is fetched."""
        return _Reader(self)

    def digests(self, algorithms: Iterable[str]) -> dict[str, str]:
        """Algorithm (hashlib's names, crc32) -> hex digest over the whole file; fetches what is missing meanwhile.

        Raises as `need`.
        """
        hashes = {name: new_hash(name) for name in algorithms}
        stop = self._fetcher.new_stop()
        crew = _Crew(self.need, iter([[(0, self.total_bytes)]]), 1, stop)
        position = 0
        try:
            while position < self.total_bytes:
                if chunk := self._next_chunk(position):
                    for running in hashes.values():
                        running.update(chunk)
                    position += len(chunk)
                elif crew.is_done():
                    crew.wait()
            crew.wait()
        except BaseException:
            self._stop.set()
            raise
        return {name: running.hexdigest() for name, running in hashes.items()}

    def close(self) -> None:
        """Stop fetching; what has arrived stays for another run."""
        self._stop.set()
        self.partial.close()

    def remove(self) -> None:
        """Stop fetching and delete what has arrived; a local file is left alone."""
        self._stop.set()
        self.partial.remove()

    def _next_chunk(self, position: int) -> bytes:
        with self._arrived:
            if self.partial.prefix <= position:
                self._arrived.wait(LOOK_UP_S)
        end = min(self.partial.prefix, position + BLOCK_BYTES)
        return self.partial.read(position, end) if end > position else b""

    def _with_ranges(self, fetch: Callable[[], Any], is_rangeless: bool = False) -> None:
        """Fetch by ranges, or the whole if that cannot be."""
        if not is_rangeless:
            try:
                return fetch()
            except NoRanges:
                self._stop = self._fetcher.new_stop()
                log.warning("%s: no ranges to be had, taking the whole", self._mirrors.name)
        self._make(self._take_whole)

    def _drop(self) -> None:
        if self.partial is not None:
            self.partial.remove()
        self.partial = None

    def _make(self, attempt: Attempt[T], avoid: Sequence[str] = ()) -> T:
        return _Effort(self._fetcher, self._mirrors, self._stop, avoid).make(attempt)

    def _parts(self, spans: list[Range]) -> Iterator[Range]:
        for start, end in spans:
            for part in range(start, end, self._fetcher.part_bytes):
                yield part, min(part + self._fetcher.part_bytes, end)

    def _fill_all(self, spans: list[Range]) -> None:
        num_parts = sum(-(-(end - start) // self._fetcher.part_bytes) for start, end in spans)
        if num_parts == 1:
            self._fill(spans[0])
        elif num_parts:
            num_threads = min(num_parts, self._fetcher.connections_per_host)
            _Crew(self._fill, self._parts(spans), num_threads, self._stop).wait()

    def _fill(self, span: Range) -> None:
        while missing := self.partial.missing([span]):
            start, end = missing[0]
            avoid = _overlapping(self._doubted, start, end)
            fault = self._make(lambda url, stack, start=start, end=end: self._take(url, stack, start, end), avoid)
            if fault:  # after some bytes: go on soon, but do not hammer
                log.info("%s from %s: %s; going on", self._mirrors.name, self.url, fault)
                self._stop.wait(random.uniform(0, FIRST_WAIT_S))

    # Attempts: told a URL, they raise the FetchError of a fault before the first byte

    def _contact(self, url: str, stack: ExitStack) -> None:
        if url.startswith("file:"):
            return self._look_at(url)
        if self.partial is None:
            return self._begin(url, stack)
        if (span := self._first_wish(url)) is None:
            return None
        try:
            self._take(url, stack, *span)
        except Changed as fault:
            log.warning("%s from %s: %s; starting anew", self._mirrors.name, shown(url), fault)
            self._drop()
            stack.close()
            stack.enter_context(self._fetcher.slot(url, self._stop))
            return self._begin(url, stack)

    def _look_at(self, url: str) -> None:
        try:
            view = Partial.view(local_path(url), origin=shown(url))
        except OSError as error:
            raise Missing(str(error)) from error
        if self._expected_bytes not in (None, view.total_bytes):
            view.close()
            raise Unfit(f"it has {view.total_bytes} bytes, {self._expected_bytes} were expected")
        if self.partial is not None:
            self.partial.close()
        self.partial, self.url = view, shown(url)
        self._fetcher.arrive(view.total_bytes, self._advance)

    def _begin(self, url: str, stack: ExitStack) -> None:
        span = (-self._tail_bytes, None) if self._tail_bytes else (0, CONTACT_BYTES)
        reply = stack.enter_context(request(url, *span, stall_s=self._fetcher.stall_s))
        self._agree(url, reply)
        if reply.total_bytes is None:
            raise NoRanges("server does not say how long the file is")
        self.partial = Partial.create(self._path, reply.total_bytes, origin=shown(url), validator=reply.validator)
        self._keep(url, reply)

    def _first_wish(self, url: str) -> Range | None:
        """Bytes to ask for that are needed anyway, so that seeing whether all is as before costs nothing."""
        total = self.partial.total_bytes
        tail_start = total - self._tail_bytes if self._tail_bytes else 0
        if missing := self.partial.missing([(tail_start, total)]):
            return missing[0][0], min(missing[0][1], missing[0][0] + max(CONTACT_BYTES, self._tail_bytes))
        if missing := self.partial.missing([(0, total)]):
            return missing[0][0], missing[0][0] + 1
        return None if shown(url) in self.partial.origins else (max(0, total - 1), total)

    def _take(self, url: str, stack: ExitStack, start: int, end: int) -> FetchError | None:
        """Fetch [start, end); answer the fault that ended it after some bytes, if one did."""
        known = self.partial.origins.get(shown(url))
        reply = stack.enter_context(request(url, start, end, validator=known, stall_s=self._fetcher.stall_s))
        self._agree(url, reply)
        self._mirrors.praise(url)
        if shown(url) not in self.partial.origins or (known is None and reply.validator is not None):
            self.partial.add_origin(shown(url), reply.validator)
        return self._keep(url, reply)

    def _take_whole(self, url: str, stack: ExitStack) -> None:
        """For servers without ranges; every attempt starts over."""
        reply = stack.enter_context(request(url, stall_s=self._fetcher.stall_s))
        self._agree(url, reply)
        if self.partial is None or self.partial.total_bytes is None:
            self.partial = Partial.create(self._path, reply.total_bytes, origin=shown(url), validator=reply.validator)
        else:
            self.partial.forget(0, self.total_bytes)
            self.partial.add_origin(shown(url), reply.validator)
        if fault := self._keep(url, reply):
            raise fault
        if self.partial.total_bytes is None:
            self._settle()
        if self.partial.missing([(0, self.total_bytes)]):
            raise Busy(f"body ended after {self.partial.prefix} of {self.total_bytes} bytes")
        self._fetcher.rangeless.add(host_of(url))

    def _settle(self) -> None:
        if self._expected_bytes not in (None, self.partial.prefix):
            raise Unfit(f"it has {self.partial.prefix} bytes, {self._expected_bytes} were expected")
        self.partial.settle()

    def _agree(self, url: str, reply: Reply) -> None:
        if reply.total_bytes is None:
            return
        if self._expected_bytes not in (None, reply.total_bytes):
            raise Unfit(f"it has {reply.total_bytes} bytes, {self._expected_bytes} were expected")
        if self.partial is not None and self.partial.total_bytes not in (None, reply.total_bytes):
            raise Changed(f"it has {reply.total_bytes} bytes, there were {self.partial.total_bytes}")

    def _keep(self, url: str, reply: Reply) -> FetchError | None:
        position = reply.start
        try:
            for chunk in reply.chunks:
                total = self.partial.total_bytes
                if total is not None and position + len(chunk) > total:
                    raise Unfit(f"more than {total} bytes came")
                self.partial.write(position, chunk)
                position += len(chunk)
                self._mirrors.last_byte_at = time.monotonic()
                self._fetcher.arrive(len(chunk), self._advance)
                with self._arrived:
                    self._arrived.notify_all()
                _check(self._stop)
        except FetchError as fault:
            if position == reply.start:
                raise
            self._mirrors.blame(url, fault)
            return fault
        finally:
            if position > reply.start:
                self.url = shown(url)
                self._delivered.append((reply.start, position, url))
        return None


def _overlapping(spans: Iterable[tuple[int, int, str]], start: int, end: int) -> list[str]:
    return [url for one, two, url in spans if one < end and start < two]


class _Reader(io.RawIOBase):
    def __init__(self, file: RemoteFile):
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.total_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}, before the start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, all of it unless the file ends."""
        start, file = self._position, self._file
        end = max(start, min(start + len(buffer), file.total_bytes))
        if file.partial.missing([(start, end)]):
            file.need([(start, max(end, start + READ_AHEAD_BYTES))])
        buffer[: end - start] = file.partial.read(start, end)
        self._position = end
        return end - start


class Stream:
    """Bytes of a file in order, from wherever they can be had; a context manager and an iterator of chunks.

    `total_bytes`: None until the end where the server does not say. `url`: without secrets, the last that delivered.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        urls: Sequence[str],
        start: int = 0,
        *,
        total_bytes: int | None = None,
        advance: Advance = _to_nobody,
    ):
        self._open = ExitStack()
        self._fetcher, self._mirrors, self._stop = fetcher, _Mirrors(urls), fetcher.new_stop()
        self._advance = advance
        self._position, self._expected_bytes = start, total_bytes
        self._validators: dict[str, str | None] = {}
        self._chunks: Iterator[bytes] = iter(())
        self._has_ranges = True
        self.total_bytes, self.url, self.validator = total_bytes, shown(self._mirrors.urls[0]), None
        self._ready = self._connect()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> bytes:
        chunk, self._ready = self._ready or self._next_chunk(), b""
        if not chunk:
            self.close()
            raise StopIteration
        self._position += len(chunk)
        if self.total_bytes is not None and self._position > self.total_bytes:
            raise ValueError(f"{self._mirrors.name} from {self.url}: more than {self.total_bytes} bytes came")
        self._mirrors.last_byte_at = time.monotonic()
        self._fetcher.arrive(len(chunk), self._advance)
        return chunk

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._open.close()

    def _next_chunk(self) -> bytes:
        """The next chunk, over a new connection if need be; b"" at the end."""
        _check(self._stop)
        try:
            if chunk := next(self._chunks, b""):
                return chunk
            if self.total_bytes is None:
                self.total_bytes = self._position
        except FetchError as fault:
            log.info("%s from %s: %s; going on", self._mirrors.name, self.url, fault)
            self._open.close()
            self._stop.wait(random.uniform(0, FIRST_WAIT_S))
        return self._connect()

    def _connect(self) -> bytes:
        """Open at the present position; answer the first chunk, b"" if nothing is left."""
        self._open.close()
        if self._position == self.total_bytes:
            return b""
        effort = _Effort(self._fetcher, self._mirrors, self._stop)
        try:
            return effort.make(self._attempt)
        except NoRanges:
            self._has_ranges = False
            return effort.make(self._attempt)

    def _attempt(self, url: str, stack: ExitStack) -> bytes:
        span = (self._position,) if self._position and self._has_ranges else ()
        known = self._validators.get(url) if span else None
        reply = stack.enter_context(request(url, *span, validator=known, stall_s=self._fetcher.stall_s))
        self._agree(reply)
        if span:
            self._mirrors.praise(url)
        self._chunks = _skip(reply.chunks, self._position - reply.start)
        first = next(self._chunks, b"")
        if not first and self.total_bytes not in (None, self._position):
            raise Busy("no bytes came")
        self._validators[url] = self.validator = reply.validator
        self.url, self._open = shown(url), stack.pop_all()
        return first

    def _agree(self, reply: Reply) -> None:
        if self.total_bytes is None or reply.total_bytes is None:
            self.total_bytes = reply.total_bytes if self.total_bytes is None else self.total_bytes
        elif self.total_bytes != reply.total_bytes:
            kind = Unfit if self._expected_bytes is not None else Changed
            raise kind(f"it has {reply.total_bytes} bytes, {self.total_bytes} were expected")


def _skip(chunks: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    for chunk in chunks:
        if len(chunk) > num_bytes:
            yield chunk[num_bytes:]
        num_bytes = max(0, num_bytes - len(chunk))
