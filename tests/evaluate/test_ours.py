"""What bounds a model on a benchmark."""

from types import SimpleNamespace

import numpy as np
import pytest

from metricgold.datasets.frame import Frame
from metricgold.evaluate.ours import VaeFloor
from metricgold.log_depth import LogDepth


class Blurring:
    """A VAE that loses what is finer than four pixels of a row."""

    log_depth = LogDepth(0.5, 80.0)

    def encode_decode_depth(self, depth_m, intrinsics):
        log_depth = np.log(depth_m.reshape(*depth_m.shape[:2], -1, 4))
        return np.exp(np.repeat(log_depth.mean(axis=3), 4, axis=2)).astype(np.float32)


def sparse_frame(layers=None) -> Frame:
    """A slope from 5 to 6 m of which one pixel in five is measured, as by a LiDAR."""
    depth_m = np.tile(np.linspace(5, 6, 40, dtype=np.float32), (8, 1))
    measured = np.random.default_rng(0).random(depth_m.shape) < 0.2
    rgb = np.zeros((8, 40, 3), np.uint8)
    layers = {name: depth_m * measured for name in layers or ()}
    return Frame.from_arrays(rgb, depth_m, measured, np.eye(3), "scene", "frame", layers)


@pytest.mark.parametrize("truth", ["planar_depth_m", "filled_depth_m"])
def test_the_floor_of_sparse_truth_is_that_of_its_surfaces(truth):
    """Among pixels at far_m the same points come back several times too far."""
    frame = sparse_frame(layers=["filled_depth_m"])
    model = SimpleNamespace(name="ours", pipe=Blurring())
    (estimate,) = VaeFloor(model, truth).estimate_frames([frame], with_camera=False)
    there = frame.valid_mask
    error = np.abs(estimate.depth - frame.planar_depth_m)[there] / frame.planar_depth_m[there]
    assert error.mean() < 0.02
