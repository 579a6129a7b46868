"""Flying pixels: on neither of two surfaces, between them."""

import numpy as np

from metricgold.images import flying_pixels


def test_pixels_between_two_surfaces_fly_and_those_of_a_sharp_edge_do_not():
    """A wall at 2 m before one at 8 m: at a sharp edge both pixels are of a wall, at a blurred one some are of none."""
    sharp = np.full((6, 12), 2, np.float32)
    sharp[:, 6:] = 8
    assert not flying_pixels(sharp).any()
    blurred = sharp.copy()
    blurred[:, 6:8] = 3, 5
    expected = np.zeros(sharp.shape, bool)
    expected[1:-1, 6:8] = True
    np.testing.assert_array_equal(flying_pixels(blurred), expected)
    np.testing.assert_array_equal(flying_pixels(blurred.T), expected.T)
    diagonal = 2.0 + 6 * (np.add.outer(np.arange(8), np.arange(8)) > 7)
    np.fill_diagonal(diagonal[::-1], 4.0)
    assert flying_pixels(diagonal)[1:-1, 1:-1].sum() == 6


def test_slanted_surfaces_and_what_is_no_depth_do_not_fly():
    ground_m = np.repeat(1.6 * 500 / np.arange(40, 140, dtype=np.float32)[::-1, None], 20, axis=1)  # 5.7 to 20 m
    assert not flying_pixels(ground_m).any()
    for value in (np.nan, np.inf, 0.0, -1.0):
        ground_m[50:, :] = value
        assert not flying_pixels(ground_m).any()
    for shape in ((1, 1), (1, 9), (2, 9)):
        assert flying_pixels(np.ones(shape)).shape == shape
