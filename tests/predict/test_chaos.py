"""Batch jobs killed at random moments, and jobs whose store is: in the end all is as if nothing had happened."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from metricgold.log_depth import LogDepth
from metricgold.params.sections import Predict
from metricgold.predict import receipt
from metricgold.predict.stage import predict_all
from metricgold.storage.buckets import Folder, S3Prefix, open_bucket
from tests.support.s3 import s3_bucket, s3_client, s3_environment  # noqa: F401 - fixtures
from tests.support.swift import Swift

PARAMS = Predict(num_inference_steps=1, ensemble_size=2, batch_size=8, num_threads=2, gallery=3)
PAUSE_S = 0.5  # in which a killed server stays away
pytestmark = pytest.mark.slow


class SteadyPipe:
    """Depth from the red channel, 1 to 11 m, in PACE_S an image."""

    max_steps = 1000
    is_one_step = False
    needs_camera = False
    PACE_S = 0.005

    def processing_size(self, height, width):
        return height, width

    def __call__(self, image, **options):
        time.sleep(self.PACE_S * len(image))
        return [self.predict(rgb) for rgb in image]

    @staticmethod
    def predict(rgb):
        depth_m = 1 + rgb[..., 0].astype(np.float32) / 25.5
        known = {"uncertainty": np.full_like(depth_m, 0.02), "valid_mask": depth_m < 10.9}
        known["log_depth"] = LogDepth(0.5, 80.0)
        return SimpleNamespace(
            planar_depth_m=depth_m, num_members=2, uncertainty_calibrated=False, unlikeness=None, **known
        )


def fill(source: Folder | S3Prefix, num: int) -> None:
    """Photographs of three sizes, a broken one and a file that is none."""
    rng = np.random.default_rng(0)
    for n in range(num):
        file = io.BytesIO()
        rgb = rng.integers(0, 256, (24 + 8 * (n % 3), 32, 3), np.uint8)
        Image.fromarray(rgb).save(file, "PNG")
        source.write(f"{n % 4}/{n:03d}.png", file.getvalue())
    source.write("1/broken.png", file.getvalue()[:300])
    source.write("notes.txt", b"no picture")


def work(source: str, output: str, environment: dict[str, str], begun) -> None:
    os.environ.update(environment)
    receipt.FLUSH_SECONDS = 0.1  # what a kill costs
    begun.send("begun")
    predict_all(PARAMS, Path("none"), source, output, model_name="steady", pipe=SteadyPipe())


def start(source: str, output: str):
    """A job in a process of its own that has just begun."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["metricgold.predict.stage", "boto3", "psutil"])
    listen, begun = processes.Pipe(duplex=False)
    ours = {key: value for key, value in os.environ.items() if key.startswith(("AWS_", "METRICGOLD_"))}
    job = processes.Process(target=work, args=(source, output, ours, begun))
    job.start()
    assert listen.recv() == "begun"
    return job


def kill_again_and_again(
    source: str, output: Callable[[int], str], expected: dict, *, num_kills: int, within_s: float
) -> None:
    """Jobs into one output after the other, each killed and resumed until it ends."""
    rng, kills, runs = random.Random(0), 0, 0
    while kills < num_kills:
        sink = open_bucket(output(runs), create=True)
        runs += 1
        job = start(source, str(sink))
        while job.exitcode is None:
            job.join(rng.uniform(0, within_s))
            if job.exitcode is None:
                job.kill()
                job.join()
                kills += 1
                assert visible(sink).items() <= expected["files"].items()
                job = start(source, str(sink))
                if kills >= num_kills:
                    job.join()
        assert job.exitcode == 0
        assert outcome(sink) == expected
    print(f"{kills} kills in {runs} runs")


def visible(sink: Folder | S3Prefix) -> dict[str, str]:
    """MD5 of the images' files, those of a run that is not over too."""
    found = {entry.key: entry.tag for entry in sink.entries() if entry.key[0] in "0123"}
    if isinstance(sink, S3Prefix):
        return found
    return {key: hashlib.md5(sink.read(key)).hexdigest() for key in found}


def outcome(sink: Folder | S3Prefix) -> dict:
    """All that a job leaves, but for times."""
    summary = json.loads(sink.read(receipt.SUMMARY))
    rows = [json.loads(line) for line in sink.lines(receipt.RECEIPT)]
    assert isinstance(sink, S3Prefix) or not list(sink.root.glob("**/.*.part"))
    return {
        "files": visible(sink),
        "rest": sorted(entry.key for entry in sink.entries() if entry.key[0] not in "0123"),
        "rows": [(row["input"], row["status"], row["reason"], row.get("sha256")) for row in rows],
        "counts": {name: summary[f"images_{name}"] for name in ("done", "failed", "skipped")},
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Callable[[Folder | S3Prefix], dict]:
    """What a job over an input leaves that nobody disturbs. A side-car names the input's tag, so each has its own."""

    def undisturbed(source: Folder | S3Prefix) -> dict:
        sink = open_bucket(str(tmp_path_factory.mktemp("undisturbed") / "out"), create=True)
        predict_all(PARAMS, Path("none"), str(source), str(sink), model_name="steady", pipe=SteadyPipe())
        found = outcome(sink)
        num = len(found["rows"]) - 2
        assert found["counts"] == {"done": num, "failed": 1, "skipped": 1}
        assert len(found["files"]) == 4 * num
        assert found["rest"] == ["gallery.html", "receipt.jsonl", "summary.json"]
        return found

    return undisturbed


def test_a_job_into_a_folder_is_killed_fifty_times(tmp_path, expected):
    source = open_bucket(str(tmp_path / "in"), create=True)
    fill(source, 60)
    outputs = tmp_path / "out"
    kill_again_and_again(str(source), lambda n: f"{outputs}{n}", expected(source), num_kills=50, within_s=0.5)


def test_a_job_into_s3_is_killed_twenty_times(s3_bucket, expected):  # noqa: F811
    source = open_bucket(f"s3://{s3_bucket}/in", create=True)
    fill(source, 10)
    outputs = f"s3://{s3_bucket}/out"
    kill_again_and_again(str(source), lambda n: f"{outputs}{n}", expected(source), num_kills=20, within_s=1.4)


def test_an_s3_store_is_killed_ten_times_and_the_job_never_knows(tmp_path, monkeypatch, expected):
    try:
        store = Swift(tmp_path / "swift")
    except OSError as reason:
        pytest.skip(f"no S3 server: {reason}")
    with store:
        for key, value in (store.environment | {"METRICGOLD_S3_PATIENCE_S": "30"}).items():
            monkeypatch.setenv(key, value)
        s3_client().create_bucket(Bucket="chaos")
        source = open_bucket("s3://chaos/in", create=True)
        fill(source, 20)
        wanted, rng, kills, runs = expected(source), random.Random(0), 0, 0
        while kills < 10:
            sink = open_bucket(f"s3://chaos/out{runs}", create=True)
            job = start(str(source), str(sink))
            runs += 1
            while job.exitcode is None:
                job.join(rng.uniform(0, 1))
                if job.exitcode is None and kills < 10:
                    name = rng.choice(["object", "proxy"])
                    store.kill(name)
                    kills += 1
                    time.sleep(PAUSE_S)
                    store.start(name)
            assert job.exitcode == 0
            assert outcome(sink) == wanted
        print(f"{kills} kills in {runs} runs")
