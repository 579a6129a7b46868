"""One request: what is asked for comes, and what is not is told apart."""

import gzip
import os
import socketserver
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate

import pytest

from metricgold import __version__
from metricgold.download.transport import (
    Busy,
    Changed,
    FetchError,
    Missing,
    NoRanges,
    Refused,
    Unfit,
    host_of,
    request,
    shown,
)
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401 - fixtures
from tests.support.server import FaultServer
from tests.support.workers import sent

TRUTH = bytes(range(256)) * 12_000  # 3 MB


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a b.bin").write_bytes(TRUTH)
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


@pytest.fixture(params=["file", "http"])
def base(request, folder):
    if request.param == "file":
        yield f"file://{folder}"
    else:
        with FaultServer(folder) as server:
            yield server.url


def take(url, *span, **options):
    with request(url, *span, **options) as reply:
        chunks = list(reply.chunks)
    assert all(0 < len(chunk) <= 1 << 20 for chunk in chunks)
    return reply, b"".join(chunks)


@pytest.mark.parametrize(
    ("span", "expected"),
    [((), (0, 3_072_000)), ((5,), (5, 3_072_000)), ((7, 1_100_000), (7, 1_100_000)), ((-9,), (3_071_991, 3_072_000))],
)
def test_spans(base, span, expected):
    reply, body = take(f"{base}/a%20b.bin", *span)
    assert (reply.start, reply.end, reply.total_bytes) == (*expected, len(TRUTH))
    assert body == TRUTH[slice(*expected)]
    assert take(f"{base}/a%20b.bin", *span, validator=reply.validator)[1] == body


@pytest.mark.parametrize("span", [(), (0, 5), (-5,), (0,)])
def test_an_empty_file(base, span):
    reply, body = take(f"{base}/empty", *span)
    assert (reply.start, reply.end, reply.total_bytes, body) == (0, 0, 0, b"")


def test_more_than_there_is(base):
    assert take(f"{base}/a%20b.bin", -9_000_000)[1] == TRUTH
    assert take(f"{base}/a%20b.bin", 3_000_000, 9_000_000)[1] == TRUTH[3_000_000:]
    assert take(f"{base}/a%20b.bin", len(TRUTH))[1] == b""
    with pytest.raises(Unfit):
        take(f"{base}/a%20b.bin", 9_000_000, 9_000_001)


def test_what_is_missing_or_has_changed(base, folder):
    with pytest.raises(Missing):
        take(f"{base}/nothing")
    validator = take(f"{base}/empty")[0].validator
    (folder / "empty").write_bytes(b"full")
    with pytest.raises(Changed):
        take(f"{base}/empty", 0, 2, validator=validator)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("503", Busy, "HTTP 503"),
        ("429", Busy, "HTTP 429"),
        ("404", Missing, "HTTP 404"),
        ("expired", Refused, "HTTP 403"),
        ("html", Unfit, "HTML page"),
        ("no_range", NoRanges, "with the full file"),
        ("wrong_range", Unfit, "does not answer 'bytes=10-2000000'"),
        ("reset", Busy, "reset|broken"),
        ("truncate", Busy, "early|broken"),
        ("slow", Busy, "too few"),
    ],
)
def test_faults(folder, fault, kind, message):
    with FaultServer(folder) as server:
        server.faults = {fault: 1.0}
        with pytest.raises(kind, match=message) as caught:
            take(f"{server.url}/a%20b.bin?secret=1", 10, 2_000_001, stall_s=0.5)
        assert type(caught.value) is kind
        assert "secret" not in str(caught.value)
        assert caught.value.wait_s == (0.0 if fault in ("503", "429") else None)
        copy = sent(caught.value)
        assert (type(copy), str(copy), copy.wait_s) == (kind, str(caught.value), caught.value.wait_s)


@pytest.mark.parametrize("fault", ["reset", "truncate"])
def test_what_arrived_before_a_fault_is_not_lost(folder, fault):
    with FaultServer(folder) as server:
        server.faults, arrived = {fault: 1.0}, b""
        with pytest.raises(Busy), request(f"{server.url}/a%20b.bin") as reply:
            for chunk in reply.chunks:
                arrived += chunk
        assert TRUTH.startswith(arrived)
        slack = 0 if fault == "truncate" else 1 << 19  # a reset drops what the kernel still held
        assert server.bytes_sent - slack <= len(arrived) <= server.bytes_sent


def test_connections_are_used_again(folder):
    with FaultServer(folder) as server:
        ports = set()
        handle = server._http.process_request
        server._http.process_request = lambda sock, address: (ports.add(address), handle(sock, address))
        for _ in range(5):
            take(f"{server.url}/a%20b.bin", 0, 100)
        assert len(ports) == 1


# Answers no good server gives


@contextmanager
def answering(*answers):
    """A server that gives these raw answers, one a connection, and remembers what it was asked."""
    asked, left = [], list(answers)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            asked.append(b"".join(iter(self.rfile.readline, b"\r\n")).decode())
            self.wfile.write(left.pop(0))

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://user:word@127.0.0.1:{server.server_address[1]}/a.bin?key=1", asked
        server.shutdown()


def raw(status, *headers, body=b""):
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]).encode() + body


def test_what_a_request_says():
    with answering(raw("206 Partial Content", "Content-Range: bytes 2-3/9", "Content-Length: 2", body=b"ab")) as (
        url,
        asked,
    ):
        assert take(url, 2, 4, validator='"v"')[1] == b"ab"
    lines = asked[0].lower().split("\r\n")
    assert lines[0] == "get /a.bin?key=1 http/1.1"
    expected = [
        "range: bytes=2-3",
        'if-range: "v"',
        "accept-encoding: identity",
        f"user-agent: metricgold/{__version__}",
    ]
    assert {*expected, "authorization: basic dxnlcjp3b3jk"} <= set(lines)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (raw("200 OK", "Content-Encoding: gzip", body=b"ab"), Unfit),
        (raw("206 Partial", "Content-Type: multipart/byteranges; boundary=x", body=b"ab"), Unfit),
        (raw("206 Partial", "Content-Range: bytes 0-1/9", "Content-Length: 3", body=b"abc"), Unfit),
        (raw("206 Partial", "Content-Range: bytes 0-2/9", body=b"abc"), Unfit),
        (raw("206 Partial", "Content-Range: bytes 0-1/1", body=b"ab"), Unfit),
        (raw("206 Partial", "Content-Range: bytes 0-1/9", body=b"abc"), Unfit),
        (raw("206 Partial", "Content-Range: bytes 0-1/9", body=b"a"), Busy),
        (raw("206 Partial", "Content-Range: bytes 0-1/9", 'ETag: "w"', body=b"ab"), Changed),
        (raw("200 OK", 'ETag: "w"', body=b"ab"), Changed),
        (raw("200 OK", 'ETag: "v"', body=b"ab"), NoRanges),
        (raw("412 Precondition Failed"), Changed),
        (raw("416 Not Satisfiable", "Content-Range: bytes */9"), Changed),
        (raw("302 Found", "Location: ftp://127.0.0.1/x"), FetchError),
        (raw("204 No Content"), Unfit),
        (b"SSH-2.0-OpenSSH\r\n", Busy),
        (b"", Busy),
    ],
)
def test_answers_that_are_none(answer, kind):
    with answering(answer) as (url, _), pytest.raises(kind) as caught:
        take(url, 0, 2, validator='"v"')
    assert not any(secret in str(caught.value) for secret in ("user", "word", "key=1"))


def test_fewer_bytes_than_asked_for_and_no_length():
    with answering(
        raw("206 Partial", "Content-Range: bytes 0-1/9", body=b"ab"),
        raw("200 OK", "Last-Modified: x", 'ETag: W/"weak"', body=b"abc"),
        raw("200 OK", "Transfer-Encoding: chunked", body=b"2\r\nab\r\n0\r\n\r\n"),
    ) as (url, _):
        assert take(url, 0, 5)[0].end == 2
        reply, body = take(url)
        assert (reply.end, reply.total_bytes, reply.validator, body) == (None, None, "x", b"abc")
        assert take(url)[1] == b"ab"


def test_a_gz_that_is_called_encoded_is_itself():
    body = gzip.compress(b"abc")
    with answering(raw("200 OK", "Content-Encoding: x-gzip", f"Content-Length: {len(body)}", body=body)) as (url, _):
        assert take(url.replace("a.bin", "a.tar.gz"))[1] == body


@pytest.mark.parametrize(("said", "wait_s"), [("7", 7), ("in 100 s", 100), ("soon", None), ("-1", None)])
def test_when_to_come_back(said, wait_s):
    said = formatdate(time.time() + 100, usegmt=True) if said == "in 100 s" else said
    with answering(raw("503 Busy", f"Retry-After: {said}")) as (url, _), pytest.raises(Busy) as caught:
        take(url)
    assert caught.value.wait_s == (wait_s if wait_s is None else pytest.approx(wait_s, abs=30))


def test_a_server_that_says_nothing():
    with socketserver.TCPServer(("127.0.0.1", 0), None) as server:
        started = time.monotonic()
        with pytest.raises(Busy):
            take(f"http://127.0.0.1:{server.server_address[1]}/a", stall_s=0.2)
        assert time.monotonic() - started < 20  # 30 s by default
    with pytest.raises(Busy):
        take(f"http://127.0.0.1:{server.server_address[1]}/a")
    with pytest.raises(Busy, match="nowhere"):
        take("http://nowhere.invalid/a")


def test_a_slow_reader_is_no_slow_server(folder):
    with FaultServer(folder) as server, request(f"{server.url}/a%20b.bin", stall_s=0.2) as reply:
        body = b""
        for chunk in reply.chunks:
            body += chunk
            time.sleep(0.3)
    assert body == TRUTH


def test_names():
    assert shown("https://user:word@host:8/a%20b?X-Amz-Signature=1#x") == "https://host:8/a%20b"
    assert shown("s3://bucket/a?b") == "s3://bucket/a?b"
    assert shown("file://data/a?b") == "file://data/a?b"
    assert [host_of(url) for url in ("http://u@Host:8/a", "s3://bucket/a", "file:///a")] == ["host:8", "bucket", ""]


# S3


def test_s3(s3_bucket, monkeypatch):  # noqa: F811
    client, url = s3_client(), f"s3://{s3_bucket}/deep/a b.bin"
    client.put_object(Bucket=s3_bucket, Key="deep/a b.bin", Body=TRUTH)
    client.put_object(Bucket=s3_bucket, Key="empty", Body=b"")
    reply, body = take(url)
    assert (body, reply.total_bytes) == (TRUTH, len(TRUTH))
    assert take(url, 10, 2_000_000, validator=reply.validator)[1] == TRUTH[10:2_000_000]
    assert take(url, -10)[1] == TRUTH[-10:]
    assert take(f"s3://{s3_bucket}/empty", -10)[1] == b""
    with pytest.raises(Missing, match="NoSuchKey"):
        take(f"s3://{s3_bucket}/nothing")
    with pytest.raises(Missing, match="NoSuchBucket"):
        take("s3://metricgold-nothing/nothing")
    client.put_object(Bucket=s3_bucket, Key="deep/a b.bin", Body=b"new")
    with pytest.raises(Changed):
        take(url, 0, 2, validator=reply.validator)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Refused):
        take(url)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("503", Busy),
        ("404", Missing),
        ("expired", Refused),
        ("html", Unfit),
        ("wrong_range", Unfit),
        ("no_range", NoRanges),
        ("reset", Busy),
        ("truncate", Busy),
    ],
)
def test_s3_faults(s3_bucket, monkeypatch, fault, kind):  # noqa: F811
    s3_client().put_object(Bucket=s3_bucket, Key="a", Body=TRUTH)
    with FaultServer(upstream=os.environ["AWS_ENDPOINT_URL"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        server.faults = {fault: 1.0}
        with pytest.raises(kind) as caught:
            take(f"s3://{s3_bucket}/a", 10, 2_000_000)
        assert type(caught.value) is kind
