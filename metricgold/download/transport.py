"""One request for bytes, to a web server, to S3 or to a local file, its answer checked against the request.

Nothing is tried twice here: every fault becomes the FetchError that says what can be done about it, see the table of
metricgold.download.mirrors.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError, ResponseError

from metricgold.storage import BLOCK_BYTES

RECEIVE_BYTES = BLOCK_BYTES // 2
MIN_BYTES_PER_S = 1_000
CHUNK_BYTES = 1 << 16  # a kill loses what is held back, and each chunk costs a line in a journal
MAX_HELD_S = 0.05  # what trickles in is given out after this time, however little it is
BUSY_CODES = (408, 425, 429)


class FetchError(OSError):
    """The bytes did not come. `wait_s` is how long the server wants no request, if it says so."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Missing(FetchError):
    """The file is not there."""


class Refused(FetchError):
    """No permission, or no longer: an expired signature gives this, too."""


class Busy(FetchError):
    """It may work later: overload, a lost or too slow connection, a body that ended early."""


class Unfit(FetchError):
    """The answer is not what was requested."""


class NoRanges(Unfit):
    """The server answers a request for a range with the full file."""


class NoSuffixRange(Unfit):
    """The server refuses a range that counts from the end of the file."""


class Changed(Unfit):
    """The file that is there now is not the one that `validator` names."""


@dataclass(frozen=True)
class Reply:
    """Bytes [start, end) of `total_bytes`; `end` and the total are None where the server does not say.

    `validator`: the strong ETag, else Last-Modified, else None. `chunks`: at most 1 MiB each; what arrived before a
    fault comes out before the fault does.
    """

    start: int
    end: int | None
    total_bytes: int | None
    validator: str | None
    chunks: Iterator[bytes]


class RangeRequest(NamedTuple):
    """Parameters of `request`."""

    url: str
    start: int | None
    end: int | None
    validator: str | None
    stall_s: float

    @property
    def is_suffix(self) -> bool:
        """Whether it is for the last n bytes, wherever they begin."""
        return self.start is not None and self.start < 0

    @property
    def headers(self) -> dict[str, str]:
        """The Range header, if it is not the full file."""
        if self.start is None:
            return {}
        last = "" if self.end is None else self.end - 1
        return {"Range": f"bytes={self.start}" if self.start < 0 else f"bytes={self.start}-{last}"}


@contextmanager
def request(
    url: str,
    start: int | None = None,
    end: int | None = None,
    *,
    validator: str | None = None,
    stall_s: float = 30.0,
) -> Iterator[Reply]:
    """Request the full file (no `start`), the last n bytes (`start` = -n), or bytes [start, end), to the end if None.

    Raises a FetchError, here or from `chunks`. A connection whose answer was not read to its end is closed.
    """
    wanted = RangeRequest(url, start, end, validator, stall_s)
    if url.startswith("file:"):
        try:
            file = local_path(url).open("rb")
        except OSError as error:
            raise Missing(str(error)) from error
        with file:
            yield reply_of_file(wanted, file)
        return
    status, headers, body = send_s3(wanted) if url.startswith("s3:") else send_http(wanted)
    try:
        yield reply_of_server(wanted, status, headers, body)
    finally:
        body.close()


def shown(url: str) -> str:
    """The URL without user info and query, for logs, errors and ledgers."""
    if url.startswith("file:"):
        return url
    parts = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2])
    return urlunsplit(parts._replace(query="", fragment="")) if parts.scheme.startswith("http") else urlunsplit(parts)


def host_of(url: str) -> str:
    """The server that a request to this URL burdens: host and port, or bucket; empty for a local file."""
    return "" if url.startswith("file:") else urlsplit(url).netloc.rpartition("@")[2].lower()


def local_path(url: str) -> Path:
    """Path of file://data/x (relative to the working directory) or file:///data/x (absolute)."""
    return Path(unquote(url.removeprefix("file://")))


# Local files


def reply_of_file(wanted: RangeRequest, file: BinaryIO) -> Reply:
    """What a server would answer that has this file; its validator is made of size and time."""
    status = os.fstat(file.fileno())
    validator, total = f'"{status.st_size:x}-{status.st_mtime_ns:x}"', status.st_size
    if wanted.validator not in (None, validator):
        raise Changed("file has changed")
    start = wanted.start or 0
    start = max(0, total + start) if start < 0 else start
    end = total if wanted.end is None else min(wanted.end, total)
    if start > end:
        raise Unfit(f"file has {total} bytes, byte {start} was requested")
    return Reply(start, end, total, validator, _file_chunks(file, start, end))


def _file_chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Bytes [start, end); Busy when the disk fails or the file is shorter by now."""
    try:
        file.seek(start)
        while start < end:
            chunk = file.read(min(BLOCK_BYTES, end - start))
            if not chunk:
                raise Busy(f"file ended {end - start} bytes early")
            start += len(chunk)
            yield chunk
    except OSError as error:
        raise error if isinstance(error, FetchError) else Busy(str(error)) from error


# Web servers


@lru_cache
def _pool(pid: int, proxy: str | None) -> urllib3.PoolManager:
    """One pool of connections for the process `pid`: a forked child must not share its parent's."""
    maker = urllib3.ProxyManager(proxy, maxsize=64) if proxy else urllib3.PoolManager(maxsize=64)
    maker.headers = {"User-Agent": f"metricgold/{version('metricgold')}", "Accept-Encoding": "identity"}
    return maker


def send_http(wanted: RangeRequest) -> tuple[int, Mapping[str, str], Any]:
    """Status 200, 206 or 416, headers and body; the FetchError of any other status."""
    parts = urlsplit(wanted.url)
    user, _, host = parts.netloc.rpartition("@")
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    pool = _pool(os.getpid(), proxy)
    headers = dict(pool.headers) | wanted.headers
    if user:
        headers |= urllib3.make_headers(basic_auth=unquote(user))
    if wanted.headers and wanted.validator:
        headers["If-Range"] = wanted.validator
    try:
        body = pool.request(
            "GET",
            urlunsplit(parts._replace(netloc=host)),
            headers=headers,
            preload_content=False,
            decode_content=False,
            timeout=wanted.stall_s,
            retries=urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=10),
        )
    except HTTPError as error:
        raise _connection_fault(error) from None  # its text may hold a signed query
    if body.status not in (200, 206, 416):
        body.close()
        raise _status_fault(wanted, body.status, body.headers, f"HTTP {body.status} {body.reason or ''}".strip())
    return body.status, body.headers, body


def _connection_fault(error: Exception) -> FetchError:
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    kind = Unfit if isinstance(reason, ResponseError | LocationParseError) else Busy
    text = re.sub(r"<[^>]*>: |\w*Pool\([^)]*\): ", "", str(reason))
    return kind(re.sub(r"\?[^\s'\"]*|(?<=//)[^/\s]*@", "", text))


def _status_fault(wanted: RangeRequest, status: int, headers: Mapping[str, str], reason: str) -> FetchError:
    if status in (400, 501) and wanted.is_suffix:
        return NoSuffixRange(reason)
    if status in (404, 410):
        return Missing(reason)
    if status in (400, 401, 403, 407):
        return Refused(reason, _retry_after_s(headers))
    if status == 412:
        return Changed(reason)
    busy = status >= 500 or status in BUSY_CODES
    return Busy(reason, _retry_after_s(headers)) if busy else Unfit(reason)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    try:
        return float(text) if text.isdecimal() else max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


# S3


@lru_cache
def s3_client(pid: int, environment: tuple[tuple[str, str], ...], stall_s: float) -> Any:
    """One client for each process and setting of the AWS variables, which boto3 reads itself."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.Session()
    once = {"total_max_attempts": 1, "mode": "standard"}
    config = Config(connect_timeout=stall_s, read_timeout=stall_s, retries=once, max_pool_connections=64)
    if session.get_credentials() is None:
        config = config.merge(Config(signature_version=UNSIGNED))
    return session.client("s3", config=config)


def send_s3(wanted: RangeRequest) -> tuple[int, Mapping[str, str], Any]:
    """As send_http, of the object s3://bucket/key."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError
    from botocore.parsers import ResponseParserError

    bucket, _, key = wanted.url.removeprefix("s3://").partition("/")
    condition = {"IfMatch": wanted.validator} if wanted.validator else {}
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    try:
        client = s3_client(os.getpid(), environment, wanted.stall_s)
        answer = client.get_object(Bucket=bucket, Key=key, **wanted.headers, **condition)
    except ClientError as error:
        facts = error.response["ResponseMetadata"]
        status, headers, code = facts["HTTPStatusCode"], facts["HTTPHeaders"], error.response["Error"]["Code"]
        if status == 416:
            return status, headers, urllib3.HTTPResponse(b"")
        raise _status_fault(wanted, status, headers, f"HTTP {status} {code}") from None
    except (BotoCoreError, ResponseParserError, ValueError) as error:
        kinds = {NoCredentialsError: Refused, ParamValidationError: Unfit, ValueError: Unfit}
        raise kinds.get(type(error), Busy)(str(_connection_fault(error))) from None
    facts = answer["ResponseMetadata"]
    # boto3 wraps the same body that a web server's answer has; only that one gives out what has arrived (read1).
    return facts["HTTPStatusCode"], facts["HTTPHeaders"], answer["Body"]._raw_stream


# Answers


def reply_of_server(wanted: RangeRequest, status: int, headers: Mapping[str, str], body: Any) -> Reply:
    """The answer, if it is what was requested."""
    etag = headers.get("etag", "")
    validator = etag if etag.startswith('"') else headers.get("last-modified")
    if status == 416:
        return reply_of_no_bytes(wanted, headers, validator)
    check_content_type(wanted, headers)
    if wanted.validator and validator and validator != wanted.validator:
        raise Changed(f"changed from {wanted.validator} to {validator}")
    length = int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
    if status == 200:
        if wanted.start is not None and (wanted.start > 0 or length != 0):  # any range of an empty file is all of it
            raise NoRanges("server answers ranges with the full file")
        start, end, total = 0, length, length
    else:
        start, end, total = parse_content_range(wanted, headers.get("content-range", ""))
        if length not in (None, end - start):
            raise Unfit(f"Content-Length {length} for a range of {end - start} bytes")
    num_bytes = None if end is None else end - start
    return Reply(start, end, total, validator, _gather(_receive(body, num_bytes, wanted.stall_s)))


def reply_of_no_bytes(wanted: RangeRequest, headers: Mapping[str, str], validator: str | None) -> Reply:
    """A range that starts at the end, or any of an empty file, cannot be satisfied: that is no bytes, not a fault."""
    length = headers.get("content-range", "").rpartition("*/")[2]
    if wanted.is_suffix and length != "0":
        raise NoSuffixRange("HTTP 416 for the last bytes of a file")
    total = int(length) if length.isdecimal() else 0
    if total != max(0, wanted.start or 0):
        kind = Changed if wanted.validator else Unfit
        raise kind(f"{wanted.headers['Range']!r} is not in a file of {total} bytes")
    return Reply(total, total, total, validator, iter(()))


def check_content_type(wanted: RangeRequest, headers: Mapping[str, str]) -> None:
    """Unfit for a page instead of a file, for several ranges in one body, for bytes that were packed on the way."""
    path = urlsplit(wanted.url).path.lower()
    kind, encoding = headers.get("content-type", "").lower(), headers.get("content-encoding", "identity").lower()
    if kind.startswith("text/html") and not path.endswith((".html", ".htm")):
        raise Unfit("an HTML page was answered")
    if kind.startswith("multipart/"):
        raise Unfit(f"an answer in parts, {kind.partition(';')[0]}")
    # Some servers call a .gz file gzip-encoded; its bytes are still the file's own.
    if encoding != "identity" and not path.endswith((".gz", ".tgz")):
        raise Unfit(f"Content-Encoding {encoding}")


def parse_content_range(wanted: RangeRequest, header: str) -> tuple[int, int, int | None]:
    """start, end and total of a Content-Range; Unfit unless it answers the request, with fewer bytes at most."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header.strip())
    if wanted.start is None or not match:
        raise Unfit(f"unexpected Content-Range {header!r}")
    start, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    if wanted.start < 0:
        fits = total is not None and (start, end) == (max(0, total + wanted.start), total)
    else:
        fits = wanted.start == start < end <= min(wanted.end or end, total or end)
    if not fits:
        raise Unfit(f"Content-Range {header!r} does not answer {wanted.headers['Range']!r}")
    return start, end, total


def _receive(body: Any, length: int | None, stall_s: float) -> Iterator[bytes]:
    """Bytes as they arrive, `length` of them if that is known.

    Busy when nothing comes for `stall_s` seconds, or too little in as many, or when the body ends early; Unfit when
    it is longer.
    """
    total_bytes, num_bytes, waited_s = 0, 0, 0.0
    while True:
        before = time.monotonic()
        try:
            block = body.read1(RECEIVE_BYTES)
        except (HTTPError, HTTPException, OSError) as error:
            raise Busy(str(_connection_fault(error))) from None
        if not block:
            break
        # Only time spent here counts: a slow reader does not make a slow server.
        waited_s += time.monotonic() - before
        num_bytes, total_bytes = num_bytes + len(block), total_bytes + len(block)
        if length is not None and total_bytes > length:
            raise Unfit(f"body is longer than {length} bytes")
        yield block
        if waited_s >= stall_s:
            if num_bytes < MIN_BYTES_PER_S * waited_s:
                raise Busy(f"{num_bytes} bytes in {waited_s:.0f} s are too few")
            waited_s, num_bytes = 0.0, 0
    if length is not None and total_bytes < length:
        raise Busy(f"body ended {length - total_bytes} bytes early")


def _gather(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Few chunks of many blocks; what came before a fault comes out before it."""
    held: list[bytes] = []
    num_bytes, since = 0, time.monotonic()
    try:
        for block in blocks:
            held.append(block)
            num_bytes += len(block)
            if num_bytes >= CHUNK_BYTES or time.monotonic() - since > MAX_HELD_S:
                yield held[0] if len(held) == 1 else b"".join(held)
                held, num_bytes, since = [], 0, time.monotonic()
    except FetchError:
        if held:
            yield b"".join(held)
        raise
    if held:
        yield b"".join(held)
