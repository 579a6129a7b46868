import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from metricgold.storage import output_lock
from metricgold.storage.buckets import PART_BYTES, Folder, open_bucket
from metricgold.storage.output_lock import LEASE, LOCK, Holder, OutputLost, hold_output
from tests.support import server
from tests.support.s3 import s3_bucket, s3_environment  # noqa: F401
from tests.support.server import FaultServer
from tests.support.waiting import wait_until
from tests.support.workers import sent

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


@pytest.fixture(params=["folder", "s3"])
def output(request, tmp_path):
    return (
        open_bucket(str(tmp_path / "out"), create=True)
        if request.param == "folder"
        else request.getfixturevalue("sink")
    )


def write_lease(sink, seconds: float = 60, **changes) -> None:
    """A lease as another job would have it."""
    holder = Holder.of_this_process(seconds).model_copy(update={"host": "elsewhere", **changes})
    sink.write(LEASE, holder.model_dump_json().encode())


def lease(sink) -> dict:
    return json.loads(sink.read(LEASE))


def test_a_folder_is_locked(tmp_path):
    sink = open_bucket(str(tmp_path / "out"), create=True)
    with hold_output(sink, 10) as held:
        held.fence(sink).write("a", b"")
        with pytest.raises(BlockingIOError, match="out is being written"), hold_output(sink, 10):
            pass
        with (
            pytest.raises(BlockingIOError),
            hold_output(open_bucket(str(tmp_path / "other" / ".." / "out"), create=True), 10),
        ):
            pass
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LEASE, LOCK, "a"]
    assert not list(tmp_path.glob(".*"))


def test_the_working_folder_is_an_output_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        hold_output(open_bucket(".", create=True), 10),
        pytest.raises(BlockingIOError),
        hold_output(open_bucket(str(tmp_path)), 10),
    ):
        pass


def test_the_number_of_a_lease_only_grows(output):
    for number in range(1, 4):
        with hold_output(output, 60) as held:
            held.fence(output).write("a", b"")
            assert (lease(output)["number"], lease(output)["ended"]) == (number, False)
        assert (lease(output)["number"], lease(output)["ended"]) == (number, True)
        assert not held.is_doubtful
    write_lease(output, number=7, pid=(1 << 31) - 1)  # of a process that is dead
    with hold_output(output, 60) as held:
        assert held.is_doubtful
    assert lease(output)["number"] == 8


def test_a_second_job_is_refused_until_the_first_ends(sink):
    with hold_output(sink, 60) as held:
        held.fence(sink).write("a", b"")
        refused = (
            rf"{sink} is being written by process {os.getpid()} on \S+ since 20\S+; if that job is dead, it is free"
        )
        with pytest.raises(BlockingIOError, match=refused), hold_output(sink, 60):
            pass
        held.fence(sink).write("a", b"")
    with hold_output(sink, 60):
        pass


def test_a_lease_that_is_not_renewed_is_taken_over(sink):
    write_lease(sink, 2, machine="elsewhere")
    with pytest.raises(BlockingIOError, match="on elsewhere"), hold_output(sink, 60):
        pass
    wait_until(lambda: takes_over(sink), every_s=0.2)


def takes_over(sink) -> bool:
    with suppress(BlockingIOError), hold_output(sink, 3) as held:
        held.fence(sink).write("a", b"")
        return held.is_doubtful
    return False


def test_a_lease_is_renewed(sink):
    with hold_output(sink, 2) as held:
        time.sleep(4)  # twice its life: nothing to wait for but time
        with pytest.raises(BlockingIOError), hold_output(sink, 60):
            pass
        held.fence(sink).write("a", b"")
    assert lease(sink)["renewals"] > 3


@pytest.mark.parametrize("become", ["another's", "gone", "foreign"])
def test_a_lease_that_is_lost_ends_every_write(output, become):
    with hold_output(output, 1) as held:
        fenced = held.fence(output)
        fenced.write("a", b"mine")
        lose = {
            "another's": lambda: write_lease(output, id="b", number=9),
            "gone": lambda: output.delete(LEASE),
            "foreign": lambda: output.write(LEASE, b"hello"),
        }[become]

        def is_lost() -> bool:
            lose()  # again, where a renewal that was under way came after it
            with suppress(OutputLost):
                fenced.write("a", b"mine")
                return False
            return True

        wait_until(is_lost)
        state = output.read(LEASE) if output.exists(LEASE) else None
        expected = {"another's": r"process \d+ on elsewhere", "gone": "has lost its lease", "foreign": "not a lease"}
        for key in ("a", "b"):
            with pytest.raises(OutputLost, match=expected[become]):
                fenced.write(key, b"late")
            with pytest.raises(OutputLost):
                fenced.write(key, io.BytesIO(b"late"))
            with pytest.raises(OutputLost):
                fenced.delete(key)
        if not isinstance(output, Folder):
            with pytest.raises(OutputLost):
                fenced.write("large", io.BytesIO(bytes(PART_BYTES + 1)))
        assert output.read("a") == b"mine"
        assert not output.exists("b")
    assert (output.read(LEASE) if output.exists(LEASE) else None) == state


def test_a_late_write_of_an_older_job_costs_nobody_the_output(sink):
    write_lease(sink, number=4, ended=True)
    with hold_output(sink, 1.5) as held:
        fenced = held.fence(sink)
        fenced.write("a", b"")
        write_lease(sink, number=4)
        wait_until(lambda: lease(sink)["number"] == 5)
        fenced.write("a", b"")


def test_an_expired_lease_is_renewed_before_a_write(sink, monkeypatch):
    clock, asleep_s = output_lock.awake_or_not_s, 0.0
    monkeypatch.setattr(output_lock, "awake_or_not_s", lambda: clock() + asleep_s)
    with hold_output(sink, 60) as held:
        fenced = held.fence(sink)
        fenced.write("a", b"1")
        renewals = lease(sink)["renewals"]
        asleep_s = 100.0  # as the clock shows it that does not stand still in suspend
        fenced.write("a", b"2")
        assert lease(sink)["renewals"] > renewals
        write_lease(sink, number=9)
        asleep_s = 200.0
        with pytest.raises(OutputLost, match="on elsewhere"):
            fenced.write("a", b"3")
    assert sink.read("a") == b"2"


def test_a_machine_that_sleeps_is_noticed():
    assert abs(output_lock.awake_or_not_s() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


def test_nothing_is_written_before_the_lease_has_settled(sink):
    with hold_output(sink, 60) as held:
        write_lease(sink, number=1)  # of a job that looked at the same moment and wrote last
        with pytest.raises(OutputLost, match="on elsewhere"):
            held.fence(sink).write("a", b"")
    assert not sink.exists("a")


def test_a_write_that_freezes_on_its_way_to_the_store_does_not_arrive(sink):
    with hold_output(sink, 60) as held:
        fenced = held.fence(sink)
        fenced.write("a", b"1")

        def freeze(request, **_):
            if request.url.endswith("/a") and held.renewed_at > 0:
                held.renewed_at = 0
                write_lease(sink, number=9)

        fenced.client.meta.events.register("before-send.s3.PutObject", freeze)
        with pytest.raises(OutputLost):
            fenced.write("a", b"2")
    assert sink.read("a") == b"1"


def test_a_worker_looks_whether_its_job_still_has_the_output(output):
    with hold_output(output, 60) as held:
        worker = sent(held.me).fence(output)
        worker.write("a", b"1")
    time.sleep(output_lock.LOOK_S)
    with pytest.raises(OutputLost, match="was given to another job"):
        worker.write("a", b"2")
    write_lease(output, number=9)
    with pytest.raises(OutputLost, match="on elsewhere"):
        worker.write("a", b"2")
    assert output.read("a") == b"1"


def test_a_worker_whose_job_no_longer_renews_the_lease_stops(sink):
    write_lease(sink, 3)
    worker = Holder.model_validate_json(sink.read(LEASE)).fence(sink)
    worker.write("a", b"1")
    time.sleep(3)
    with pytest.raises(OutputLost, match="has not renewed it"):
        worker.write("a", b"2")


@pytest.mark.parametrize("foreign", [b"", b'{"seconds": "abc"}', b"[" * 10_000, b"\xff\xd8\xff"])
def test_a_foreign_file_of_the_name_is_an_error_that_names_it(output, foreign):
    output.write(LEASE, foreign)
    with (
        pytest.raises(ValueError, match=rf"out/{LEASE} is not a lease of metricgold \(.*move it away"),
        hold_output(output, 60),
    ):
        pass
    assert output.read(LEASE) == foreign


@pytest.mark.parametrize(
    "wrong", [{"seconds": "abc"}, {"seconds": -1}, {"pid": 0}, {"host": "a\x1b[2J"}, {"number": 1.5}]
)
def test_a_lease_with_a_value_of_another_kind_is_an_error_that_names_it(tmp_path, wrong):
    output = open_bucket(str(tmp_path / "out"), create=True)
    write_lease(output)
    output.write(LEASE, json.dumps(lease(output) | wrong).encode())
    (name,) = wrong
    with (
        pytest.raises(ValueError, match=rf"out/{LEASE} is not a lease of metricgold \({name}: "),
        hold_output(output, 60),
    ):
        pass


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


def test_a_paused_machine_looks_at_its_lease_before_it_writes(sink, monkeypatch):
    """Its clock since the boot stood still, the store's did not: another job may have come and gone."""
    with pytest.raises(OutputLost), hold_output(sink, 60) as held:
        held.fence(sink).write("a", b"")
        write_lease(sink, id="another", number=2, ended=True)
        held.fence(sink).write("b", b"")  # it is not due to look yet
        later_s = output_lock.clock_offset_s() + 600
        monkeypatch.setattr(output_lock, "clock_offset_s", lambda: later_s)
        held.fence(sink).write("c", b"")
    assert [entry.key for entry in sink.entries()] == ["a", "b"]


def test_a_worker_on_a_paused_machine_looks_first(sink, monkeypatch):
    with hold_output(sink, 60) as held:
        worker = sent(held.me).fence(sink)
        worker.write("a", b"")
        write_lease(sink, id="another", number=2)
        worker.write("b", b"")  # it is not due to look yet
        later_s = output_lock.clock_offset_s() + 600
        monkeypatch.setattr(output_lock, "clock_offset_s", lambda: later_s)
        with pytest.raises(OutputLost):
            worker.write("c", b"")


def test_a_corrected_clock_makes_no_living_job_dead(monkeypatch):
    """The kernel tells when a process began by the time of day less its time since the boot."""
    holder = Holder.of_this_process(60)
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
    assert not holder.is_dead()


def test_which_process_of_this_machine_is_dead():
    ended, holder = subprocess.Popen(["true"]), Holder.of_this_process(60)
    of_ended = holder.model_copy(update={"pid": ended.pid, "started_ticks": None})
    wait_until(of_ended.is_dead, what="its parent has not yet asked for its exit code")
    ended.wait()
    assert of_ended.is_dead()
    assert holder.model_copy(update={"started_ticks": 1}).is_dead()  # its number was given to another process
    assert not holder.model_copy(update={"machine": "another", "pid": ended.pid}).is_dead()
    before = json.loads(holder.model_dump_json(exclude={"started_ticks"})) | {"started": 1795862999.0}
    assert not Holder.model_validate_json(json.dumps(before)).is_dead()  # a lease of an earlier version


def test_of_jobs_that_start_together_one_writes(sink):
    wrote, refused = [], []

    def start(n: int) -> None:
        try:
            with hold_output(sink, 3) as held:
                held.fence(sink).write("a", b"%d" % n)
                wrote.append(n)
                wait_until(lambda: len(refused) == 3)
                held.fence(sink).write("a", b"%d" % n)
        except BlockingIOError:
            refused.append(n)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    assert len(wrote) == 1
    assert sink.read("a") == b"%d" % wrote[0]


@pytest.mark.parametrize("status", ["501", "412"])
def test_a_store_without_conditional_writes(s3_bucket, s3_environment, monkeypatch, status):  # noqa: F811
    refused = []

    def answer(handler, path, fault):
        if handler.command == "PUT" and (handler.headers.get("If-None-Match") or handler.headers.get("If-Match")):
            refused.append(path)
            handler.rfile.read(int(handler.headers["Content-Length"]))
            fault = status
        return forward(handler, path, fault)

    page = b"<Error><Code>Refused</Code><Message>no</Message></Error>"
    forward = server.Handler._answer
    monkeypatch.setitem(server.PAGES, status, lambda: server._page(int(status), page))
    monkeypatch.setattr(server.Handler, "_answer", answer)
    with FaultServer(upstream=s3_environment["AWS_ENDPOINT_URL"]) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.url)
        sink = open_bucket(f"s3://{s3_bucket}/out", create=True)
        with hold_output(sink, 60) as held:
            held.fence(sink).write("a", b"")
            with pytest.raises(BlockingIOError, match="is being written"), hold_output(sink, 60):
                pass
        assert lease(sink)["ended"]
    assert refused
