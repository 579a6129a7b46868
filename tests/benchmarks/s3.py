"""Batch depth on S3: against a bare loop, over the model's own time, and memory.

The store is the tests' own Swift, which shares the cores with the job.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from metricgold.params.sections import Predict
from metricgold.predict.outputs import DEFAULT, SUFFIXES as SUFFIX_OF
from metricgold.predict.stage import predict_all
from tests.support import ROOT, stub

from . import CannotRun, least_seconds
from .batch import FreePipe, write_photographs

SWIFT = ROOT / "tests/support/swift.py"
SUFFIXES = [SUFFIX_OF[kind] for kind in DEFAULT]
NUM_FREE, NUM_SLOW = 1_000, 2_000  # images, with a model that costs nothing and with one that does
MODEL_S = 0.1  # an image: two steps x two runs on a fast card; 50 x 10 take seconds


class Store(NamedTuple):
    client: Any
    bucket: str

    def url(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)


@contextmanager
def store(folder: Path, num_images: int) -> Iterator[Store]:
    """A fresh bucket with photographs below in/."""
    with _served(folder / "swift") as environment, mock.patch.dict(os.environ, environment):
        fresh = Store(make_client(), f"metricgold-{uuid.uuid4().hex[:12]}")
        fresh.client.create_bucket(Bucket=fresh.bucket)
        for path in write_photographs(folder / "in", num_images).iterdir():
            fresh.put(f"in/{path.name}", path.read_bytes())
        yield fresh


def make_client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.Session().client("s3", config=Config(s3={"addressing_style": "path"}, max_pool_connections=64))


@contextmanager
def _served(folder: Path) -> Iterator[dict[str, str]]:
    command = [sys.executable, SWIFT, "run", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        said = list(takewhile(lambda line: line != "READY=1\n", server.stdout))
        if not said:
            raise CannotRun(f"no S3 store: {server.stderr.read().strip()[-300:]}")
        try:
            yield dict(line.strip().split("=", 1) for line in said)
        finally:
            server.terminate()


def rate(folder: Path) -> dict[str, float]:
    """A model that costs nothing against a bare loop that gets and puts the same bytes with as many threads."""
    params, pipe, outputs = Predict(gallery=0), FreePipe(), (f"out{n}/" for n in count())
    with store(folder, NUM_FREE) as there:
        job = partial(predict_all, params, folder / "none", there.url("in"), model_name="free", pipe=pipe)
        job(there.url("first"))
        files = {key: there.get(key) for key in there.keys("first/") if "jpg." in key}
        job_s, loop_s = least_seconds(
            lambda: job(there.url(next(outputs))),
            lambda: _get_and_put(there, files, next(outputs), 2 * params.num_threads),  # readers and writers
            rounds=2,
        )
    return {
        "batch.s3_rate_vs_boto3": loop_s / job_s,
        "batch.s3_images_per_s": NUM_FREE / job_s,
        "batch.s3_images_per_s_boto3": NUM_FREE / loop_s,
    }


def _get_and_put(there: Store, files: dict[str, bytes], prefix: str, num_threads: int) -> None:
    client = there._replace(client=make_client())

    def copy(key: str) -> None:
        client.get(key)
        stem = key.removeprefix("in/")
        for suffix in SUFFIXES:
            client.put(f"{prefix}{stem}{suffix}", files[f"first/{stem}{suffix}"])

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(copy, client.keys("in/")))


class SlowPipe(FreePipe):
    """Takes MODEL_S for each image and leaves the cores alone meanwhile, as a card does."""

    def __call__(self, image, **inference):
        time.sleep(MODEL_S * len(image))
        return super().__call__(image)


def overhead(folder: Path) -> dict[str, float]:
    """Wall time over what the model alone takes."""
    with store(folder, NUM_SLOW) as there:
        started = time.perf_counter()
        arguments = Predict(ensemble_size=2), folder / "none", there.url("in"), there.url("out")
        summary = predict_all(*arguments, model_name="slow", pipe=SlowPipe())
        seconds = time.perf_counter() - started
    assert summary["images_done"] == NUM_SLOW
    return {"batch.overhead": seconds / (NUM_SLOW * MODEL_S)}


def rss_growth(folder: Path) -> dict[str, float]:
    """Peak memory of a job over 100,000 keys over that of one over 1,000; of both, 1 % is new since the last run.

    The store is a stub: filling a real one would take longer than all else here.
    """
    if not Path("/proc/self/status").exists():
        raise CannotRun("this system does not tell a process's peak memory")
    (photo,) = write_photographs(folder / "photographs", 1).iterdir()
    (folder / "in").mkdir()
    shutil.copy(photo, folder / "in" / stub.name(0))
    _predict_free(str(folder / "in"), str(folder / "out"))
    row = json.loads((folder / "out" / "receipt.jsonl").read_text())
    row["input_tag"] = stub.TAG
    row["outputs"] = {kind: {**file, "tag": stub.TAG} for kind, file in row["outputs"].items()}
    (folder / "row").write_text(json.dumps(row) + "\n")
    few_mb, many_mb = (_peak_mb(folder / "row", photo, num) for num in (1_000, 100_000))
    return {"batch.rss_growth_mb": many_mb - few_mb, "batch.rss_mb_100000": many_mb}


def _peak_mb(row: Path, photo: Path, num: int) -> float:
    command = [sys.executable, stub.__file__, str(num), str(num - num // 100), row, photo, *SUFFIXES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        secrets = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        there = {"AWS_ENDPOINT_URL": server.stdout.readline().strip(), **secrets}
        with mock.patch.dict(os.environ, there), multiprocessing.get_context("spawn").Pool(1) as pool:
            summary, peak_mb = pool.apply(_predict_and_measure)
        server.stdin.close()
    assert (summary["images_done"], summary["images_kept"]) == (num, num - num // 100)
    return peak_mb


def _predict_and_measure() -> tuple[dict[str, Any], float]:
    summary = _predict_free("s3://bucket/in", "s3://bucket/out")
    # Not ru_maxrss, which a child takes over from the process that started it.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return summary, int(line.split()[1]) * 1024 / 1e6


def _predict_free(source: str, output: str) -> dict[str, Any]:
    return predict_all(Predict(), Path("none"), source, output, model_name="free", pipe=FreePipe())
