"""A batch job on a Dask cluster: the same outputs, each image once, whatever becomes of the workers."""

import io
import json
import logging
import os
import random
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from metricgold.params.sections import Predict
from metricgold.predict import dask_slices as slices
from metricgold.predict.dask_cluster import open_client
from metricgold.predict.dask_slices import predict_on
from metricgold.predict.job import BatchJob
from metricgold.predict.stage import predict_all
from metricgold.storage.buckets import StoredObject, open_bucket
from metricgold.storage.output_lock import LEASE, Holder, OutputLost, hold_output
from tests.support.pipes import NotingPipe, PlainPipe
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401
from tests.support.workers import sent

distributed = pytest.importorskip("distributed")
PARAMS = Predict(num_inference_steps=2, ensemble_size=2, batch_size=8, num_threads=2, gallery=5)


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, count: int) -> Path:
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:03d}.png").write_bytes(picture(n))
    return folder


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "receipt.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    """Rows but for when; a folder's tags are times too."""
    plain = [{**row, "seconds": None, "finished": None} for row in rows]
    return [{**row, "outputs": {kind: one["key"] for kind, one in row.get("outputs", {}).items()}} for row in plain]


def files_of(out: Path) -> dict[str, bytes]:
    """Bytes of all outputs, without what says how long it took."""
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {
        key: path.read_bytes()
        for key, path in found.items()
        if not key.startswith((".", "receipt", "summary", "gallery"))
    }


def run(client, source, out, pipe=None, *, params=PARAMS, model=Path("no-such-model")):
    run_entries = None if client is None else partial(predict_on, client)
    return predict_all(
        params, model, str(source), str(out), model_name="metricgold/1", pipe=pipe, run_entries=run_entries
    )


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(slices, "FIRST_IMAGES", 2)
    monkeypatch.setattr(slices, "MOST_IMAGES", 4)


@pytest.fixture
def threads():
    """Client of a cluster whose workers are threads here; the first of them offers a GPU."""
    workers = {
        name: {"cls": distributed.Worker, "options": {"nthreads": 1, "dashboard": False, "resources": resources}}
        for name, resources in (("card", {"GPU": 1}), ("plain", {}))
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard": False}}
    with (
        distributed.SpecCluster(workers, scheduler, silence_logs=logging.ERROR) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def plain_threads():
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=logging.ERROR
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


def test_a_cluster_gives_what_one_process_gives(plain_threads, small_slices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths, which mean nothing to a worker elsewhere
    source = fill(tmp_path / "in", 21)
    (source / "wide.png").write_bytes(picture(77, 64, 20))
    (source / "broken.png").write_bytes(picture(5)[:-40])
    (source / "notes.txt").write_text("no image")
    alone = run(None, "in", "alone", PlainPipe())
    shared = run(plain_threads, "in", "shared", PlainPipe())
    assert without_times(rows_of(Path("shared"))) == without_times(rows_of(Path("alone")))
    assert files_of(Path("shared")) == files_of(Path("alone"))
    same = ("images_done", "images_failed", "images_skipped", "reasons", "input", "params")
    assert {key: shared[key] for key in same} == {key: alone[key] for key in same}
    assert shared["images_done"] == 22 and shared["images_failed"] == 1
    pages = [(Path(out) / "gallery.html").read_text() for out in ("alone", "shared")]
    assert pages[0].count("data:image/jpeg") == pages[1].count("data:image/jpeg") > 0
    again = run(plain_threads, "in", "shared", PlainPipe())
    assert again["images_kept"] == 22


def test_workers_that_offer_a_gpu_take_all_of_it(threads, small_slices, tmp_path, monkeypatch):
    monkeypatch.setattr(NotingPipe, "workers", [])
    assert run(threads, fill(tmp_path / "in", 12), tmp_path / "out", NotingPipe())["images_done"] == 12
    assert set(NotingPipe.workers) == {"card"}


def test_the_listing_is_read_as_workers_can_take_it(plain_threads, small_slices, tmp_path):
    source = fill(tmp_path / "in", 40)
    read, ahead = 0, []

    def run_entries(job, entries, **options):
        def counted():
            nonlocal read
            for entry in entries:
                read += 1
                yield entry

        for done, row in enumerate(predict_on(plain_threads, job, counted(), **options), 1):
            ahead.append(read - done)
            yield row

    predict_all(
        PARAMS,
        Path("none"),
        str(source),
        str(tmp_path / "out"),
        model_name="m",
        pipe=PlainPipe(),
        run_entries=run_entries,
    )
    assert max(ahead) <= 4 * 4 < 40


def test_slices_become_as_long_as_they_should_take(plain_threads, tmp_path, monkeypatch):
    work = slices.RunningSlices(plain_threads, None, None, None)
    sizes = []
    for seconds in (1, 30, 1, 1, 1, 1, 1, 100, 100):
        work.resize(seconds)
        sizes.append(work.num_images)
    assert sizes == [32, 32, 64, 128, 256, 256, 256, 128, 64]


def test_a_worker_loads_the_pipeline_once_and_only_the_job_s_model(plain_threads, small_slices, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(BatchJob, "load_model", lambda job: loads.append(job.model) or PlainPipe())
    monkeypatch.setattr(slices, "_loaded", {})
    model, source = tmp_path / "model", fill(tmp_path / "in", 10)
    model.mkdir()
    (model / "weights").write_text("1")
    assert run(plain_threads, source, tmp_path / "out", model=model)["images_done"] == 10
    assert loads == [model]
    digests = iter(["as it was"])
    monkeypatch.setattr("metricgold.predict.stage.digest_model", lambda _model: next(digests))
    with pytest.raises(ValueError, match="is not the model of this job: another disk"):
        run(plain_threads, source, tmp_path / "other", model=model)


def test_outputs_on_another_disk_are_found_out(plain_threads, small_slices, tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "SHARED_S", 0.3)
    monkeypatch.setattr("metricgold.predict.job.BatchJob.open_sink", _open_elsewhere(tmp_path))
    with pytest.raises(OSError, match=r"a worker has written 000\.png.* and it is not here: another disk"):
        run(plain_threads, fill(tmp_path / "in", 4), tmp_path / "out", PlainPipe())


def _open_elsewhere(tmp_path):
    """Workers see another folder under the same path."""
    from metricgold.storage.buckets import open_bucket

    def open_sink(job):
        is_worker = threading.current_thread() is not threading.main_thread()
        return open_bucket(str(tmp_path / "far") if is_worker else job.output, create=True)

    return open_sink


def test_what_a_worker_cannot_do_is_said_in_one_line(plain_threads, tmp_path, monkeypatch):
    def load(_job):
        raise ImportError("no libcudart")

    monkeypatch.setattr(BatchJob, "load_model", load)
    monkeypatch.setattr("metricgold.predict.dask_slices.digest_model", lambda _model: "")
    with pytest.raises(OSError, match="a worker of the Dask cluster failed: ImportError: no libcudart"):
        run(plain_threads, fill(tmp_path / "in", 3), tmp_path / "out")


def test_a_scheduler_that_is_gone_is_said(small_slices, tmp_path):
    from dask import config

    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, silence_logs=logging.CRITICAL,
        protocol="tcp",
    )  # fmt: skip
    with (
        config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        distributed.Client(cluster.scheduler_address) as client,
    ):
        ending = threading.Timer(1.0, cluster.close)
        ending.start()
        with pytest.raises(OSError, match="scheduler is gone"):
            run(client, fill(tmp_path / "in", 30), tmp_path / "out", PlainPipe(seconds=0.3))
        ending.join()
    assert list((tmp_path / "out").glob("receipt.partial/*"))


def test_only_an_image_that_was_alone_is_blamed():
    """One that waits at a worker dies with the one at work."""
    job = BatchJob(PARAMS, "in", "out", Path("none"), "metricgold/1", "")
    work = slices.RunningSlices(SimpleNamespace(submit=lambda *_, **__: object()), job, None, None)
    for key in ("deadly.png", "beside.png"):
        assert work.halve([StoredObject(key, 1, "tag")], RuntimeError("killed")) == []
    blamed, tried = [], []
    while work.submit_suspect():
        _, (entry,) = work.running.popitem()
        tried.append(entry.key)
        if entry.key == "deadly.png":
            blamed += work.halve([entry], RuntimeError("killed"))
    assert sorted(tried) == ["beside.png", "deadly.png"]
    assert [(row["input"], row["status"]) for row in blamed] == [("deadly.png", "failed")]


@pytest.mark.slow
def test_an_image_that_kills_its_workers_is_the_only_failed_row(small_slices, tmp_path, monkeypatch):
    from dask import config

    source = fill(tmp_path / "in", 16)
    (source / "007.png").write_bytes(picture(7, width=41))
    with config.set({"distributed.scheduler.allowed-failures": 0}), open_client("local:2") as client:
        summary = run(client, source, tmp_path / "out", PlainPipe(deadly_width=41))
    assert (summary["images_done"], summary["images_failed"]) == (15, 1)
    (failed,) = [row for row in rows_of(tmp_path / "out") if row["status"] == "failed"]
    assert failed["input"] == "007.png" and "the workers died at it" in failed["reason"]


@pytest.mark.slow
def test_ten_killed_workers_lose_nothing_and_do_nothing_twice(small_slices, tmp_path):
    source = fill(tmp_path / "in", 120)
    run(None, source, tmp_path / "alone", PlainPipe())
    random_moments = random.Random(0)
    over, killed = threading.Event(), []

    def kill(client):
        while len(killed) < 10 and not over.wait(random_moments.uniform(0.2, 1.5)):
            pids = list(client.run(os.getpid, on_error="ignore").values())
            if pids:
                os.kill(random_moments.choice(pids), signal.SIGKILL)
                killed.append(time.monotonic())

    with open_client("local:2") as client:
        killer = threading.Thread(target=kill, args=[client])
        killer.start()
        summary = run(client, source, tmp_path / "out", PlainPipe(seconds=0.15))
        over.set()
        killer.join()
    assert len(killed) == 10
    rows = rows_of(tmp_path / "out")
    assert [row["input"] for row in rows] == sorted(path.name for path in source.iterdir())
    assert summary["images_done"] + summary["images_failed"] == 120
    right, found = files_of(tmp_path / "alone"), files_of(tmp_path / "out")
    done = {row["input"] for row in rows if row["status"] == "done"}
    assert all(row["reason"] for row in rows if row["input"] not in done)
    assert {key for key in found} <= set(right)
    assert all(found[key] == data for key, data in right.items() if key[:7] in done)
    assert len(done) >= 110


@pytest.mark.slow
def test_local_processes_give_the_same_bytes(tiny, tiny_raw, tiny_model, tmp_path):
    params = tiny.predict.model_copy(update={"batch_size": 6, "gallery": 0})
    run(None, f"{tiny_raw}/**/*_left.png", tmp_path / "alone", params=params, model=tiny_model)
    with open_client("local:2") as client:
        run(client, f"{tiny_raw}/**/*_left.png", tmp_path / "out", params=params, model=tiny_model)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    assert without_times(rows_of(tmp_path / "out")) == without_times(rows_of(tmp_path / "alone"))


@pytest.mark.slow
def test_s3_to_s3_on_processes_of_their_own(s3_bucket, tmp_path):  # noqa: F811
    """They find endpoint and credentials where this process does."""
    for n in range(24):
        s3_client().put_object(Bucket=s3_bucket, Key=f"in/{n:03d}.png", Body=picture(n))
    source = fill(tmp_path / "in", 24)
    run(None, source, tmp_path / "alone", PlainPipe())
    with open_client("local:2") as client:
        summary = run(client, f"s3://{s3_bucket}/in", f"s3://{s3_bucket}/out", PlainPipe())
    assert (summary["images_done"], summary["images_failed"]) == (24, 0)
    out = open_bucket(f"s3://{s3_bucket}/out")
    for key in ("000.png.depth.png", "023.png.uncertainty.png", "021.png.preview.jpg"):
        assert _pixels(out.read(key)) == _pixels((tmp_path / "alone" / key).read_bytes())
    assert out.read("gallery.html").count(b"data:image/jpeg") > 0


def _pixels(data: bytes) -> bytes:
    """Of a picture whose text says which input, and thus another tag."""
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()


def test_a_worker_whose_job_lost_the_output_writes_nothing_more(tmp_path):
    source, out = open_bucket(str(fill(tmp_path / "in", 2))), open_bucket(str(tmp_path / "out"), create=True)
    job = BatchJob(PARAMS, str(source), str(out), Path("none"), "plain", "")
    first, second = source.entries()
    with hold_output(out, 60) as lease:
        carried = sent(replace(job, lease=lease).elsewhere())
        (row,), _, _ = slices.predict_slice(carried, [first], frozenset(), PlainPipe())
        assert row["status"] == "done"
        out.write(LEASE, Holder.of_this_process(60).model_dump_json().encode())  # the job has died, another one began
        with pytest.raises(OutputLost, match="is being written by process"):
            slices.predict_slice(carried, [second], frozenset(), PlainPipe())
    assert not [entry.key for entry in out.entries() if entry.key.startswith(second.key)]
