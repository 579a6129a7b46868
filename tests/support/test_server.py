"""The server that other tests lean on: right where it says so, wrong in the way it was asked to be."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import urllib3

from tests.support import server as module
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401 - fixtures
from tests.support.server import FaultServer

DATA = bytes(range(256)) * 4000  # 1,024,000 bytes


@pytest.fixture
def served(tmp_path):
    (tmp_path / "a b.bin").write_bytes(DATA)
    (tmp_path / "empty").touch()
    with FaultServer(tmp_path) as server:
        yield server


def ask(server, path="/a%20b.bin", method="GET", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request(method, server.url + path, headers=names, timeout=0.5)


@pytest.mark.parametrize(
    ("asked", "span"),
    [("5-9", (5, 10)), ("1023990-", (1023990, 1024000)), ("-7", (1023993, 1024000)), ("0-9999999", (0, 1024000))],
)
def test_ranges(served, asked, span):
    answer = ask(served, Range=f"bytes={asked}")
    start, end = span
    assert (answer.status, answer.data) == (206, DATA[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"


def test_whole_head_and_refusals(served):
    whole = ask(served)
    assert (whole.status, whole.data) == (200, DATA)
    deadline = time.monotonic() + 5
    while served.bytes_sent < len(DATA) and time.monotonic() < deadline:
        time.sleep(0.01)  # the last block is counted after it was sent
    assert served.bytes_sent == len(DATA)
    head = ask(served, method="HEAD")
    assert (head.status, head.data, head.headers["Content-Length"]) == (200, b"", str(len(DATA)))
    assert head.headers["ETag"] == whole.headers["ETag"] != ask(served, "/empty").headers["ETag"]
    assert ask(served, "/none").status == 404
    beyond = ask(served, Range="bytes=1024000-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, "bytes */1024000")
    assert served.requests[0] == ("GET", "/a b.bin", None)
    assert served.requests[-1] == ("GET", "/a b.bin", "bytes=1024000-")


def test_if_range_and_if_match(served):
    tag = ask(served).headers["ETag"]
    assert ask(served, Range="bytes=0-1", If_Range=tag).status == 206
    assert ask(served, Range="bytes=0-1", If_Range='"other"').status == 200
    assert ask(served, Range="bytes=0-1", If_Match='"other"').status == 412
    time.sleep(0.01)
    (served.folder / "a b.bin").write_bytes(DATA)
    assert ask(served, Range="bytes=0-1", If_Range=tag).status == 200


@pytest.mark.parametrize(("fault", "status"), [("503", 503), ("429", 429), ("404", 404), ("expired", 403)])
def test_refusals_that_end_with_the_script(served, fault, status):
    served.script = {"/a b.bin": [fault, "ok"]}
    served.faults = {fault: 1.0}
    assert [ask(served).status for _ in range(3)] == [status, 200, status]
    assert served.befell == {fault: 2, "ok": 1}


def test_lies(served):
    served.script = {"/a b.bin": ["html", "no_range", "wrong_range", "wrong_bytes"]}
    assert ask(served).headers["Content-Type"].startswith("text/html")
    whole = ask(served, Range="bytes=0-9")
    assert (whole.status, whole.data) == (200, DATA)
    assert ask(served, Range="bytes=0-9").headers["Content-Range"] == f"bytes 1-10/{len(DATA)}"
    wrong = ask(served).data
    assert sum(a != b for a, b in zip(wrong, DATA, strict=True)) == 1


@pytest.mark.parametrize(
    ("fault", "error"), [("reset", "ConnectionResetError"), ("truncate", "IncompleteRead"), ("slow", "timed out")]
)
def test_bodies_that_do_not_come(served, fault, error, monkeypatch):
    monkeypatch.setattr(module, "SLOW_S", 9.0)  # beyond the client's patience
    served.script = {"/a b.bin": [fault]}
    with pytest.raises(urllib3.exceptions.HTTPError, match=error):
        ask(served)
    assert served.bytes_sent < len(DATA)


def test_one_connection_serves_many_requests(served):
    with urllib3.PoolManager(retries=False) as pool:
        for _ in range(5):
            assert pool.request("GET", f"{served.url}/a%20b.bin", headers={"Range": "bytes=0-9"}).data == DATA[:10]
        (connections,) = [pool.connection_from_url(served.url).num_connections]
    assert connections == 1


def test_equal_seeds_equal_faults(tmp_path):
    drawn = []
    for _ in range(2):
        server = FaultServer(tmp_path, seed=3)
        server.faults = {"503": 0.3, "reset": 0.3}
        drawn.append([server.next_fault("GET", "/", None) for _ in range(1000)])
        server._http.socket.close()
    assert drawn[0] == drawn[1]
    assert 250 < drawn[0].count("503") < 350


def test_in_a_process_of_its_own(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    command = [sys.executable, module.__file__, str(tmp_path), "--bytes-per-s", "2e6"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        started = time.monotonic()
        assert urllib3.request("GET", f"{url}/a").data == DATA
        assert time.monotonic() - started > 0.4
        assert urllib3.request("GET", f"{url}/.control").json()["bytes_sent"] == len(DATA)
        urllib3.request("PUT", f"{url}/.control", body=json.dumps({"faults": {"503": 1}}))
        assert urllib3.request("GET", f"{url}/a", retries=False).status == 503
        process.stdin.close()
        assert process.wait(5) == 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
        pass


def test_before_a_real_s3_server(s3_environment, s3_bucket, monkeypatch):  # noqa: F811
    with FaultServer(upstream=s3_environment["AWS_ENDPOINT_URL"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        client = s3_client()
        client.put_object(Bucket=s3_bucket, Key="a b", Body=DATA)
        server.reset_counts()
        answer = client.get_object(Bucket=s3_bucket, Key="a b", Range="bytes=5-9")
        assert (answer["Body"].read(), answer["ContentRange"]) == (DATA[5:10], "bytes 5-9/1024000")
        assert server.bytes_sent == 5
        server.script = {f"/{s3_bucket}/a b": ["wrong_range", "no_range", "expired"]}
        assert client.get_object(Bucket=s3_bucket, Key="a b", Range="bytes=5-9")["ContentRange"].startswith("bytes 6-")
        whole = client.get_object(Bucket=s3_bucket, Key="a b", Range="bytes=5-9")
        assert whole["ResponseMetadata"]["HTTPStatusCode"] == 200
        with pytest.raises(client.exceptions.ClientError, match="Request has expired"):
            client.get_object(Bucket=s3_bucket, Key="a b")


def test_curl_resumes(served, tmp_path):
    served.script = {"/a b.bin": ["truncate"]}
    target, url = tmp_path / "copy", f"{served.url}/a%20b.bin"
    assert subprocess.run(["curl", "-sS", "-o", target, url], capture_output=True).returncode == 18  # partial file
    subprocess.run(["curl", "-sS", "-C", "-", "-o", target, url], check=True)
    assert Path(target).read_bytes() == DATA
