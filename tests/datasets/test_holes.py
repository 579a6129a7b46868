"""Holes are as far as what is beside them."""

import numpy as np
from hypothesis import given, settings, strategies as st

from metricgold.datasets.holes import fill_holes


def test_a_hole_is_as_far_as_the_nearest_of_its_row():
    depth_m = np.array([[0, 0, 0, 0, 0], [0, 2, 0, 0, 5], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=np.float32)
    filled_m = fill_holes(depth_m)
    assert filled_m.tolist() == [[2, 2, 2, 5, 5]] * 4 and filled_m.dtype == np.float32


def test_without_any_depth_nothing_is_made_up():
    assert not fill_holes(np.zeros((2, 3))).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.2, 0.9]))
def test_every_pixel_gets_a_depth_that_was_there_and_its_own_if_it_has_one(seed, share):
    rng = np.random.default_rng(seed)
    depth_m = rng.uniform(1, 80, (rng.integers(1, 9), rng.integers(1, 12)))
    depth_m[rng.random(depth_m.shape) > share] = 0
    filled_m, there = fill_holes(depth_m), depth_m > 0
    np.testing.assert_array_equal(filled_m[there], depth_m[there])
    assert (filled_m > 0).all() == there.any()
    for row in np.flatnonzero(there.any(axis=1)):
        columns = np.flatnonzero(there[row])
        for column in range(depth_m.shape[1]):
            assert filled_m[row, column] == depth_m[row, columns[np.abs(columns - column).argmin()]]
