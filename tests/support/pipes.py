"""Stand-ins for the pipeline that travel to other processes: depth is a plain function of the picture."""

import os
import time
from types import SimpleNamespace

import numpy as np

from metricgold.log_depth import LogDepth


class PlainPipe:
    """A DepthModel: 1 to 11 m by the red channel. Pictures of `deadly_width` kill the process."""

    max_steps = 1000
    is_one_step = False
    needs_camera = False

    def __init__(self, seconds: float = 0.0, deadly_width: int | None = None) -> None:
        self.seconds, self.deadly_width = seconds, deadly_width

    def processing_size(self, height, width):
        return height, width

    def __call__(self, image, **options):
        if self.deadly_width in {rgb.shape[1] for rgb in image}:
            os._exit(9)
        time.sleep(self.seconds * len(image))
        return [self.predict(rgb) for rgb in image]

    @staticmethod
    def predict(rgb):
        depth_m = 1 + rgb[..., 0].astype(np.float32) / 25.5
        uncertainty, valid_mask = np.full_like(depth_m, 0.02), depth_m < 10.9
        return SimpleNamespace(
            planar_depth_m=depth_m,
            uncertainty=uncertainty,
            valid_mask=valid_mask,
            intrinsics=None,
            log_depth=LogDepth(0.5, 80.0),
            num_members=2,
            uncertainty_calibrated=False,
            unlikeness=None,
        )

    @classmethod
    def seen_depth_m(cls, rgb):
        """Depth as files have it: inf where there is no surface."""
        prediction = cls.predict(rgb)
        return np.where(prediction.valid_mask, prediction.planar_depth_m, np.float32(np.inf))


class NotingPipe(PlainPipe):
    """Notes the name of the worker that asks; for workers that are threads of the test's process."""

    workers: list[str] = []

    def __call__(self, image, **options):
        from distributed import get_worker

        self.workers.append(get_worker().name)
        return super().__call__(image, **options)


class FakePipe(PlainPipe):
    """Notes how it was called, sees images at an area of about 96 x 96, and fails at pictures of `break_on_width`."""

    def __init__(self, break_on_width: int | None = None) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.options: dict = {}
        self.break_on_width = break_on_width

    def processing_size(self, height, width):
        scale = 96 / (height * width) ** 0.5
        return round(height * scale / 8) * 8, round(width * scale / 8) * 8

    def __call__(self, image, **options):
        self.calls.append(len(image))
        self.options = options
        if self.break_on_width in {rgb.shape[1] for rgb in image}:
            raise RuntimeError("out of memory")
        return [self.predict(rgb) for rgb in image]
