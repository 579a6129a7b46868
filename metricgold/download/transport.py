"""One request for bytes, to a web server, to S3 or to a local file, its answer checked against what was asked.

Nothing is tried twice here: every fault becomes the FetchError that says what can be done about it.
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
WORTH_HANDING_ON_BYTES = 1 << 16  # a kill loses what is held back, and each step costs a line in a journal
MAX_HELD_S = 0.05  # what trickles in is handed on after this time, however little it is
BUSY_CODES = (408, 425, 429)


class FetchError(OSError):
    """The bytes did not come. `wait_s` is how long the server wants to be left alone, if it said so."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class Missing(FetchError):
    """There is no such thing there."""


class Refused(FetchError):
    """Not for us, or no longer: also what an expired signature gives."""


class Busy(FetchError):
    """It may work later: overload, a lost or too slow connection, a body that ended early."""


class Unfit(FetchError):
    """The answer is not what was asked for."""


class NoRanges(Unfit):
    """A range was asked for, the whole was answered."""


class Changed(Unfit):
    """What lies there now is not what `validator` names."""


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


class _Asked(NamedTuple):
    url: str
    start: int | None
    end: int | None
    validator: str | None
    stall_s: float

    @property
    def range(self) -> dict[str, str]:
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
    """Ask for the whole (no `start`), the last n bytes (`start` = -n), or bytes [start, end), to the end if None.

    Raises a FetchError, here or from `chunks`. A connection whose answer was not read to its end is closed.
    """
    asked = _Asked(url, start, end, validator, stall_s)
    if url.startswith("file:"):
        with _open_file(url) as file:
            yield _reply_file(asked, file)
        return
    send = _send_s3 if url.startswith("s3:") else _send_http
    status, headers, body = send(asked)
    try:
        yield _reply(asked, status, headers, body)
    finally:
        body.close()


def shown(url: str) -> str:
    """The URL without user info and query, for logs, errors and ledgers."""
    if url.startswith("file:"):
        return url
    parts = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2])
    return urlunsplit(parts._replace(query="", fragment="")) if parts.scheme.startswith("http") else urlunsplit(parts)


def host_of(url: str) -> str:
    """Whom a request to this URL burdens: host and port, or bucket; nobody for a local file."""
    return "" if url.startswith("file:") else urlsplit(url).netloc.rpartition("@")[2].lower()


def local_path(url: str) -> Path:
    """Where file://data/x (relative to the working directory) or file:///data/x (absolute) lies."""
    return Path(unquote(url.removeprefix("file://")))


# Local files


def _open_file(url: str) -> BinaryIO:
    try:
        return local_path(url).open("rb")
    except OSError as error:
        raise Missing(str(error)) from error


def _reply_file(asked: _Asked, file: BinaryIO) -> Reply:
    status = os.fstat(file.fileno())
    validator, total = f'"{status.st_size:x}-{status.st_mtime_ns:x}"', status.st_size
    if asked.validator not in (None, validator):
        raise Changed("file has changed")
    start = max(0, total + asked.start) if (asked.start or 0) < 0 else asked.start or 0
    end = total if asked.end is None else min(asked.end, total)
    if start > end:
        raise Unfit(f"file has {total} bytes, byte {start} was asked for")
    return Reply(start, end, total, validator, _file_chunks(file, start, end))


def _file_chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
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


def _send_http(asked: _Asked) -> tuple[int, Mapping[str, str], Any]:
    parts = urlsplit(asked.url)
    user, _, host = parts.netloc.rpartition("@")
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    pool = _pool(os.getpid(), proxy)
    headers = dict(pool.headers) | asked.range
    if user:
        headers |= urllib3.make_headers(basic_auth=unquote(user))
    if asked.range and asked.validator:
        headers["If-Range"] = asked.validator
    try:
        body = pool.request(
            "GET",
            urlunsplit(parts._replace(netloc=host)),
            headers=headers,
            preload_content=False,
            decode_content=False,
            timeout=asked.stall_s,
            retries=urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=10),
        )
    except HTTPError as error:
        raise _connection_fault(error) from None  # its text may hold a signed query
    if body.status not in (200, 206, 416):
        body.close()
        raise _status_fault(body.status, body.headers, f"HTTP {body.status} {body.reason or ''}".strip())
    return body.status, body.headers, body


def _connection_fault(error: Exception) -> FetchError:
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    kind = Unfit if isinstance(reason, ResponseError | LocationParseError) else Busy
    text = re.sub(r"<[^>]*>: |\w*Pool\([^)]*\): ", "", str(reason))
    return kind(re.sub(r"\?[^\s'\"]*|(?<=//)[^/\s]*@", "", text))


def _status_fault(status: int, headers: Mapping[str, str], reason: str) -> FetchError:
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
def _s3_client(pid: int, environment: tuple[tuple[str, str], ...], stall_s: float) -> Any:
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


def _send_s3(asked: _Asked) -> tuple[int, Mapping[str, str], Any]:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError
    from botocore.parsers import ResponseParserError

    bucket, _, key = asked.url.removeprefix("s3://").partition("/")
    condition = {"IfMatch": asked.validator} if asked.validator else {}
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    try:
        client = _s3_client(os.getpid(), environment, asked.stall_s)
        answer = client.get_object(Bucket=bucket, Key=key, **asked.range, **condition)
    except ClientError as error:
        facts = error.response["ResponseMetadata"]
        status, headers, code = facts["HTTPStatusCode"], facts["HTTPHeaders"], error.response["Error"]["Code"]
        if status == 416:
            return status, headers, urllib3.HTTPResponse(b"")
        raise _status_fault(status, headers, f"HTTP {status} {code}") from None
    except (BotoCoreError, ResponseParserError, ValueError) as error:
        kinds = {NoCredentialsError: Refused, ParamValidationError: Unfit, ValueError: Unfit}
        raise kinds.get(type(error), Busy)(str(_connection_fault(error))) from None
    facts = answer["ResponseMetadata"]
    # Under boto3's wrapper lies the same body as that of a web server; only it can hand over what has arrived.
    return facts["HTTPStatusCode"], facts["HTTPHeaders"], answer["Body"]._raw_stream


# Answers


def _reply(asked: _Asked, status: int, headers: Mapping[str, str], body: Any) -> Reply:
    etag = headers.get("etag", "")
    validator = etag if etag.startswith('"') else headers.get("last-modified")
    if status == 416:
        return _reply_nothing(asked, headers, validator)
    _check_kind(asked, headers)
    if asked.validator and validator and validator != asked.validator:
        raise Changed(f"changed from {asked.validator} to {validator}")
    length = int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
    if status == 200:
        if asked.start is not None and (asked.start > 0 or length != 0):  # of nothing the whole is any range
            raise NoRanges("server answers ranges with the whole")
        start, end, total = 0, length, length
    else:
        start, end, total = _content_range(asked, headers)
        if length not in (None, end - start):
            raise Unfit(f"Content-Length {length} for a range of {end - start} bytes")
    length = None if end is None else end - start
    return Reply(start, end, total, validator, _gather(_measure(_receive(body, asked.stall_s), length)))


def _check_kind(asked: _Asked, headers: Mapping[str, str]) -> None:
    path = urlsplit(asked.url).path.lower()
    kind, encoding = headers.get("content-type", "").lower(), headers.get("content-encoding", "identity").lower()
    if kind.startswith("text/html") and not path.endswith((".html", ".htm")):
        raise Unfit("an HTML page was answered")
    if kind.startswith("multipart/"):
        raise Unfit(f"an answer in parts, {kind.partition(';')[0]}")
    # Some servers call a .gz file gzip-encoded; its bytes are still the file's own.
    if encoding != "identity" and not path.endswith((".gz", ".tgz")):
        raise Unfit(f"Content-Encoding {encoding}")


def _content_range(asked: _Asked, headers: Mapping[str, str]) -> tuple[int, int, int | None]:
    """start, end, total as said; Unfit unless they answer the question. Fewer bytes than asked for are an answer."""
    said = headers.get("content-range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", said.strip())
    if asked.start is None or not match:
        raise Unfit(f"unexpected Content-Range {said!r}")
    start, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    if asked.start < 0:
        fits = total is not None and (start, end) == (max(0, total + asked.start), total)
    else:
        fits = asked.start == start < end <= min(asked.end or end, total or end)
    if not fits:
        raise Unfit(f"Content-Range {said!r} does not answer {asked.range['Range']!r}")
    return start, end, total


def _reply_nothing(asked: _Asked, headers: Mapping[str, str], validator: str | None) -> Reply:
    """A range that starts at the end, or any of an empty file, cannot be satisfied: that is no bytes, not a fault."""
    said = headers.get("content-range", "").rpartition("*/")[2]
    total = int(said) if said.isdecimal() else 0
    if total != max(0, asked.start or 0):
        raise (Changed if asked.validator else Unfit)(f"{asked.range['Range']!r} is not in a file of {total} bytes")
    return Reply(total, total, total, validator, iter(()))


def _receive(body: Any, stall_s: float) -> Iterator[bytes]:
    """Bytes as they arrive. Busy when nothing comes for `stall_s` seconds, or too little in as many."""
    waited_s = num_bytes = 0.0
    while True:
        before = time.monotonic()
        try:
            block = body.read1(RECEIVE_BYTES)
        except (HTTPError, HTTPException, OSError) as error:
            raise Busy(str(_connection_fault(error))) from None
        if not block:
            return
        # Only time spent here counts: a slow reader is no slow server.
        waited_s, num_bytes = waited_s + time.monotonic() - before, num_bytes + len(block)
        yield block
        if waited_s >= stall_s:
            if num_bytes < MIN_BYTES_PER_S * waited_s:
                raise Busy(f"{num_bytes:.0f} bytes in {waited_s:.0f} s are too few")
            waited_s = num_bytes = 0.0


def _measure(blocks: Iterator[bytes], length: int | None) -> Iterator[bytes]:
    num_bytes = 0
    for block in blocks:
        num_bytes += len(block)
        if length is not None and num_bytes > length:
            raise Unfit(f"body is longer than {length} bytes")
        yield block
    if length is not None and num_bytes < length:
        raise Busy(f"body ended {length - num_bytes} bytes early")


def _gather(blocks: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    num_bytes, since = 0, time.monotonic()
    try:
        for block in blocks:
            held.append(block)
            num_bytes += len(block)
            if num_bytes >= WORTH_HANDING_ON_BYTES or time.monotonic() - since > MAX_HELD_S:
                yield held[0] if len(held) == 1 else b"".join(held)
                held, num_bytes, since = [], 0, time.monotonic()
    except FetchError:
        if held:
            yield b"".join(held)
        raise
    if held:
        yield b"".join(held)
