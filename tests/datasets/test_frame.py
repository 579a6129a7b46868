import numpy as np
import pytest

from metricgold.datasets.frame import Frame
from metricgold.images.camera import pinhole


def fields(**changes):
    values = {
        "rgb": np.zeros((4, 6, 3), np.uint8),
        "planar_depth_m": np.ones((4, 6), np.float32),
        "valid_mask": np.ones((4, 6), bool),
        "intrinsics": pinhole(5.0, 4, 6),
        "scene": "s",
        "name": "s/1",
    }
    return values | changes


def test_a_whole_frame_is_taken():
    assert Frame(**fields()).planar_depth_m.sum() == 24


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rgb": np.zeros((4, 6, 3), np.float32)}, r"rgb must be uint8 \[4, 6, 3\], got float32"),
        ({"rgb": np.zeros((4, 6, 4), np.uint8)}, r"rgb must be uint8 \[4, 6, 3\], got uint8 \[4, 6, 4\]"),
        ({"planar_depth_m": np.ones((4, 5), np.float32)}, "planar_depth_m must be float32"),
        ({"valid_mask": np.ones((4, 6), np.uint8)}, "valid_mask must be bool"),
        ({"intrinsics": np.eye(4)}, "intrinsics must be float64"),
        ({"planar_depth_m": np.zeros((4, 6), np.float32)}, "valid depth must be finite and > 0 m"),
        ({"planar_depth_m": np.full((4, 6), np.inf, np.float32)}, "valid depth must be finite and > 0 m"),
        ({"valid_mask": np.zeros((4, 6), bool)}, "invalid depth must be stored as 0"),
    ],
)
def test_a_broken_promise_is_named(changes, message):
    with pytest.raises(ValueError, match="frame s/1: " + message):
        Frame(**fields(**changes))


def test_checked_invalidates_what_is_no_depth():
    depth_m = np.array([[1.0, np.nan, np.inf, -1.0, 0.0, 2.0]] * 4)
    frame = Frame.from_arrays(**fields(planar_depth_m=depth_m))
    np.testing.assert_array_equal(frame.valid_mask[0], [True, False, False, False, False, True])
    np.testing.assert_array_equal(frame.planar_depth_m[0], [1, 0, 0, 0, 0, 2])
