"""An S3 store that makes everything up: NUM numbered objects below in/, and the receipt of a run that did most of them.

`python stub.py NUM NUM_DONE ROW PHOTO`: ROW is a file with the receipt's row of object 0, PHOTO one with every object's
bytes. What is put is swallowed, but for the lease. The first line printed is the URL; ends with standard input.
"""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
TAG = "0" * 32
DATE = "Sun, 01 Nov 2026 00:00:00 GMT"
LEASE = ".metricgold-lease.json"


def name(number: int) -> str:
    return f"{number:08d}.jpg"


class Stub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, num: int, num_done: int, row: bytes, photo: bytes, suffixes: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.num, self.num_done, self.row, self.photo, self.suffixes = num, num_done, row, photo, sorted(suffixes)
        self.lease = None

    def keys(self, prefix: str, after: str) -> Iterator[str]:
        """Keys after one, in order."""
        first = max(0, int(after.split("/")[1][:8])) if after[-1:] and after.split("/")[1][:8].isdigit() else 0
        for number in range(first, self.num if prefix == "in/" else self.num_done):
            made = [""] if prefix == "in/" else self.suffixes
            yield from (key for key in (prefix + name(number) + suffix for suffix in made) if key > after)

    def receipt(self) -> Iterator[bytes]:
        for number in range(self.num_done):
            yield self.row.replace(name(0).encode(), name(number).encode())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", num_bytes: int | None = None) -> None:
        self.send_response_only(status)
        headers = {"Date": DATE, "Last-Modified": DATE, "ETag": f'"{TAG}"', "Content-Type": "application/xml"}
        for key, value in (headers | {"Content-Length": str(len(body) if num_bytes is None else num_bytes)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        key = url.path.split("/", 2)[2] if url.path.count("/") > 1 else ""
        if not key:
            query = {key: value[0] for key, value in parse_qs(url.query).items()}
            self.answer(200, self.page(query) if "prefix" in query else b"")
        elif key.startswith("in/"):
            self.answer(200, self.server.photo)
        elif key.endswith(LEASE) and self.server.lease:
            self.answer(200, self.server.lease)
        elif key.endswith("receipt.jsonl") and self.server.num_done:
            self.answer(200, num_bytes=len(self.server.row) * self.server.num_done)
            if self.command == "GET":
                self.wfile.writelines(self.server.receipt())
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    do_HEAD = do_GET

    def page(self, query: dict[str, str]) -> bytes:
        after = query.get("continuation-token") or query.get("start-after", "")
        keys = list(islice(self.server.keys(query["prefix"], after), PAGE + 1))
        each = f"<Size>{len(self.server.photo)}</Size><ETag>{TAG}</ETag>"
        found = "".join(f"<Contents><Key>{key}</Key>{each}</Contents>" for key in keys[:PAGE])
        more = f"<NextContinuationToken>{keys[PAGE - 1]}</NextContinuationToken>" if len(keys) > PAGE else ""
        is_cut = str(len(keys) > PAGE).lower()
        return f"<ListBucketResult><IsTruncated>{is_cut}</IsTruncated>{more}{found}</ListBucketResult>".encode()

    def do_PUT(self) -> None:
        left, kept = int(self.headers["Content-Length"]), b""
        while left:
            kept = self.rfile.read(min(left, 1 << 20))
            left -= len(kept)
        if self.path.endswith(LEASE):
            self.server.lease = kept
        self.answer(200)

    def do_POST(self) -> None:
        """A large file in parts begins, or is complete."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        begins = "uploads" in urlsplit(self.path).query.split("&")
        kind = "InitiateMultipartUploadResult" if begins else "CompleteMultipartUploadResult"
        body = f'<{kind}><UploadId>one</UploadId><ETag>"{TAG}"</ETag></{kind}>'
        self.answer(200, body.encode())

    def do_DELETE(self) -> None:
        self.answer(204)


def main() -> None:
    num, num_done, row, photo, *suffixes = sys.argv[1:]
    server = Stub(int(num), int(num_done), Path(row).read_bytes(), Path(photo).read_bytes(), suffixes)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
