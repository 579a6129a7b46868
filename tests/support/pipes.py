"""Stand-ins for the pipeline that travel to other processes: depth is a plain function of the picture."""

import os
import time
from types import SimpleNamespace

import numpy as np

from metricgold.log_depth import LogDepth


class PlainPipe:
    """The pipeline's signature; 1 to 11 m by the red channel. Pictures of `deadly_width` kill the process."""

    log_depth = LogDepth(0.5, 80.0)

    def __init__(self, seconds: float = 0.0, deadly_width: int | None = None) -> None:
        self.seconds, self.deadly_width = seconds, deadly_width

    def processing_size(self, height, width):
        return height, width

    def __call__(self, images, **asked):
        if self.deadly_width in {rgb.shape[1] for rgb in images}:
            os._exit(9)
        time.sleep(self.seconds * len(images))
        return [self.predict(rgb) for rgb in images]

    @staticmethod
    def predict(rgb):
        depth_m = 1 + rgb[..., 0].astype(np.float32) / 25.5
        uncertainty, valid_mask = np.full_like(depth_m, 0.02), depth_m < 10.9
        return SimpleNamespace(
            planar_depth_m=depth_m, uncertainty=uncertainty, valid_mask=valid_mask, intrinsics=None, num_members=2
        )


class NotingPipe(PlainPipe):
    """Notes the name of the worker that asks; for workers that are threads of the test's process."""

    workers: list[str] = []

    def __call__(self, images, **asked):
        from distributed import get_worker

        self.workers.append(get_worker().name)
        return super().__call__(images, **asked)
