"""Shares of pixels that a model calls wrongly: sky for a surface, and a surface for sky."""

import numpy as np
import pytest

from metricgold.evaluate.surfaces import SurfaceCalls


def test_shares_are_of_pixels_of_all_images_and_follow_the_threshold():
    """Four pixels of sky at .5, .7, .9 and 1 of far_m, the last called invalid; four surfaces, one of them lost."""
    calls = SurfaceCalls()
    sky, surface = np.array([[True] * 4 + [False] * 4]), np.array([[False] * 4 + [True] * 4])
    share = np.array([[0.5, 0.7, 0.9, 1.0, 0.1, 0.2, 0.65, 0.92]])
    calls.add(share < 0.91, share, sky, surface)
    calls.add(np.ones((1, 4), bool), np.full((1, 4), 0.2), np.zeros((1, 4), bool), np.ones((1, 4), bool))
    figures = calls.figures()
    assert figures["no_surface_called_valid"] == pytest.approx(3 / 4)
    assert figures["surface_called_invalid"] == pytest.approx(1 / 8)
    rows = {row["no_surface_from"]: row for row in figures["by_no_surface_from"]}
    assert rows[0.6]["no_surface_called_valid"] == pytest.approx(1 / 4)
    assert rows[0.6]["surface_called_invalid"] == pytest.approx(2 / 8)
    assert rows[1.0]["no_surface_called_valid"] == pytest.approx(3 / 4)


def test_without_such_pixels_there_is_no_share():
    figures = SurfaceCalls().figures()
    assert figures["no_surface_called_valid"] is None and figures["surface_called_invalid"] is None
