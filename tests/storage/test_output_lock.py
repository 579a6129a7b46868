import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from metricgold.storage.buckets import open_bucket
from metricgold.storage.output_lock import LEASE, LOCK, _Lease, hold_output
from tests.support import server
from tests.support.s3 import s3_bucket, s3_environment  # noqa: F401
from tests.support.server import FaultServer
from tests.support.waiting import wait_until

HOLDER = """
import sys, time
from metricgold.storage.buckets import open_bucket
from metricgold.storage.output_lock import hold_output
with hold_output(open_bucket(sys.argv[1], create=True), 600):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def sink(s3_bucket):  # noqa: F811
    return open_bucket(f"s3://{s3_bucket}/out", create=True)


def write_lease(sink, seconds: float, **changes) -> None:
    """A lease as another job would have it."""
    me = _Lease(sink, seconds).me
    sink.write(LEASE, json.dumps(dataclasses.asdict(me) | changes).encode())


def test_a_folder_is_locked(tmp_path):
    sink = open_bucket(str(tmp_path / "out"), create=True)
    with hold_output(sink, 10) as check:
        check()
        with pytest.raises(BlockingIOError, match="out is being written"), hold_output(sink, 10):
            pass
        with (
            pytest.raises(BlockingIOError),
            hold_output(open_bucket(str(tmp_path / "other" / ".." / "out"), create=True), 10),
        ):
            pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    assert not list(tmp_path.glob(".*"))


def test_the_working_folder_is_an_output_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        hold_output(open_bucket(".", create=True), 10),
        pytest.raises(BlockingIOError),
        hold_output(open_bucket(str(tmp_path)), 10),
    ):
        pass


def test_a_second_job_is_refused_until_the_first_ends(sink):
    with hold_output(sink, 60) as check:
        check()
        refused = (
            rf"{sink} is being written by process {os.getpid()} on \S+ since 20\S+; if that job is dead, it is free"
        )
        with pytest.raises(BlockingIOError, match=refused), hold_output(sink, 60):
            pass
        check()
    assert not sink.exists(LEASE)
    with hold_output(sink, 60):
        assert sink.exists(LEASE)


def test_a_lease_that_is_not_renewed_is_taken_over(sink):
    write_lease(sink, 2, machine="elsewhere", host="elsewhere")
    with pytest.raises(BlockingIOError, match="on elsewhere"), hold_output(sink, 60):
        pass
    wait_until(lambda: takes_over(sink), within_s=10, every_s=0.2)


def takes_over(sink) -> bool:
    with suppress(BlockingIOError), hold_output(sink, 60) as check:
        check()
        return True
    return False


def test_a_lease_is_renewed(sink):
    with hold_output(sink, 3) as check:
        time.sleep(5)  # nearly twice its life: nothing to wait for but time
        check()
        with pytest.raises(BlockingIOError), hold_output(sink, 60):
            pass


def test_a_lease_that_was_lost_ends_the_job_and_is_left_alone(sink):
    with hold_output(sink, 1.5) as check:
        write_lease(sink, 60, host="elsewhere")

        def is_lost() -> bool:
            with suppress(BlockingIOError):
                check()
                return False
            return True

        wait_until(is_lost, within_s=10)
        with pytest.raises(BlockingIOError, match=r"is being written by process \d+ on elsewhere"):
            check()
    assert b"elsewhere" in sink.read(LEASE)


def test_a_job_killed_on_this_machine_leaves_no_lease(sink):
    job = subprocess.Popen([sys.executable, "-c", HOLDER, str(sink)], stdout=subprocess.PIPE)
    try:
        assert job.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=f"process {job.pid}"), hold_output(sink, 60):
            pass
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
        job.stdout.close()
    with hold_output(sink, 60):
        pass


def test_of_jobs_that_start_together_one_writes(sink):
    def start(n: int) -> bool:
        with suppress(BlockingIOError), hold_output(sink, 60) as check:
            time.sleep(2)  # past the moment at which each job looks whether it is the last one that wrote
            check()
            return True
        return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(start, range(4))) == 1


def test_a_store_without_conditional_writes(s3_bucket, s3_environment, monkeypatch):  # noqa: F811
    refused = []

    def answer(handler, path, fault):
        if handler.headers.get("If-None-Match"):
            refused.append(path)
            handler.rfile.read(int(handler.headers["Content-Length"]))
            fault = "501"
        return forward(handler, path, fault)

    page = b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>"
    forward = server.Handler._answer
    monkeypatch.setitem(server.PAGES, "501", lambda: server._page(501, page))
    monkeypatch.setattr(server.Handler, "_answer", answer)
    with FaultServer(upstream=s3_environment["AWS_ENDPOINT_URL"]) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.url)
        sink = open_bucket(f"s3://{s3_bucket}/out", create=True)
        with hold_output(sink, 60), pytest.raises(BlockingIOError, match="is being written"), hold_output(sink, 60):
            pass
        assert not sink.exists(LEASE)
    assert len(refused) == 2
