"""Batch depth around a model that costs nothing: decoding, four files an image, the receipt."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from metricgold.log_depth import LogDepth
from metricgold.model.pipeline import Prediction
from metricgold.params.sections import Predict
from metricgold.predict.stage import predict_all
from metricgold.storage.buckets import Folder

from . import CannotRun, least_seconds

NUM_IMAGES, SIDE = 300, 256
NUM_SYNCED = 2000


class FreePipe:
    """A DepthModel; every answer is the same smooth depth with a little grain."""

    log_depth = LogDepth(0.5, 80.0)
    max_steps = 1000
    is_one_step = False
    needs_camera = False

    def __init__(self) -> None:
        y = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None]
        grain = np.random.default_rng(0).normal(1, 1e-3, (SIDE, SIDE)).astype(np.float32)
        uncertainty = np.full((SIDE, SIDE), 0.02, np.float32) * grain
        self.prediction = Prediction(
            planar_depth_m=20 / (0.5 + y) * grain,
            uncertainty=uncertainty,
            valid_mask=np.ones((SIDE, SIDE), bool),
            intrinsics=None,
            focal_from="none",
            log_depth=self.log_depth,
            num_members=10,
        )

    def processing_size(self, height, width):
        return height, width

    def __call__(self, image, **inference):
        return [self.prediction] * len(image)


def free_model(folder: Path) -> dict[str, float]:
    """All threads on one core: images over wall time, so waiting counts too."""
    source = write_photographs(folder / "in")
    with one_core():
        (seconds,) = least_seconds(job(source, folder), rounds=3)
    return {"batch.free_model_images_per_s_core": NUM_IMAGES / seconds}


def sync_share(folder: Path) -> dict[str, float]:
    """Of the same job over more images, the share of its time in which it waits for the disk before it saves rows."""
    source, shares, sync = write_photographs(folder / "in", NUM_SYNCED), [], Folder.sync
    waited: list[float] = []

    def timed(sink: Folder) -> None:
        started = time.perf_counter()
        sync(sink)
        waited.append(time.perf_counter() - started)

    run = job(source, folder)
    with one_core(), patch.object(Folder, "sync", timed):
        for _ in range(3):
            waited.clear()
            started = time.perf_counter()
            run()
            shares.append(sum(waited) / (time.perf_counter() - started))
    return {"batch.sync_share": min(shares)}


def job(source: Path, folder: Path):
    """A job with the free model; each call has an output of its own."""
    outputs = (str(folder / f"out{n}") for n in count())
    params, pipe = Predict(gallery=0), FreePipe()
    return lambda: predict_all(params, folder / "none", str(source), next(outputs), model_name="free", pipe=pipe)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core. CannotRun where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        raise CannotRun("this system cannot keep a process on one core")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def write_photographs(folder: Path, num: int = NUM_IMAGES) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    for n in range(num):
        smooth = 128 + 80 * np.sin((x * (1 + n % 7) + y * (1 + n % 5)) / 60)
        rgb = smooth[..., None] + rng.normal(0, 6, (SIDE, SIDE, 3))
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / f"{n:04d}.jpg", quality=90)
    return folder
