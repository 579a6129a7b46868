"""A file on some mirrors of which the bytes that are needed come here, over several connections, and stay.

What arrives is kept in a `PartialFile`, so a fault costs the bytes in flight and another run fetches the rest.
"""

import io
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, cast

from metricgold.download.fetcher import LOOK_UP_S, Fetcher, raise_if
from metricgold.download.mirrors import Attempt, Mirrors, Retries
from metricgold.download.partial_file import PartialFile
from metricgold.download.progress import Advance, no_progress
from metricgold.download.ranges import Range
from metricgold.download.transport import (
    Busy,
    Changed,
    FetchError,
    Missing,
    NoRanges,
    NoSuffixRange,
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

CONTACT_BYTES = 1 << 20
READ_AHEAD_BYTES = 1 << 16
MAX_SMALL_BYTES = 1 << 28


def read_small(fetcher: Fetcher, urls: Sequence[str]) -> bytes:
    """All bytes of something small, such as a list of checksums. Raises as `RemoteFile`."""

    def attempt(url: str, stack: ExitStack) -> bytes:
        reply = stack.enter_context(request(url, stall_s=fetcher.stall_s))
        content = bytearray()
        for chunk in reply.chunks:
            content += chunk
            if len(content) > MAX_SMALL_BYTES:
                raise Unfit(f"more than {MAX_SMALL_BYTES:,} bytes")
        return bytes(content)

    return Retries(fetcher, Mirrors(urls), fetcher.new_stop()).run(attempt)


class RemoteFile:
    """A remote file whose bytes are to be stored at `path`; the first contact is made here.

    What an earlier run left there is used if the mirror still has the same file. Raises OSError, or ValueError when
    all mirrors have something else.

    tail_bytes   begin with so many from the end
    is_checked   what arrives will be compared with checksums: then bytes from before a power cut are used, and another
                 validator of a file whose length and last `tail_bytes` are as before is only noted, for the nodes of
                 one server may not agree on them
    total_bytes  that it must have, if that is known
    advance      called with numbers of this file's bytes, beside the fetcher's own
    url          without secrets, the last that delivered
    """

    def __init__(
        self,
        fetcher: Fetcher,
        urls: Sequence[str],
        path: Path,
        *,
        tail_bytes: int = 0,
        is_checked: bool = False,
        total_bytes: int | None = None,
        advance: Advance = no_progress,
    ) -> None:
        self._fetcher, self._mirrors, self._path, self._advance = fetcher, Mirrors(urls), Path(path), advance
        self._expected_bytes, self._tail_bytes, self._is_checked = total_bytes, tail_bytes, is_checked
        self._fickle: set[str] = set()  # mirrors with several validators of this file
        self._stop = fetcher.new_stop()
        self._needing = threading.Lock()
        self._arrived = threading.Condition()
        self._delivered: list[tuple[int, int, str]] = []
        self._wrong: list[tuple[int, int, str]] = []
        self.url = shown(self._mirrors.urls[0])
        self._partial = PartialFile.resume(path, is_checked=is_checked)
        if self._partial is not None and total_bytes not in (None, self._partial.total_bytes):
            self._partial.remove()
            self._partial = None
        is_rangeless = self._partial is None and all(host_of(url) in fetcher.rangeless for url in urls)
        self._by_ranges_or_whole(lambda: self._retry(self._contact), is_rangeless)

    @property
    def partial(self) -> PartialFile:
        """What is here; a local file itself if that is the mirror."""
        assert self._partial is not None  # since first contact
        return self._partial

    @property
    def total_bytes(self) -> int:
        total_bytes = self.partial.total_bytes
        assert total_bytes is not None  # a file of unknown length is complete by now
        return total_bytes

    def need(self, ranges: Iterable[Range]) -> None:
        """Fetch what of these ranges is missing. Raises as the constructor, and OSError when the disk is full."""
        with self._needing:
            self._stop = self._fetcher.new_stop()
            self._by_ranges_or_whole(lambda: self._fill(self.partial.missing(ranges)))

    def mark_wrong(self, start: int, end: int) -> None:
        """These bytes were wrong: forget them. Mirrors that delivered them are tried last for them from now on."""
        senders = set(_overlapping(self._delivered, start, end)) or self._mirrors.left()[:1]
        self._wrong += [(start, end, url) for url in senders]
        self._delivered = [one for one in self._delivered if not _overlapping([one], start, end)]
        if not self.partial.is_local:
            self.partial.forget(start, end)
        elif len(self._mirrors.left()) > 1:
            self.partial.close()
            self._partial = PartialFile.create(self._path, self.total_bytes, origin=self.url, validator=None)

    def reader(self) -> BinaryIO:
        """The file as if it were here: what is read and missing is fetched."""
        return cast(BinaryIO, RemoteReader(self))

    def digests(self, algorithms: Iterable[str]) -> dict[str, str]:
        """Algorithm (hashlib's names, crc32) -> hex digest of the complete file; fetches what is missing first.

        Raises as `need`.
        """
        hashes = {name: new_hash(name) for name in algorithms}
        fetching = DaemonThreads(self.need, iter([[(0, self.total_bytes)]]), 1, self._fetcher.new_stop())
        position = 0
        try:
            while position < self.total_bytes:
                with self._arrived:
                    if self.partial.prefix <= position:
                        self._arrived.wait(LOOK_UP_S)
                end = min(self.partial.prefix, position + BLOCK_BYTES)
                if end > position:
                    chunk = self.partial.read(position, end)
                    for running in hashes.values():
                        running.update(chunk)
                    position = end
                elif fetching.are_done():
                    fetching.wait()
            fetching.wait()
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

    def _by_ranges_or_whole(self, fetch: Callable[[], Any], is_rangeless: bool = False) -> None:
        if not is_rangeless:
            try:
                fetch()
                return
            except NoRanges:
                self._stop = self._fetcher.new_stop()
                if self._fetcher.only_parts:
                    raise NoRanges(f"{self._mirrors.name}: no mirror serves ranges") from None
                log.warning("%s: no mirror serves ranges, fetching the full file", self._mirrors.name)
        self._retry(self._fetch_whole)

    def _retry(self, attempt: Attempt[T], avoid: Sequence[str] = ()) -> T:
        return Retries(self._fetcher, self._mirrors, self._stop, avoid).run(attempt)

    def _fill(self, spans: list[Range]) -> None:
        """Fetch these ranges in parts, over as many connections as the host allows."""
        part_bytes = self._fetcher.part_bytes
        num_parts = sum(-(-(end - start) // part_bytes) for start, end in spans)
        if num_parts == 1:
            self._fill_part(spans[0])
        elif num_parts:
            starts = ((start, end) for first, end in spans for start in range(first, end, part_bytes))
            parts = ((start, min(start + part_bytes, end)) for start, end in starts)
            num_threads = min(num_parts, self._fetcher.connections_per_host)
            DaemonThreads(self._fill_part, parts, num_threads, self._stop).wait()

    def _fill_part(self, part: Range) -> None:
        """Fetch a part over one connection, and what a fault has left of it over the next."""
        while missing := self.partial.missing([part]):
            start, end = missing[0]
            avoid = _overlapping(self._wrong, start, end)
            fault = self._retry(partial(self._fetch_range, start=start, end=end), avoid)
            if fault:  # after some bytes: request the rest soon, but do not hammer
                log.info("%s from %s: %s; requesting the rest", self._mirrors.name, self.url, fault)
                self._stop.wait(random.uniform(0, self._fetcher.first_wait_s))

    # Attempts, made by Retries with a URL: they raise the FetchError of a fault before the first byte

    def _contact(self, url: str, stack: ExitStack) -> None:
        """See that the mirror has the file, unchanged if some of it is here, by a request for bytes that are needed."""
        if url.startswith("file:"):
            self._use_local_file(url)
        elif self._partial is None:
            self._begin(url, stack)
        elif span := self._first_missing(url):
            try:
                self._fetch_range(url, stack, *span)
            except Changed as fault:
                log.warning("%s from %s: %s; starting anew", self._mirrors.name, shown(url), fault)
                self._partial.remove()
                self._partial = None
                stack.close()
                stack.enter_context(self._fetcher.connection(url, self._stop))
                self._begin(url, stack)

    def _use_local_file(self, url: str) -> None:
        """Take a local file as it is, in place of what has arrived."""
        try:
            local = PartialFile.of_local_file(local_path(url), origin=shown(url))
        except OSError as error:
            raise Missing(str(error)) from error
        num_bytes = local.total_bytes or 0
        if self._expected_bytes not in (None, num_bytes):
            local.close()
            raise Unfit(f"it has {num_bytes} bytes, {self._expected_bytes} were expected")
        if self._partial is not None:
            self._partial.close()
        self._partial, self.url = local, shown(url)
        self._fetcher.arrive(num_bytes, self._advance)

    def _begin(self, url: str, stack: ExitStack) -> None:
        """First contact with nothing here: learn length and validator, keep the first bytes or the last."""
        try:
            reply = stack.enter_context(request(url, *self._first_span(url), stall_s=self._fetcher.stall_s))
        except (NoSuffixRange, NoRanges):  # some ignore a range from the end, and no other
            if not self._tail_bytes or host_of(url) in self._fetcher.suffixless:
                raise
            self._fetcher.suffixless.add(host_of(url))
            reply = stack.enter_context(request(url, *self._first_span(url), stall_s=self._fetcher.stall_s))
        self._check_length(reply)
        if reply.total_bytes is None:
            raise NoRanges("server does not say how long the file is")
        self._partial = PartialFile.create(self._path, reply.total_bytes, origin=shown(url), validator=reply.validator)
        self._store(url, reply)

    def _first_span(self, url: str) -> tuple[int, int | None]:
        """What to request first: the first bytes, or the last, for which some servers must be asked the length."""
        if not self._tail_bytes:
            return 0, CONTACT_BYTES
        if host_of(url) not in self._fetcher.suffixless:
            return -self._tail_bytes, None
        with request(url, 0, 1, stall_s=self._fetcher.stall_s) as reply:
            if reply.total_bytes is None:
                raise NoRanges("server does not say how long the file is")
            return max(0, reply.total_bytes - self._tail_bytes), max(1, reply.total_bytes)

    def _first_missing(self, url: str) -> Range | None:
        """Bytes that are needed anyway, so that seeing whether the file is as before costs nothing.

        None where nothing is missing and this mirror has shown its file before.
        """
        total = self.total_bytes
        tail_start = total - self._tail_bytes if self._tail_bytes else 0
        if missing := self.partial.missing([(tail_start, total)]):
            return missing[0][0], min(missing[0][1], missing[0][0] + max(CONTACT_BYTES, self._tail_bytes))
        if missing := self.partial.missing([(0, total)]):
            return missing[0][0], missing[0][0] + 1
        return None if shown(url) in self.partial.origins else (max(0, total - 1), total)

    def _fetch_range(self, url: str, stack: ExitStack, start: int, end: int) -> FetchError | None:
        """Fetch [start, end); returns the fault that ended it after some bytes, if one did."""
        known = None if url in self._fickle else self.partial.origins.get(shown(url))
        try:
            reply = stack.enter_context(request(url, start, end, validator=known, stall_s=self._fetcher.stall_s))
        except Changed as fault:
            if not self._has_same_end(url):
                raise
            if url not in self._fickle:
                log.warning("%s from %s: %s, though its end is the same", self._mirrors.name, shown(url), fault)
                self._fickle.add(url)
            reply = stack.enter_context(request(url, start, end, stall_s=self._fetcher.stall_s))
        self._check_length(reply)
        self._mirrors.note_success(url)
        is_news = known is None and reply.validator is not None and url not in self._fickle
        if shown(url) not in self.partial.origins or is_news:
            self.partial.add_origin(shown(url), reply.validator)
        return self._store(url, reply)

    def _has_same_end(self, url: str) -> bool:
        """Whether a file with another validator may be the same: in its length and last bytes, where a zip lists all.

        Its checksums tell the rest.
        """
        total = self.total_bytes
        start = max(0, total - self._tail_bytes)
        if not self._is_checked or self.partial.missing([(start, total)]):
            return False
        with request(url, start, total, stall_s=self._fetcher.stall_s) as reply:
            return reply.total_bytes == total and b"".join(reply.chunks) == self.partial.read(start, total)

    def _fetch_whole(self, url: str, stack: ExitStack) -> None:
        """For servers without ranges; every attempt starts over."""
        reply = stack.enter_context(request(url, stall_s=self._fetcher.stall_s))
        self._check_length(reply)
        if self._partial is None or self._partial.total_bytes is None:
            self._partial = PartialFile.create(
                self._path, reply.total_bytes, origin=shown(url), validator=reply.validator
            )
        else:
            self._partial.forget(0, self.total_bytes)
            self._partial.add_origin(shown(url), reply.validator)
        if fault := self._store(url, reply):
            raise fault
        if self._partial.total_bytes is None:
            if self._expected_bytes not in (None, self._partial.prefix):
                raise Unfit(f"it has {self._partial.prefix} bytes, {self._expected_bytes} were expected")
            self._partial.finish_unknown_length()
        if self._partial.missing([(0, self.total_bytes)]):
            raise Busy(f"body ended after {self._partial.prefix} of {self.total_bytes} bytes")
        self._fetcher.rangeless.add(host_of(url))

    def _check_length(self, reply: Reply) -> None:
        """Unfit or Changed when the file has another length than it must have, or had."""
        if reply.total_bytes is None:
            return
        if self._expected_bytes not in (None, reply.total_bytes):
            raise Unfit(f"it has {reply.total_bytes} bytes, {self._expected_bytes} were expected")
        if self._partial is not None and self._partial.total_bytes not in (None, reply.total_bytes):
            raise Changed(f"it has {reply.total_bytes} bytes, there were {self._partial.total_bytes}")

    def _store(self, url: str, reply: Reply) -> FetchError | None:
        """Keep bytes as they arrive. Raises a fault before the first, returns (and notes) one after some."""
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
                raise_if(self._stop)
        except FetchError as fault:
            if position == reply.start:
                raise
            self._mirrors.note_fault(url, fault)
            return fault
        finally:
            if position > reply.start:
                self.url = shown(url)
                self._delivered.append((reply.start, position, url))
        return None


def _overlapping(spans: Iterable[tuple[int, int, str]], start: int, end: int) -> list[str]:
    """URLs of the spans that share a byte with [start, end)."""
    return [url for one, two, url in spans if one < end and start < two]


class RemoteReader(io.RawIOBase):
    """A RemoteFile as an open file, for zipfile."""

    def __init__(self, file: RemoteFile) -> None:
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


class DaemonThreads(Generic[T]):
    """Threads that call `work` on each of `items`. The first error stops all.

    A ThreadPoolExecutor would not do: Python waits for its threads before it ends, and one that reads from a dead
    connection would keep an interrupted process alive for `stall_s`.
    """

    def __init__(self, work: Callable[[T], Any], items: Iterator[T], num_threads: int, stop: threading.Event) -> None:
        self._work, self._items, self._stop = work, items, stop
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    item = next(self._items, None)
                if item is None:
                    return
                self._work(item)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def are_done(self) -> bool:
        return bool(self._errors) or not any(thread.is_alive() for thread in self._threads)

    def wait(self) -> None:
        """Until all is done. Raises the first error at once: what hangs on a dead connection is left behind."""
        try:
            while not (self.are_done() or self._stop.is_set()):
                for thread in self._threads:
                    thread.join(LOOK_UP_S)
        except BaseException:
            self._stop.set()
            raise
        for thread in self._threads:
            thread.join(LOOK_UP_S if self._stop.is_set() else None)
        if self._errors:
            raise self._errors[0]
        raise_if(self._stop)
