"""Members by test-time augmentation: what a model says of a view comes back to the image's own pixels and metres."""

import numpy as np
import pytest
import torch

from metricgold.images import TrainingSize
from metricgold.model.views import VIEWS, View

SIZE = TrainingSize(64, 96, 4)
LN_RANGE = float(np.log(160))


@pytest.mark.parametrize("shape", [(64, 96), (120, 200), (90, 61)])
@pytest.mark.parametrize("view", VIEWS)
def test_a_scene_that_is_seen_in_another_way_comes_back_as_it_was(view, shape):
    """A ramp in the picture; the network's answer to a longer lens is nearer by the zoom."""
    grid = SIZE.grid(*shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    ramp = 100 * rows / shape[0] + 80 * columns / shape[1] + 20
    rgb = np.repeat(ramp[..., None], 3, axis=2).round().astype(np.uint8)
    truth = torch.from_numpy(grid.see(rgb)[..., 0] / 255.0)
    answer = torch.from_numpy(view.see(grid, rgb)[..., 0] / 255.0) - 2 * np.log(view.zoom) / LN_RANGE
    found = view.bring_back(grid, answer, LN_RANGE)
    seen = found.isfinite()
    assert found.shape == truth.shape
    assert (found - truth)[seen].abs().median() < 0.004
    assert (found - truth)[seen][::7].abs().max() < 0.06  # at most a pixel's step at the border
    if view.zoom <= 1:
        assert seen.all()
    else:  # about the share of the area that a longer lens sees; nothing is made up outside it
        assert seen.double().mean() == pytest.approx(view.zoom**-2, abs=0.06)
        assert not seen[0].any() and seen[grid.height // 2, grid.width // 2]


def test_a_network_that_knows_the_lens_has_answered_in_metres():
    grid, answer = SIZE.grid(64, 96), torch.full((64, 96), 0.25)
    found = View(1.25).bring_back(grid, answer, 0)
    assert torch.all(found[found.isfinite()] == 0.25)


def test_no_two_views_are_the_same_and_the_first_is_the_image():
    assert len(set(VIEWS)) == len(VIEWS) == 10 and VIEWS[0] == View(1.0, is_mirrored=False)
