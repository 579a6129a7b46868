"""An HTTP server for tests, over a folder or before a real S3 server, that goes wrong when asked to.

As a script it serves in a process of its own: `python tests/support/server.py FOLDER`, see `main`.
"""

import argparse
import http.client
import io
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

PIECE_BYTES = 64 << 10
PACED_BYTES = 8 << 10  # what is on its way when a client dies counts as sent
SLOW_S = 0.1  # between two bytes of a slow answer
HTML = b"<!doctype html><html><body>Please sign in</body></html>"
EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
GONE = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
PER_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")


class FaultServer:
    """Serves a folder, or forwards to `upstream`, on 127.0.0.1; HTTP/1.1 with keep-alive, ranges, ETag, If-Range.

    `faults` says how likely each fault is in a GET or HEAD, `script` what befalls the next requests of a path (not
    quoted, no query) before chance decides; "ok" in a script is no fault. Faults: 503, 429, 404, reset (RST
    mid-body), truncate, no_range (200 with the whole), wrong_bytes (one flipped bit), wrong_range (Content-Range of
    another place), html, expired (403 as S3 answers), slow (a byte now and then).
    `bytes_sent` counts bytes of bodies handed to a socket; its buffer is kept small (None: the system's size), so
    that this is close to what arrived. `bytes_per_s` holds every connection back. `etag` replaces the ETag of a file,
    called for each request with the one that it has; without it, None, there is no Last-Modified either. A range from
    the end is answered with `suffix_status`, if that is set; 200 is the full file.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        upstream: str | None = None,
        seed: int = 0,
        bytes_per_s: float | None = None,
        buffer_bytes: int | None = PIECE_BYTES,
    ) -> None:
        self.folder, self.upstream = folder, upstream
        self.bytes_per_s, self.buffer_bytes = bytes_per_s, buffer_bytes
        self.faults: dict[str, float] = {}
        self.script: dict[str, list[str]] = {}
        self.etag: Callable[[str], str | None] = str
        self.suffix_status: int | None = None
        self.random = random.Random(seed)
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.reset_counts()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._http.daemon_threads, self._http.request_queue_size, self._http.owner = True, 128, self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "FaultServer":
        self._http.server_bind()
        self._http.server_activate()
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def reset_counts(self) -> None:
        with self._lock:
            self.requests: list[tuple[str, str, str | None]] = []
            self.bytes_sent = 0
            self.befell: dict[str, int] = {}

    def next_fault(self, method: str, path: str, span: str | None) -> str:
        """Note the request; answer what is to befall it, "ok" for nothing."""
        with self._lock:
            self.requests.append((method, path, span))
            fault = self._draw(path) if method in ("GET", "HEAD") else "ok"
            self.befell[fault] = self.befell.get(fault, 0) + 1
            return fault

    def _draw(self, path: str) -> str:
        if self.script.get(path):
            return self.script[path].pop(0)
        chance = self.random.random()
        for fault, probability in self.faults.items():
            chance -= probability
            if chance < 0:
                return fault
        return "ok"

    def position(self, num_bytes: int) -> int:
        """A random place in a body."""
        with self._lock:
            return self.random.randrange(max(1, num_bytes))

    def count(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_sent += num_bytes

    @contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        """Remember a connection while it is served, so that it does not outlive the server."""
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side may have been first
        connection.shutdown(socket.SHUT_RDWR)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    num_bytes: int
    stream: io.RawIOBase | http.client.HTTPResponse  # stands where the body begins


def _page(status: int, body: bytes, kind: str = "application/xml", **headers: str) -> Answer:
    return Answer(status, {"Content-Type": kind} | headers, len(body), io.BytesIO(body))


# Status and body of the faults that replace an answer
PAGES = {
    "503": lambda: _page(503, b"SlowDown", **{"Retry-After": "0"}),
    "429": lambda: _page(429, b"SlowDown", **{"Retry-After": "0"}),
    "404": lambda: _page(404, GONE),
    "expired": lambda: _page(403, EXPIRED),
    "html": lambda: _page(200, HTML, "text/html; charset=utf-8"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        self.owner: FaultServer = self.server.owner
        if self.owner.buffer_bytes:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.owner.buffer_bytes)
        super().setup()

    def handle(self):
        with self.owner.connected(self.connection), suppress(OSError):  # clients go away
            super().handle()

    def log_message(self, *args):
        pass

    def serve(self):
        path = unquote(urlsplit(self.path).path)
        if path == "/.control":
            self.count = int  # answers about the counts are not counted
            self._send(self._control(), "ok")
            return
        self.count = self.owner.count
        fault = self.owner.next_fault(self.command, path, self.headers.get("Range"))
        with self._answer(path, fault) as answer:
            self._send(_bent(answer, fault), fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def _control(self) -> Answer:
        """For a server in another process: GET answers the counts, PUT {"faults", "script"} starts them anew."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "PUT":
            values = json.loads(body)
            self.owner.faults, self.owner.script = values.get("faults", {}), values.get("script", {})
            self.owner.reset_counts()
        owner = self.owner
        counts = {"bytes_sent": owner.bytes_sent, "num_requests": len(owner.requests), "befell": owner.befell}
        return _page(200, json.dumps(counts).encode(), "application/json")

    @contextmanager
    def _answer(self, path: str, fault: str) -> Iterator[Answer]:
        if fault in PAGES:
            yield PAGES[fault]()
        elif self.owner.upstream:
            with _forward(self) as answer:
                yield answer
        elif self.command not in ("GET", "HEAD"):
            yield _page(405, b"", Connection="close")
        elif self._is_suffix() and self.owner.suffix_status not in (None, 200):
            yield _page(self.owner.suffix_status, b"")
        elif not (file := self.owner.folder / path.lstrip("/")).is_file():
            yield _page(404, GONE)
        else:
            with file.open("rb", buffering=0) as stream:
                ignores_range = fault == "no_range" or (self._is_suffix() and self.owner.suffix_status == 200)
                yield _of_file(stream, {} if ignores_range else self.headers, self.owner.etag)

    def _is_suffix(self) -> bool:
        return self.headers.get("Range", "").startswith("bytes=-")

    def _send(self, answer: Answer, fault: str) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.num_bytes))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "slow":
            self._send_slowly(answer)
        elif fault in ("reset", "truncate"):
            self._send_bytes(answer.stream, self.owner.position(answer.num_bytes))
            self._hang_up(fault)
        elif fault == "wrong_bytes" and answer.num_bytes:
            self._send_flipped(answer)
        elif self._send_bytes(answer.stream, answer.num_bytes) < answer.num_bytes:
            self.close_connection = True  # upstream had less than it said

    def _send_bytes(self, stream, num_bytes: int) -> int:
        """Send so many bytes, or all that there are; answer how many."""
        piece_bytes = PACED_BYTES if self.owner.bytes_per_s else PIECE_BYTES
        started, sent = time.monotonic(), 0
        while sent < num_bytes:
            moved = self._send_piece(stream, min(piece_bytes, num_bytes - sent))
            if not moved:
                break
            sent += moved
            if self.owner.bytes_per_s:
                time.sleep(max(0.0, started + sent / self.owner.bytes_per_s - time.monotonic()))
        return sent

    def _send_piece(self, stream, num_bytes: int) -> int:
        if isinstance(stream, io.FileIO):  # the kernel moves it, this process does not see it
            moved = os.sendfile(self.connection.fileno(), stream.fileno(), None, num_bytes)
            self.count(moved)
            return moved
        left = piece = memoryview(stream.read(num_bytes))
        while left:
            moved = self.connection.send(left)
            self.count(moved)
            left = left[moved:]
        return len(piece)

    def _send_flipped(self, answer: Answer) -> None:
        place = self.owner.position(answer.num_bytes)
        self._send_bytes(answer.stream, place)
        self._send_bytes(io.BytesIO(bytes([answer.stream.read(1)[0] ^ 1])), 1)
        self._send_bytes(answer.stream, answer.num_bytes - place - 1)

    def _send_slowly(self, answer: Answer) -> None:
        for _ in range(answer.num_bytes):
            self._send_bytes(answer.stream, 1)
            if self.owner.stopped.wait(SLOW_S):
                break
        self.close_connection = True

    def _hang_up(self, fault: str) -> None:
        self.close_connection = True
        if fault == "reset":  # closing without lingering sends RST and drops what is still in the buffer
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def _of_file(stream: io.FileIO, asked, etag: Callable[[str], str | None]) -> Answer:
    """What a good server answers for a file, by the headers of the request."""
    status = os.fstat(stream.fileno())
    total = status.st_size
    tag = etag(f'"{status.st_mtime_ns:x}-{total:x}"')
    validators = {"ETag": tag, "Last-Modified": formatdate(status.st_mtime, usegmt=True)} if tag else {}
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | validators
    if asked.get("If-Match", tag) not in (tag, "*"):
        return _page(412, b"<Error><Code>PreconditionFailed</Code></Error>")
    span = _span(asked.get("Range", ""), total)
    if span is None or ("If-Range" in asked and asked["If-Range"] not in validators.values()):
        return Answer(200, headers, total, stream)
    start, end = span
    if start >= end:
        return _page(416, b"<Error><Code>InvalidRange</Code></Error>", **{"Content-Range": f"bytes */{total}"})
    stream.seek(start)
    return Answer(206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{total}"}, end - start, stream)


def _span(text: str, total: int) -> tuple[int, int] | None:
    """[start, end) of a Range header; empty when it cannot be met, None when it is to be ignored."""
    first, dash, last = text.removeprefix("bytes=").partition("-")
    if not dash or not (first + last).isdigit() or not text.startswith("bytes="):
        return None
    if not first:
        return max(0, total - int(last)), total
    return int(first), min(total, int(last) + 1 if last else total)


def _bent(answer: Answer, fault: str) -> Answer:
    """The answer with headers that lie, for the faults which lie in headers."""
    span = answer.headers.get("Content-Range", "").removeprefix("bytes ")
    if answer.status != 206 or fault not in ("wrong_range", "no_range"):
        return answer
    place, total = span.split("/")
    first, last = map(int, place.split("-"))
    if fault == "wrong_range":
        moved = f"bytes {first + 1}-{last + 1}/{max(int(total), last + 2)}"
        return answer._replace(headers=answer.headers | {"Content-Range": moved})
    # Only before an upstream: its signature covers the range, so the whole cannot be asked for. The body ends early.
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
    return answer._replace(status=200, headers=headers, num_bytes=int(total))


@contextmanager
def _forward(handler: Handler) -> Iterator[Answer]:
    """Ask upstream the same, Host and signature untouched."""
    upstream = urlsplit(handler.owner.upstream)
    connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=60)
    try:
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            if name.lower() not in PER_HOP or name.lower() == "content-length":
                connection.putheader(name, value)
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        connection.endheaders(body or None)
        reply = connection.getresponse()
        headers = {name: value for name, value in reply.getheaders() if name.lower() not in PER_HOP}
        num_bytes, stream = reply.getheader("Content-Length"), reply
        if num_bytes is None:
            whole = reply.read()
            num_bytes, stream = len(whole), io.BytesIO(whole)
        yield Answer(reply.status, headers, int(num_bytes), stream)
    finally:
        connection.close()


def main() -> None:
    """Serve until standard input ends; the first line printed is the URL. Counts and faults: see `_control`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--upstream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bytes-per-s", type=float)
    parser.add_argument("--buffer-bytes", type=int, default=PIECE_BYTES, help="0: as the system has it")
    options = parser.parse_args()
    with FaultServer(**vars(options)) as server:
        print(server.url, flush=True)
        os.read(0, 1)


if __name__ == "__main__":
    main()
