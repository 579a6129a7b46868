"""One rule for the colours of depth: which range, which pixels, which ticks."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from metricgold.images.colours import (
    NO_DEPTH,
    NO_SURFACE,
    RANGE_WITHOUT_DEPTH_M,
    colour_depth,
    colour_range,
    metre_ticks,
    widen_range,
)
from metricgold.images.html import depth_scale
from metricgold.images.panels import Example
from metricgold.predict.gallery import make_thumbnail

SHAPE = (300, 400)
SLOPE = np.geomspace(1, 50, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(np.float32)


def test_the_range_is_the_middle_98_per_cent():
    near_m, far_m = colour_range(SLOPE)
    assert near_m == pytest.approx(50**0.01, rel=0.01) and far_m == pytest.approx(50**0.99, rel=0.01)


def test_pixels_without_depth_and_those_not_valid_do_not_count():
    depth_m, valid = SLOPE.copy(), np.ones(SHAPE, bool)
    depth_m[::3], depth_m[1::7], depth_m[2::9] = np.nan, np.inf, -1
    assert colour_range(depth_m) == pytest.approx(colour_range(SLOPE), rel=0.1)
    depth_m, valid[:150] = SLOPE.copy(), False
    depth_m[:150] = 1e4
    near_m, far_m = colour_range(depth_m, valid)
    assert 7 < near_m < 8 and 45 < far_m < 50


def test_a_single_pixel_with_depth_is_enough():
    depth_m = np.full((1000, 1000), np.nan, np.float32)
    depth_m[501, 333] = 4
    near_m, far_m = colour_range(depth_m)
    assert near_m < 4 < far_m
    assert colour_range(depth_m, np.zeros((1000, 1000), bool)) == RANGE_WITHOUT_DEPTH_M


@given(st.floats(1e-3, 1e5), st.floats(1, 1e4))
def test_a_narrow_range_is_widened_about_its_middle(near_m, ratio):
    wide = widen_range(near_m, near_m * ratio)
    assert wide[1] / wide[0] >= 1.2099
    assert wide == (near_m, near_m * ratio) if ratio > 1.22 else wide[0] <= near_m * (1 + 1e-12)
    assert wide[0] * wide[1] == pytest.approx(near_m**2 * ratio) or ratio > 1.22


def test_every_picture_of_one_depth_map_has_the_same_range():
    rgb, nowhere = np.zeros((*SHAPE, 3), np.uint8), np.zeros(SHAPE, bool)
    range_m = colour_range(SLOPE)
    assert make_thumbnail(rgb, SLOPE).range_m == range_m
    assert Example("slope", rgb, SLOPE, SLOPE, nowhere).range_m == range_m
    assert Example("slope", rgb, SLOPE, SLOPE, ~nowhere).range_m == pytest.approx(range_m, rel=0.02)


@pytest.mark.parametrize(
    ("value", "colour"),
    [(np.nan, NO_DEPTH), (-np.inf, NO_DEPTH), (0.0, NO_DEPTH), (-2.0, NO_DEPTH), (np.inf, NO_SURFACE)],
)
def test_what_is_not_depth_is_grey_and_no_surface_is_slate(value, colour):
    with np.errstate(all="raise"):
        assert tuple(colour_depth(np.full((1, 1), value, np.float32), (1.0, 10.0))[0, 0]) == colour


def test_depth_beyond_the_range_has_the_colour_of_its_end():
    ends, beyond = (colour_depth(np.array([pair], np.float32), (1.0, 10.0)) for pair in ((1, 10), (0.1, 1e6)))
    np.testing.assert_array_equal(ends, beyond)


@given(st.floats(1e-3, 1e4), st.floats(1.22, 1e5), st.integers(2, 12))
def test_ticks_lie_inside_and_are_few(near_m, ratio, max_ticks):
    ticks = metre_ticks((near_m, near_m * ratio), max_ticks)
    assert 2 <= len(ticks) <= max_ticks
    assert ticks == sorted(set(ticks)) and near_m <= ticks[0] and ticks[-1] <= near_m * ratio


@pytest.mark.parametrize(
    ("range_m", "ticks"),
    [
        ((0.5, 80.0), [0.5, 1, 2, 5, 10, 20, 50]),
        ((0.1, 1000.0), [0.1, 1, 10, 100, 1000]),
        ((3.0, 3.7), [3, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7]),
        ((2.01, 2.02), [2.01, 2.02]),
    ],
)
def test_ticks_of_known_ranges(range_m, ticks):
    assert metre_ticks(range_m) == ticks


def test_the_scale_of_a_page_names_metres_at_their_place():
    scale = depth_scale((1.0, 10_000.0), max_ticks=5)
    places, labels = zip(*scale["ticks"], strict=True)
    assert labels == ("1 m", "10 m", "100 m", "1000 m", "10000 m")
    assert places == pytest.approx((0, 25, 50, 75, 100))
    assert scale["gradient"].startswith("#9e0142, ") and scale["gradient"].endswith(", #5e4fa2")
