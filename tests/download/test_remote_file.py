"""Transfers over bad servers, several mirrors and kills: the right bytes, and hardly one of them twice."""

import errno
import hashlib
import io
import itertools
import json
import logging
import os
import random
import signal
import socketserver
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from metricgold.download import partial_file as partial_module, remote_file as module, transport
from metricgold.download.fetcher import Fetcher
from metricgold.download.partial_file import PartialFile
from metricgold.download.remote_file import RemoteFile, read_small
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401 - fixtures
from tests.support.server import GONE, FaultServer
from tests.support.waiting import wait_until

TRUTH = random.Random(0).randbytes(3_000_001)
SHA256 = {"sha256": hashlib.sha256(TRUTH).hexdigest()}
BAD = {"503": 0.1, "429": 0.05, "reset": 0.1, "truncate": 0.1, "no_range": 0.05, "wrong_range": 0.05, "html": 0.05}
HELD_BYTES = 1 << 19  # what a socket may hold: sent, yet never seen when a connection is given up


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Fetcher, "first_wait_s", 0.01)
    monkeypatch.setattr(Fetcher, "max_wait_s", 0.1)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a.bin").write_bytes(TRUTH)
    return tmp_path / "up"


@pytest.fixture
def server(folder):
    with FaultServer(folder) as server:
        yield server


@pytest.fixture
def arrived():
    return []


@pytest.fixture
def fetcher(arrived):
    with Fetcher(patience_s=2, stall_s=1, part_bytes=200_000, advance=arrived.append) as fetcher:
        yield fetcher


def sent(*servers):
    """Bytes that were sent, once the servers have counted them."""
    time.sleep(0.05)
    return sum(server.bytes_sent for server in servers)


def forget(server):
    """Counts begin anew, once what was sent before is counted."""
    sent(server)
    server.reset_counts()


def asked_twice(server, path="/a.bin"):
    """Bytes that were asked for more often than once."""
    spans = [span for _, where, span in server.requests if where == path and span]
    counts = bytearray(len(TRUTH) + 1)
    for span in spans:
        first, last = span.removeprefix("bytes=").split("-")
        for place in range(int(first), min(len(TRUTH), int(last) + 1)):
            counts[place] += 1
    return sum(max(0, count - 1) for count in counts)


def test_a_whole_file(server, fetcher, arrived, tmp_path):
    file = RemoteFile(fetcher, [f"{server.url}/a.bin?secret=1"], tmp_path / "a")
    assert file.digests(["sha256", "md5"]) == SHA256 | {"md5": hashlib.md5(TRUTH).hexdigest()}
    assert (tmp_path / "a").read_bytes() == TRUTH
    assert (sum(arrived), sent(server), asked_twice(server)) == (len(TRUTH), len(TRUTH), 0)
    assert (file.total_bytes, file.url) == (len(TRUTH), f"{server.url}/a.bin")
    file.need([(0, len(TRUTH))])
    assert sent(server) == len(TRUTH)
    file.remove()
    assert not (tmp_path / "a").exists()


def test_only_what_is_needed(server, fetcher, arrived, tmp_path):
    with zipfile.ZipFile(server.folder / "a.zip", "w") as file:
        for number in range(30):
            file.writestr(f"{number}.bin", TRUTH[number * 10_000 : (number + 1) * 100_000])
    file = RemoteFile(fetcher, [f"{server.url}/a.zip"], tmp_path / "a", tail_bytes=1000)
    with zipfile.ZipFile(file.reader()) as members:
        assert members.read("7.bin") == TRUTH[70_000:800_000]
        assert len(members.namelist()) == 30
    assert sum(arrived) < 730_000 + 3 * module.READ_AHEAD_BYTES
    assert sent(server) == sum(arrived)


def test_the_reader_is_a_file(server, fetcher, tmp_path):
    reader = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=10).reader()
    twin = io.BytesIO(TRUTH)
    for offset, whence, size in [(-9, 2, -1), (5, 0, 70_000), (-70, 1, 3), (99, 2, 5), (0, 0, 0), (2_999_990, 0, 99)]:
        assert reader.seek(offset, whence) == twin.seek(offset, whence) == reader.tell()
        assert reader.read(size) == twin.read(size)
    with pytest.raises(ValueError, match="before the start"):
        reader.seek(-1)


@pytest.mark.parametrize("seed", range(4))
def test_a_bad_server(folder, tmp_path, seed):
    with (
        FaultServer(folder, seed=seed) as server,
        Fetcher(part_bytes=100_000, patience_s=20) as fetcher,
    ):
        server.faults = BAD
        random.seed(seed)
        file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", total_bytes=len(TRUTH))
        assert file.digests(["sha256"]) == SHA256


def test_what_came_before_a_fault_is_kept(server, fetcher, arrived, tmp_path):
    server.script["/a.bin"] = ["ok", "truncate", "truncate", "ok", "truncate"]
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a")
    assert file.digests(["sha256"]) == SHA256
    assert sum(arrived) == sent(server) == len(TRUTH)


def test_a_server_without_ranges(server, fetcher, tmp_path):
    server.faults = {"no_range": 1.0}
    server.script["/a.bin"] = ["no_range"] * 3 + ["reset"]
    with RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a").reader() as reader:
        assert reader.read(len(TRUTH)) == TRUTH
    forget(server)
    (server.folder / "b.bin").write_bytes(TRUTH)
    assert RemoteFile(fetcher, [f"{server.url}/b.bin"], tmp_path / "b").digests(["sha256"]) == SHA256
    assert server.requests == [("GET", "/b.bin", None)]  # known by now


def test_ranges_that_stop_working(server, fetcher, tmp_path):
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a")
    server.faults = {"no_range": 1.0}
    assert file.digests(["sha256"]) == SHA256


class Chunked(socketserver.StreamRequestHandler):
    """No length, no ranges, no validator."""

    def handle(self):
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for start in range(0, len(TRUTH), 100_000):
            piece = TRUTH[start : start + 100_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


def test_a_server_that_does_not_say_how_long(fetcher, tmp_path):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Chunked) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/a.bin"
        file = RemoteFile(fetcher, [url], tmp_path / "a")
        assert file.total_bytes == len(TRUTH)
        assert file.digests(["sha256"]) == SHA256
        file.close()
        assert PartialFile.resume(tmp_path / "a").prefix == len(TRUTH)
        with pytest.raises(ValueError, match=r"100 (bytes|were)"):
            RemoteFile(fetcher, [url], tmp_path / "b", total_bytes=100)
        assert read_small(fetcher, [url]) == TRUTH
        server.shutdown()


def test_a_small_list_over_a_slow_line(server, fetcher, monkeypatch):
    monkeypatch.setattr(transport, "MAX_HELD_S", -1.0)  # each block that arrives is a chunk, as of a slow line
    monkeypatch.setattr(transport, "RECEIVE_BYTES", 1000)
    (server.folder / "list").write_bytes(TRUTH[:30_000])
    monkeypatch.setattr(module, "MAX_SMALL_BYTES", 30_000)
    assert read_small(fetcher, [f"{server.url}/list"]) == TRUTH[:30_000]
    monkeypatch.setattr(module, "MAX_SMALL_BYTES", 29_999)
    with pytest.raises(ValueError, match="more than 29,999 bytes"):
        read_small(fetcher, [f"{server.url}/list"])


def test_an_empty_file(server, fetcher, tmp_path):
    (server.folder / "empty").write_bytes(b"")
    for tail_bytes in (0, 100):
        file = RemoteFile(fetcher, [f"{server.url}/empty"], tmp_path / "a", tail_bytes=tail_bytes)
        assert (file.total_bytes, file.digests(["md5"])["md5"]) == (0, hashlib.md5().hexdigest())
        assert file.reader().read() == b""
        file.remove()
    assert read_small(fetcher, [f"{server.url}/empty"]) == b""


@pytest.mark.parametrize(("status", "tail_bytes"), [(400, 1000), (416, 5_000_000), (501, 1000), (200, 1000)])
def test_a_server_that_refuses_ranges_from_the_end(server, fetcher, tmp_path, status, tail_bytes):
    """It is asked for the length, then for ordinary ranges; of a second file it is asked for nothing else."""
    server.suffix_status = status
    for name in ("a", "b"):
        forget(server)
        file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / name, tail_bytes=tail_bytes)
        assert file.digests(["sha256"]) == SHA256
    assert not [span for _, _, span in server.requests if span.startswith("bytes=-")]
    assert sent(server) == len(TRUTH) + 1


def test_a_server_that_refuses_every_range_of_this_kind_says_why(server, fetcher, tmp_path):
    server.suffix_status = 400
    server.faults = {"expired": 1.0}
    with pytest.raises(OSError, match=r"a\.bin from .*: HTTP 403"):
        RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=100)
    (server.folder / "empty").write_bytes(b"")
    server.faults, server.suffix_status = {}, 416
    assert RemoteFile(fetcher, [f"{server.url}/empty"], tmp_path / "e", tail_bytes=100).total_bytes == 0


# Validators


@pytest.mark.parametrize("num_nodes", [2, 5])
def test_nodes_of_a_server_that_do_not_agree_on_a_validator(server, fetcher, arrived, tmp_path, caplog, num_nodes):
    """Equal bytes under an ETag that differs by node: noted, not fetched anew; also by the next run."""
    nodes = itertools.cycle(range(num_nodes))
    server.etag = lambda _tag: f'"{next(nodes)}"'
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=1000, is_checked=True)
    file.need([(0, 1_000_000)])
    file.close()
    assert "though its end is the same" in caplog.text
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=1000, is_checked=True)
    assert file.digests(["sha256"]) == SHA256
    assert "starting anew" not in caplog.text
    assert sum(arrived) == len(TRUTH)


def test_another_end_under_another_validator_is_another_file(server, fetcher, tmp_path, caplog):
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=1000, is_checked=True)
    file.need([(0, 1000)])
    file.close()
    new = TRUTH[:-1] + b"?"
    (server.folder / "a.bin").write_bytes(new)
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=1000, is_checked=True)
    assert file.digests(["sha256"]) == {"sha256": hashlib.sha256(new).hexdigest()}
    assert "starting anew" in caplog.text


# Mirrors


def test_mirrors_in_order_of_preference(server, fetcher, folder, tmp_path, caplog):
    with FaultServer(folder) as other:
        server.faults = {"404": 1.0}
        urls = [f"{server.url}/a.bin?secret=1", f"{other.url}/a.bin"]
        file = RemoteFile(fetcher, urls, tmp_path / "a")
        assert file.digests(["sha256"]) == SHA256
        assert file.url == f"{other.url}/a.bin"
        assert len(server.requests) == 1
        assert any(record.levelno == logging.WARNING and "HTTP 404" in record.message for record in caplog.records)
        assert "secret" not in caplog.text
        server.faults = {}
        server.script["/a.bin"] = ["ok", "ok", "503", "reset"]
        file = RemoteFile(fetcher, urls, tmp_path / "b")
        assert file.digests(["sha256"]) == SHA256
        assert set(file.partial.origins) == {f"{server.url}/a.bin", f"{other.url}/a.bin"}


def test_a_mirror_with_another_file(server, fetcher, tmp_path):
    (server.folder / "other.bin").write_bytes(b"x" * 1000)
    urls = [f"{server.url}/other.bin", f"{server.url}/a.bin"]
    assert RemoteFile(fetcher, urls, tmp_path / "a", total_bytes=len(TRUTH)).digests(["sha256"]) == SHA256
    with pytest.raises(ValueError, match=r"^other\.bin from http.*/other\.bin: it has 1000 bytes, 99 were expected$"):
        RemoteFile(fetcher, urls[:1], tmp_path / "b", total_bytes=99)


def test_doubt_prefers_another_mirror(server, fetcher, folder, tmp_path):
    with FaultServer(folder) as other:
        server.script["/a.bin"] = ["wrong_bytes"]
        file = RemoteFile(fetcher, [f"{server.url}/a.bin", f"{other.url}/a.bin"], tmp_path / "a")
        assert file.digests(["sha256"]) != SHA256
        file.mark_wrong(0, 1 << 20)
        assert file.digests(["sha256"]) == SHA256
        assert sent(other) == 1 << 20
        file.mark_wrong(10, 20)  # twice the same: the first gets another chance
        file.mark_wrong(10, 20)
        file.need([(0, 100)])
        assert file.digests(["sha256"]) == SHA256


def test_all_that_went_wrong_is_told(server, fetcher, tmp_path):
    urls = [f"http://user:word@{server.url[7:]}/no/a.bin?secret=1", f"file://{tmp_path}/a.bin"]
    expected = rf"^a\.bin from {server.url}/no/a\.bin: HTTP 404.*; from file://{tmp_path}/a\.bin: .*No such file"
    for call in (
        lambda: RemoteFile(fetcher, urls, tmp_path / "a"),
        lambda: read_small(fetcher, urls),
    ):
        with pytest.raises(OSError, match=expected):
            call()
    server.faults = {"html": 1.0}
    with pytest.raises(ValueError, match="an HTML page was answered"):
        RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a")
    assert len(server.requests) == 5


@pytest.mark.parametrize("fault", ["503", "expired", "slow"])
def test_patience_ends(server, folder, tmp_path, fault, caplog):
    server.faults = {fault: 1.0}
    with Fetcher(patience_s=0.5, stall_s=0.2) as fetcher:
        started = time.monotonic()
        with pytest.raises(OSError, match=rf"a\.bin from {server.url}/a\.bin: "):
            read_small(fetcher, [f"{server.url}/a.bin"])
        assert 0.45 < time.monotonic() - started < 20
    assert "next try in" in caplog.text


def test_progress_resets_patience(server, tmp_path):
    server.faults = {"slow": 1.0}
    (server.folder / "b.bin").write_bytes(b"0123456789" * 2)
    with Fetcher(patience_s=0.2, stall_s=0.3) as fetcher:
        assert RemoteFile(fetcher, [f"{server.url}/b.bin"], tmp_path / "b").digests(["md5"])
        assert len(server.requests) > 3


def test_asked_to_wait(tmp_path, monkeypatch):
    asked_at = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip():
                pass
            asked_at.append(time.monotonic())
            late = len(asked_at) > 1
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
                if late
                else b"HTTP/1.1 429 Slow down\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
            )

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server, Fetcher() as fetcher:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        assert read_small(fetcher, [f"http://127.0.0.1:{server.server_address[1]}/a"]) == b"ok"
        server.shutdown()
    assert 1 <= asked_at[1] - asked_at[0] < 2


def test_never_more_connections_than_a_host_is_asked_for(server, tmp_path):
    server.bytes_per_s = 3_000_000
    most, now, lock = [0], [0], threading.Lock()
    serve = server._http.RequestHandlerClass.serve

    def counted(handler):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        serve(handler)
        with lock:
            now[0] -= 1

    server._http.RequestHandlerClass = type("Counted", (server._http.RequestHandlerClass,), {"do_GET": counted})
    with Fetcher(connections_per_host=2, part_bytes=100_000) as fetcher:

        def fetch(number):
            RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / str(number)).digests([])

        threads = [threading.Thread(target=fetch, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all((tmp_path / str(number)).read_bytes() == TRUTH for number in range(4))
    assert most == [2] or most == [3]  # the last byte is here before the server has turned to the next request


# Another run


def test_a_second_run_fetches_the_rest(server, arrived, tmp_path):
    for _ in range(3):
        with Fetcher(part_bytes=100_000, advance=arrived.append) as fetcher:
            file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a")
            file.need([(len(arrived) * 100_000, len(arrived) * 100_000 + 50_000)])
            file.close()
    with Fetcher(advance=arrived.append) as fetcher:
        assert RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a").digests(["sha256"]) == SHA256
        forget(server)
        assert RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a").digests(["sha256"]) == SHA256
    assert sum(arrived) == len(TRUTH)
    assert server.requests == []


@pytest.mark.parametrize("is_checked", [False, True])
def test_after_another_boot_only_checksums_can_tell_what_is_there(server, arrived, tmp_path, monkeypatch, is_checked):
    """A power cut may leave a journal of bytes that never reached the disk."""
    for boot in "ab":
        monkeypatch.setattr(partial_module, "machine", lambda boot=boot: boot)
        with Fetcher(part_bytes=100_000, advance=arrived.append) as fetcher:
            file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", is_checked=is_checked)
            file.need([(0, len(TRUTH))])
            file.close()
    assert sum(arrived) == len(TRUTH) * (1 if is_checked else 2)


def test_a_second_run_of_a_selection_costs_a_byte(server, fetcher, tmp_path):
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=1000)
    file.need([(5000, 6000)])
    file.close()
    forget(server)
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a", tail_bytes=1000)
    file.need([(5000, 6000), (len(TRUTH) - 1000, len(TRUTH))])
    assert sent(server) == 1


def test_what_changed_upstream_is_fetched_anew(server, fetcher, tmp_path, caplog):
    RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a").close()
    new = TRUTH[::-1]
    (server.folder / "a.bin").write_bytes(new)
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a")
    assert file.digests(["sha256"]) == {"sha256": hashlib.sha256(new).hexdigest()}
    assert "starting anew" in caplog.text
    (server.folder / "b.bin").write_bytes(TRUTH)
    file = RemoteFile(fetcher, [f"{server.url}/b.bin"], tmp_path / "b")
    (server.folder / "b.bin").write_bytes(new)  # under our hands
    with pytest.raises(ValueError, match=r"b\.bin: changed from"):
        file.digests(["sha256"])
    file.close()
    (server.folder / "b.bin").write_bytes(new[:-1])
    file = RemoteFile(fetcher, [f"{server.url}/b.bin"], tmp_path / "b")
    assert file.digests(["sha256"]) == {"sha256": hashlib.sha256(new[:-1]).hexdigest()}


def test_a_host_that_moved(server, fetcher, folder, tmp_path):
    RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a").close()
    with FaultServer(folder) as other:
        assert RemoteFile(fetcher, [f"{other.url}/a.bin"], tmp_path / "a").digests(["sha256"]) == SHA256
        assert sent(other) == len(TRUTH) - module.CONTACT_BYTES


KILLED = """
import os, signal, sys
from pathlib import Path
from metricgold.download.fetcher import Fetcher
from metricgold.download.remote_file import RemoteFile
Fetcher.first_wait_s = 0.01
left = int(sys.argv[3])

def arrive(num_bytes):
    global left
    left -= num_bytes
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

with Fetcher(part_bytes=100_000, advance=arrive) as fetcher:
    file = RemoteFile(fetcher, [sys.argv[1]], Path(sys.argv[2]))
    print(file.digests(["sha256"])["sha256"])
"""


def test_killed_and_called_again(server, tmp_path):
    server.faults = {"truncate": 0.1, "503": 0.1}
    runs = 0
    while True:
        command = [sys.executable, "-c", KILLED, f"{server.url}/a.bin", tmp_path / "a", "800000"]
        child = subprocess.run(command, capture_output=True, text=True)
        runs += 1
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL, child.stderr
    assert runs > 2
    assert child.stdout.strip() == SHA256["sha256"]
    # A chunk of each connection may be on its way when the kill comes.
    assert sent(server) <= len(TRUTH) + runs * 4 * 100_000 + HELD_BYTES


# The end


def test_a_full_disk_is_no_fault_of_the_server(server, fetcher, tmp_path, monkeypatch):
    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(partial_module.os, "pwrite", full)
    forget(server)
    for fetch in (lambda: file.need([(0, len(TRUTH))]), lambda: file.digests(["md5"])):
        with pytest.raises(OSError, match="No space left") as caught:
            fetch()
        assert caught.value.errno == errno.ENOSPC
    assert len(server.requests) <= 8  # one a connection and call


INTERRUPTED = """
import logging, signal, sys
from pathlib import Path
from metricgold.download.fetcher import Fetcher
from metricgold.download.remote_file import RemoteFile
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts in the background
logging.basicConfig(level="WARNING")
with Fetcher(part_bytes=100_000, advance=lambda n: print(flush=True)) as fetcher:
    {what}
"""


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ('RemoteFile(fetcher, [sys.argv[1]], Path(sys.argv[2])).digests(["md5"])', "slow"),
        ("RemoteFile(fetcher, [sys.argv[1]], Path(sys.argv[2])).need([(0, 3_000_000)])", "503"),
    ],
)
def test_interrupted(server, tmp_path, what, fault):
    """Nothing that hangs or waits holds up the end."""
    server.script["/a.bin"] = ["truncate"]
    server.faults = {fault: 1.0}
    interrupt(f"{server.url}/a.bin", tmp_path / "a", what, lambda: len(server.requests) > 1)


def interrupt(url, path, what, is_due):
    """Ctrl-C for a process that fetches, as soon as it has some bytes and `is_due`."""
    command = [sys.executable, "-c", INTERRUPTED.format(what=what), url, path]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdout.readline()
    wait_until(is_due)
    child.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = child.communicate(timeout=40)
    assert time.monotonic() - started < 20  # a request that hangs is waited for 30 s
    assert "KeyboardInterrupt" in errors


def test_interrupted_while_connections_are_dead(tmp_path):
    """No thread that reads from them keeps the process alive until `stall_s` are over."""
    starts = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            headers = iter(lambda: self.rfile.readline().decode().strip(), "")
            (span,) = (line.partition("=")[2] for line in headers if line.startswith("Range"))
            start, last = map(int, span.split("-"))
            head = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{last}/{len(TRUTH)}\r\n"
            self.wfile.write(f"{head}Content-Length: {last + 1 - start}\r\n\r\n".encode())
            starts.append(start)
            if start == 0:
                self.wfile.write(TRUTH[: last + 1])
            else:
                ended.wait(60)

    ended = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        what = 'RemoteFile(fetcher, [sys.argv[1]], Path(sys.argv[2])).digests(["md5"])'
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/a.bin"
            interrupt(url, tmp_path / "a", what, lambda: len(starts) > 2)
        finally:
            ended.set()
            server.shutdown()


def test_closing_stops_other_threads(server, tmp_path):
    server.bytes_per_s = 300_000  # ten seconds for all of it
    caught = []
    fetcher = Fetcher(part_bytes=100_000)

    def fetch(work):
        with pytest.raises(InterruptedError):
            work()
        caught.append(1)

    file = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "a")
    other = RemoteFile(fetcher, [f"{server.url}/a.bin"], tmp_path / "b")
    works = [lambda: file.digests(["md5"]), lambda: other.need([(0, len(TRUTH))])]
    threads = [threading.Thread(target=fetch, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    wait_until(
        lambda: all(each.partial.missing([(0, len(TRUTH))])[0][0] > module.CONTACT_BYTES for each in (file, other))
    )
    fetcher.close()
    for thread in threads:
        thread.join(2)
    assert len(caught) == 2
    file.close()
    other.close()


# Other places


def test_a_local_file_is_not_copied(folder, fetcher, arrived, tmp_path):
    file = RemoteFile(fetcher, [f"file://{folder}/a.bin", "http://nowhere.invalid/a.bin"], tmp_path / "a")
    assert file.digests(["sha256"]) == SHA256
    assert file.reader().read(100) == TRUTH[:100]
    file.need([(0, 100)])
    assert sum(arrived) == file.total_bytes == len(TRUTH)
    file.remove()
    assert (folder / "a.bin").exists() and not (tmp_path / "a").exists()
    assert read_small(fetcher, [f"file://{folder}/a.bin"]) == TRUTH


def test_a_local_file_in_doubt(server, fetcher, tmp_path):
    (tmp_path / "a.bin").write_bytes(TRUTH[:-1] + b"?")
    file = RemoteFile(fetcher, [f"file://{tmp_path}/a.bin", f"{server.url}/a.bin"], tmp_path / "a")
    file.mark_wrong(len(TRUTH) - 10, len(TRUTH))
    file.need([(len(TRUTH) - 10, len(TRUTH))])
    assert file.digests(["sha256"]) == SHA256
    assert sent(server) == 10


def test_a_file_changes_mirrors_and_continues(server, folder, arrived, fetcher, tmp_path):
    with FaultServer(folder) as other:
        server.script["/a.bin"] = ["truncate", "404"]
        file = RemoteFile(fetcher, [f"{server.url}/a.bin", f"{other.url}/a.bin"], tmp_path / "a")
        assert file.total_bytes == len(TRUTH)
        assert file.digests(["sha256"]) == SHA256
        assert file.url == f"{other.url}/a.bin"
        assert sum(arrived) == sent(server, other) - len(GONE) == len(TRUTH)


def test_s3(s3_bucket, monkeypatch, tmp_path):  # noqa: F811
    s3_client().put_object(Bucket=s3_bucket, Key="a.bin", Body=TRUTH)
    with FaultServer(upstream=os.environ["AWS_ENDPOINT_URL"]) as server, Fetcher(part_bytes=500_000) as fetcher:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        server.faults = {"503": 0.1, "expired": 0.1, "truncate": 0.2, "reset": 0.1}
        url = f"s3://{s3_bucket}/a.bin"
        assert RemoteFile(fetcher, [url], tmp_path / "a").digests(["sha256"]) == SHA256


def test_memory_stays_flat(folder, tmp_path):
    """Ten times the bytes need no more memory."""
    (folder / "big.bin").write_bytes(TRUTH * 40)
    code = """
import resource, sys
from pathlib import Path
from metricgold.download.fetcher import Fetcher
from metricgold.download.remote_file import RemoteFile, read_small
with Fetcher() as fetcher:
    read_small(fetcher, [sys.argv[1] + "/a.bin"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    RemoteFile(fetcher, [sys.argv[1] + "/big.bin"], Path(sys.argv[2])).digests(["sha256"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    with FaultServer(folder, buffer_bytes=None) as server:
        child = subprocess.run(
            [sys.executable, "-c", code, server.url, tmp_path / "big"], capture_output=True, text=True
        )
    assert int(json.loads(child.stdout)) < 40_000, child.stderr  # KiB; the file has 117,000
