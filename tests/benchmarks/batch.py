"""Batch depth around a model that costs nothing: decoding, four files an image, the receipt."""

import os
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from metricgold.log_depth import LogDepth
from metricgold.params.sections import Predict
from metricgold.predict.stage import predict_all

from . import CannotRun, least_seconds

NUM_IMAGES, SIDE = 300, 256


class FreePipe:
    """A DepthModel; every answer is the same smooth depth with a little grain."""

    log_depth = LogDepth(0.5, 80.0)
    max_steps = 1000
    is_one_step = False

    def __init__(self) -> None:
        y = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None]
        grain = np.random.default_rng(0).normal(1, 1e-3, (SIDE, SIDE)).astype(np.float32)
        uncertainty = np.full((SIDE, SIDE), 0.02, np.float32) * grain
        self.prediction = SimpleNamespace(
            planar_depth_m=20 / (0.5 + y) * grain,
            uncertainty=uncertainty,
            valid_mask=np.ones((SIDE, SIDE), bool),
            num_members=10,
        )

    def processing_size(self, height, width):
        return height, width

    def __call__(self, image, **inference):
        return [self.prediction] * len(image)


def free_model(folder: Path) -> dict[str, float]:
    """All threads on one core: images over wall time, so waiting counts too."""
    if not hasattr(os, "sched_setaffinity"):
        raise CannotRun("this system cannot keep a process on one core")
    source = write_photographs(folder / "in")
    outputs = (str(folder / f"out{n}") for n in count())
    params, pipe, cores = Predict(gallery=0), FreePipe(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        (seconds,) = least_seconds(
            lambda: predict_all(params, folder / "none", str(source), next(outputs), model_name="free", pipe=pipe),
            rounds=3,
        )
    finally:
        os.sched_setaffinity(0, cores)
    return {"batch.free_model_images_per_s_core": NUM_IMAGES / seconds}


def write_photographs(folder: Path, num: int = NUM_IMAGES) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    for n in range(num):
        smooth = 128 + 80 * np.sin((x * (1 + n % 7) + y * (1 + n % 5)) / 60)
        rgb = smooth[..., None] + rng.normal(0, 6, (SIDE, SIDE, 3))
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / f"{n:04d}.jpg", quality=90)
    return folder
