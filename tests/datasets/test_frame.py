import numpy as np
import pytest

from metricgold.datasets.frame import Frame, fit_frame, mirror_frame
from metricgold.images.camera import pinhole
from metricgold.images.network_grid import TrainingSize


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


def layers(**changes):
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {"filled_depth_m": numbers, "mask_good": numbers % 5 < 3, "mask_wall": numbers.astype(np.int32)} | changes


@pytest.mark.parametrize(
    "layer, message",
    [
        (np.ones((4, 5), bool), r"layer x must be bool, integers or float32 \[4, 6\], got bool \[4, 5\]"),
        (np.ones((4, 6)), r"layer x must be bool, integers or float32 \[4, 6\], got float64"),
        (np.full((4, 6), np.nan, np.float32), "depth of layer x must be finite and > 0 m, or 0 for none"),
        (np.full((4, 6), -1, np.float32), "depth of layer x must be finite and > 0 m, or 0 for none"),
    ],
)
def test_a_layer_that_breaks_its_promise_is_named(layer, message):
    with pytest.raises(ValueError, match="frame s/1: " + message):
        Frame(**fields(layers=layers(x=layer)))


def test_layers_from_arrays_lose_only_what_is_no_depth():
    filled_m = np.array([[1.5, np.nan, np.inf, -1.0, 0.0, 2.0]] * 4)
    frame = Frame.from_arrays(**fields(layers=layers(filled_depth_m=filled_m)))
    np.testing.assert_array_equal(frame.layers["filled_depth_m"][0], np.float32([1.5, 0, 0, 0, 0, 2]))
    assert [layer.dtype for layer in frame.layers.values()] == [np.float32, np.bool_, np.int32]
    assert Frame.from_arrays(**fields()).layers == {}


def test_layers_go_where_their_pixels_go():
    frame = Frame(**fields(layers=layers()))
    fitted, mirrored = fit_frame(frame, TrainingSize(8, 16, 8).grid(4, 6)), mirror_frame(frame)
    columns = fitted.layers["filled_depth_m"][0]
    assert columns.shape == (16,) and set(columns) == set(range(6))
    for name, layer in frame.layers.items():
        numbers = fitted.layers["filled_depth_m"].astype(int)
        np.testing.assert_array_equal(fitted.layers[name], layer.reshape(-1)[numbers])
        np.testing.assert_array_equal(mirrored.layers[name], layer[:, ::-1])
        assert fitted.layers[name].dtype == layer.dtype and fitted.layers[name].shape == fitted.valid_mask.shape


def test_what_shows_no_surface_is_never_valid_and_goes_along():
    """A layer of the reader; without it nothing is known of the pixels without depth."""
    depth_m = np.float32([[0, 0, 0, 2], [0, 0, 2, 2]])
    sky = np.array([[True, True, False, True], [False] * 4])
    rest = np.zeros((2, 4, 3), np.uint8), depth_m, depth_m > 0, np.eye(3), "a", "a/0"
    frame = Frame.from_arrays(*rest, {"no_surface": sky})
    assert np.argwhere(frame.no_surface).tolist() == [[0, 0], [0, 1]]
    assert np.argwhere(mirror_frame(frame).no_surface).tolist() == [[0, 2], [0, 3]]
    assert not Frame.from_arrays(*rest).no_surface.any()
