"""Speed against named peers; every figure and its yardstick are timed in the same run. `make bench` runs all.

One thread of arithmetic on both sides. A time is the least of several rounds in which the contestants take turns,
so that what else the machine does meets them alike.
"""

import os

# Set before numpy starts: the figures are per core, and threads of arithmetic would hide that.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Callable
from typing import NamedTuple


class Bound(NamedTuple):
    """What a figure should be: at most or at least `limit`."""

    sign: str
    limit: float

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


BOUNDS = {
    "download.faulty_bytes_ratio": Bound("<=", 1.15),  # bytes moved / needed, under faults and kills
    "download.selective_bytes_ratio": Bound("<=", 1.02),  # bytes moved / of the members wanted
    "download.rate_vs_client": Bound(">=", 0.8),  # over a plain client on loopback; only ours verifies
    "download.rss_growth_mb": Bound("<=", 30),  # peak memory at 1 GB minus at 10 MB
    "frames.speedup_vs_script": Bound(">=", 3),  # HyperSim frame conversion against the usual script
    "frames.time_vs_read": Bound("<=", 1.5),  # the same over merely reading colour and distance
    "cache.samples_per_s_core": Bound(">=", 400),  # random reads of 480 x 640 latents
    "cache.speedup_vs_encode": Bound(">=", 50),  # against decoding and VAE-encoding in every step
    "cache.index_open_s": Bound("<=", 1),  # of 400,000 samples
    "train.speedup_vs_usual": Bound(">=", 2.5),  # step from the cache against float32 with the VAE in the loop
    "train.data_wait": Bound("<=", 0.02),  # share of a step spent waiting for data
    "predict.speedup_vs_diffusers_default": Bound(">=", 3),  # 50 steps x 10 runs against MarigoldDepthPipeline
    "predict.speedup_vs_diffusers_best": Bound(">=", 1.5),
    "batch.overhead": Bound("<=", 1.1),  # wall time / time of the model alone, on S3
    "batch.free_model_images_per_s_core": Bound(">=", 100),  # folder to folder, 256 px, a model that costs nothing
    "batch.sync_share": Bound("<=", 0.03),  # of that job's time, spent waiting for the disk
    "batch.s3_rate_vs_boto3": Bound(">=", 0.8),  # the same on S3 over a bare boto3 loop
    "batch.rss_growth_mb": Bound("<=", 50),  # 100,000 listed keys minus 1,000
    "batch.kept_cpu_s_per_million": Bound("<=", 6),  # of rows that a rerun keeps, listings included that cost nothing
    "batch.kept_rss_mb_per_million": Bound("<=", 80),  # memory that the same rerun takes
    "serve.overhead_ms": Bound("<=", 15),  # of a request beyond 1.1 x a call of the pipeline, 640 x 480
    "serve.batching_speedup": Bound(">=", 1.5),  # throughput of 16 clients over that with batches of one
    "serve.rss_growth_mb": Bound("<=", 50),  # the server's memory after 5,000 mixed requests minus after 500
    "serve.mlflow_overhead_ms": Bound("<=", 15),  # serve.overhead_ms of `mlflow models serve`, whose answer is JSON
    "export.onnx_speedup": Bound(">=", 0),  # over a call of the pipeline on one core; told, not bound
    "evaluate.speedup_vs_script": Bound(">=", 5),  # all figures of an image against a pass for each of them
    "evaluate.rss_growth_mb": Bound("<=", 50),  # 10,000 images measured minus 100
    "flow.cpu_s_per_stage": Bound("<=", 2),  # of Prefect and DVC; 28 stages of the demo's 19 CPU minutes: 5 %
    "dask.speedup_2": Bound(">=", 1.8),  # two workers over one
    "dask.predict_speedup_2": Bound(">=", 1.8),  # the same of a batch job that its model bounds
}


class CannotRun(Exception):
    """A benchmark has no figure here; the message is the reason."""


def least_seconds(*contestants: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of the fastest of `rounds` calls of each contestant; they take turns, after one call to warm up."""
    times = [[_seconds(contestant) for contestant in contestants] for _ in range(rounds + 1)]
    return [min(column) for column in zip(*times[1:], strict=True)]


def _seconds(contestant: Callable[[], object]) -> float:
    started = time.perf_counter()
    contestant()
    return time.perf_counter() - started
