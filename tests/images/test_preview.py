"""A batch job's picture of depth: its colours, and a scale whose ticks stand at the colour of their metres."""

import numpy as np
import pytest

from metricgold.images.colours import NO_DEPTH, NO_SURFACE, colour_depth, metre_ticks
from metricgold.images.preview import draw_preview, draw_scale


def test_preview_is_red_near_and_blue_far_and_holds_a_scale():
    depth_m = np.geomspace(1, 50, 300 * 400).reshape(300, 400).astype(np.float32)
    depth_m[100:110, 100:110], depth_m[0] = np.nan, np.inf
    sheet = np.asarray(draw_preview(depth_m)).astype(int)
    near, far, nothing = sheet[2, 200], sheet[297, 200], sheet[105, 105]
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 50
    assert tuple(nothing) == NO_DEPTH and tuple(sheet[0, 200]) == NO_SURFACE
    panel = sheet[:, 400:]
    assert panel.shape[1] > 40
    assert (panel.max(axis=2) < 100).sum() > 30  # ink of ticks and figures


def test_preview_tells_each_tenth_of_the_depth_from_the_next():
    depth_m = np.geomspace(1, 50, 400 * 300).reshape(400, 300).astype(np.float32)
    shades = np.asarray(draw_preview(depth_m)).astype(int)[20:400:40, 150]
    assert np.abs(np.diff(shades, axis=0)).max(axis=1).min() > 10


def test_preview_of_a_flat_wall_is_no_rainbow():
    depth_m = np.linspace(2, 2.02, 400 * 300).reshape(400, 300).astype(np.float32)
    wall = np.asarray(draw_preview(depth_m)).astype(int)[:, :300]
    assert np.ptp(wall.reshape(-1, 3), axis=0).max() < 60


@pytest.mark.parametrize(("low_m", "high_m"), [(1.0, 50.0), (0.5, 0.9), (3.0, 3.7), (12.0, 80.0)])
def test_the_scale_of_a_preview_has_the_colour_of_its_metres(low_m, high_m):
    panel = np.asarray(draw_scale(440, (low_m, high_m))).astype(int)
    bar, beside = panel[:, 15], panel[:, 32]  # from row 20 to 419, and the strokes right of it
    rows = [y for y in range(440) if (beside[y] < 60).all()]
    ticks_m = metre_ticks((low_m, high_m), max_ticks=8)
    assert len(rows) == len(ticks_m) >= 2
    for y, tick_m in zip(reversed(rows), ticks_m, strict=True):  # far on top
        expected = colour_depth(np.full((1, 1), tick_m, np.float32), (low_m, high_m))[0, 0].astype(int)
        assert np.abs(bar[np.clip(y, 20, 419)] - expected).max() <= 6


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (2000, 3), (64, 96), (1500, 2000)])
@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0, 1e-3, 1e5])
def test_preview_of_any_depth(shape, value):
    sheet = draw_preview(np.full(shape, value, np.float32))
    assert max(sheet.size) < 1500
