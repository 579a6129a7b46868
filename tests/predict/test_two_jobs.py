"""Two jobs on one output: one is cut off for longer than its lease, or several start together. No byte is foreign."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from metricgold.params.sections import Predict
from metricgold.predict import receipt
from metricgold.predict.stage import predict_all
from metricgold.storage.buckets import Folder, S3Prefix, open_bucket
from metricgold.storage.output_lock import LEASE, LOCK, Holder, OutputLost
from tests.support.pipes import PlainPipe
from tests.support.s3 import s3_bucket, s3_environment  # noqa: F401
from tests.support.tries import tries
from tests.support.waiting import wait_until

LEASE_S = 1.0
PARAMS = Predict(num_inference_steps=1, ensemble_size=2, batch_size=4, num_threads=2, gallery=2)
PARAMS = PARAMS.model_copy(update={"lease_s": LEASE_S})  # less than a user may ask for
NUM = 8
DEAD = {"pid": (1 << 31) - 1, "ended": False}


class Model(PlainPipe):
    """Depth that shows whose it is: `name` times that of the picture."""

    def __init__(self, name: int, seconds: float = 0.0, gate: threading.Event | None = None) -> None:
        super().__init__(seconds)
        self.name, self.gate, self.images = name, gate, 0

    def __call__(self, image, **options):
        self.images += len(image)
        if self.gate is not None and self.images > NUM // 2:
            assert self.gate.wait(60)
        predictions = super().__call__(image, **options)
        for prediction in predictions:
            prediction.planar_depth_m *= self.name
        return predictions


def run(source: object, output: object, model: Model) -> dict:
    return predict_all(PARAMS, Path("none"), str(source), str(output), model_name=f"model/{model.name}", pipe=model)


@pytest.fixture
def source(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for n in range(NUM):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(file, "PNG")
        (tmp_path / "in" / f"{n:02d}.png").write_bytes(file.getvalue())
    return tmp_path / "in"


@pytest.fixture(params=["folder", "s3"])
def sink(request, tmp_path) -> Folder | S3Prefix:
    place = tmp_path / "out" if request.param == "folder" else f"s3://{request.getfixturevalue('s3_bucket')}/out"
    return open_bucket(str(place), create=True)


@pytest.fixture
def files_of(source, tmp_path) -> Callable[[int], dict[str, str]]:
    """MD5 of the files that a model leaves that nobody disturbs."""

    def undisturbed(model: int) -> dict[str, str]:
        if not (tmp_path / f"alone{model}").exists():
            run(source, tmp_path / f"alone{model}", Model(model))
        return digests(Folder(tmp_path / f"alone{model}"))

    return undisturbed


def digests(sink: Folder | S3Prefix) -> dict[str, str]:
    return {
        entry.key: hashlib.md5(sink.read(entry.key)).hexdigest() for entry in sink.entries() if entry.key[0] in "01"
    }


def assert_all_is_of(model: int, sink: Folder | S3Prefix, files_of: Callable[[int], dict[str, str]]) -> None:
    """Every file, and every row of the receipt and its tags, is of this model; no other file is there."""
    rows = [json.loads(line) for line in sink.lines(receipt.RECEIPT)]
    assert not [row["reason"] for row in rows if row["status"] != "done"]
    assert digests(sink) == files_of(model)
    named = {file["key"]: file["tag"] for row in rows for file in row["outputs"].values()}
    assert {row["model"] for row in rows} == {f"model/{model}"}
    assert named == {entry.key: entry.tag for entry in sink.entries() if entry.key in named}
    assert named.keys() == files_of(model).keys()
    assert json.loads(sink.read(receipt.SUMMARY))["model"] == f"model/{model}"
    assert f"model/{model}".encode() in sink.read("gallery.html")


# A job that is cut off


def cut_off(source: str, output: str, environment: dict[str, str], before: str) -> None:
    """A job that freezes, as if swapped out, when it is about to predict its third batch or to write its receipt."""

    def freeze() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    class Freezing(Model):
        def __call__(self, image, **options):
            if self.images == 4:
                # What it has sent may arrive late, whoever has the output: see the test of a late write.
                wait_until(lambda: all(sink.exists(f"{n:02d}.png.json") for n in range(4)), what="it writes nothing")
                freeze()
            return super().__call__(image, **options)

    os.environ.update(environment)
    sink = open_bucket(output, create=True)
    receipt.FLUSH_SECONDS = 0.0
    if before == "receipt":
        finish = receipt.Receipt.finish
        receipt.Receipt.finish = lambda self, summary: freeze() or finish(self, summary)
    try:
        run(source, output, Model(1) if before == "receipt" else Freezing(1, seconds=0.05))
    except OutputLost as error:
        sys.exit(error.exit_code)


@pytest.fixture
def frozen(source, sink, request):
    """A job of model 1 that has frozen; `request.param` says before what."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["metricgold.predict.stage", "boto3", "psutil"])
    ours = {key: value for key, value in os.environ.items() if key.startswith(("AWS_", "METRICGOLD_"))}
    job = processes.Process(target=cut_off, args=(str(source), str(sink), ours, request.param))
    job.start()
    wait_until(lambda: psutil.Process(job.pid).status() == psutil.STATUS_STOPPED, what="the job is frozen")
    yield job
    job.kill()
    job.join()


def go_on(job) -> int:
    """The exit code of a job that is no longer frozen."""
    os.kill(job.pid, signal.SIGCONT)
    job.join(60)
    return job.exitcode


def run_when_free(source: Path, sink: Folder | S3Prefix, model: Model) -> None:
    """As a schedule does that tries again: a job that begins once the lease of the frozen one is over."""
    if isinstance(sink, Folder):
        sink.path(LOCK).unlink()  # a file server that has forgotten the lock of a client it does not hear from

    def began() -> bool:
        try:
            run(source, sink, model)
        except BlockingIOError:
            return False
        return True

    wait_until(began, every_s=0.2)


@pytest.mark.parametrize("frozen", ["batch", "receipt"], indirect=True)
def test_a_job_cut_off_until_another_is_done(frozen, source, sink, files_of):
    run_when_free(source, sink, Model(2))
    assert go_on(frozen) == 75
    assert_all_is_of(2, sink, files_of)
    assert json.loads(sink.read(LEASE))["number"] == 2
    assert run(source, sink, Model(2))["images_kept"] == NUM


@pytest.mark.parametrize("frozen", ["batch", "receipt"], indirect=True)
def test_a_job_cut_off_while_another_runs(frozen, source, sink, files_of):
    model = Model(2, gate=threading.Event())
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_when_free, source, sink, model)
        wait_until(lambda: model.images > NUM // 2)
        assert go_on(frozen) == 75
        model.gate.set()
        other.result()
    assert_all_is_of(2, sink, files_of)


@pytest.mark.parametrize("frozen", ["batch"], indirect=True)
def test_a_job_cut_off_that_nobody_replaced_goes_on(frozen, source, sink, files_of):
    if isinstance(sink, Folder):
        with pytest.raises(BlockingIOError, match="is being written"):  # the kernel knows that it lives
            run(source, sink, Model(2))
    else:
        wait_until(lambda: sink.read_tagged(LEASE)[2] > LEASE_S, what="the lease has ended")
    assert go_on(frozen) == 0
    assert_all_is_of(1, sink, files_of)


# A late write


def test_a_late_write_of_the_job_before_is_a_row_that_failed(sink, source):
    class Disturbed(Model):
        def __call__(self, image, **options):
            if self.images == NUM - 2:  # two images are at work, the others are written
                wait_until(lambda: sink.exists("00.png.json"))
                sink.write("00.png.depth.png", b"foreign")
            return super().__call__(image, **options)

    holder = Holder.of_this_process(60).model_copy(update=DEAD)
    sink.write(LEASE, holder.model_dump_json().encode())
    summary = run(source, sink, Disturbed(2))
    assert (summary["images_done"], summary["images_failed"]) == (NUM - 1, 1)
    (row,) = (row for row in map(json.loads, sink.lines(receipt.RECEIPT)) if row["status"] == "failed")
    assert row["reason"] == "00.png: another job has written over its files; the next run predicts it again"
    again = run(source, sink, Model(2))
    assert (again["images_done"], again["images_kept"]) == (NUM, NUM - 1)


# Races


def race(source: Path, sink: Folder | S3Prefix, files_of: Callable[[int], dict[str, str]], *, takeover: bool) -> None:
    """Three jobs start at once on an output that is free, or whose job has died: one does all, the others nothing."""
    if takeover:
        sink.write(LEASE, Holder.of_this_process(60).model_copy(update=DEAD).model_dump_json().encode())
    together, finished = threading.Barrier(3), []

    def start(model: int) -> None:
        together.wait(60)
        try:
            run(source, sink, Model(model))
            finished.append(model)
        except BlockingIOError:
            pass

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(start, (1, 2, 3)))
    assert finished
    assert_all_is_of(finished[-1], sink, files_of)


def races(num: int, s3_bucket: str, source: Path, files_of: Callable[[int], dict[str, str]]) -> None:  # noqa: F811
    for n in range(num):
        race(source, open_bucket(f"s3://{s3_bucket}/out{n}", create=True), files_of, takeover=n % 2 == 0)


@pytest.mark.slow
def test_fifty_races(s3_bucket, source, files_of):  # noqa: F811
    races(tries(50), s3_bucket, source, files_of)
