"""The standard error that a calibrated model states, on errors whose size is known."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from metricgold.log_depth import LogDepth
from metricgold.model.uncertainty import (
    MOST_UNLIKE,
    PIXELS_OF_FRAME,
    HeldOut,
    Signs,
    UncertaintyScale,
    fit_scale,
    gradient,
    image_statistics,
)

LOG_DEPTH = LogDepth(0.5, 80.0)


def frames(num_frames, seed, *, spread, num_members=1):
    """Frames whose Gaussian errors of ln depth are 0.1 nearer than 5 m and 0.3 beyond, and grow with the spread."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_frames):
        ln_depth = torch.rand(40, 60, generator=draw, dtype=torch.float64) * 3 + 0.2
        members = torch.rand(40, 60, generator=draw, dtype=torch.float64) * spread
        signs = Signs(ln_depth, members, torch.zeros_like(ln_depth), num_members)
        sigma = torch.hypot(torch.where(ln_depth < np.log(5), 0.1, 0.3), 2 * members)
        error = sigma * torch.randn(40, 60, generator=draw, dtype=torch.float64)
        statistics = torch.randn(8, generator=draw, dtype=torch.float64)
        found.append((HeldOut.of(signs, (ln_depth - error).exp(), statistics), signs, error.abs()))
    return found


@pytest.mark.parametrize("size", [(2, 2), (2, 9), (31, 40)])
def test_the_gradient_is_torch_s_to_the_bit(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    for dim in (0, 1):
        assert torch.equal(gradient(values, dim), torch.gradient(values, dim=dim)[0])


@pytest.fixture(scope="module")
def scale():
    return fit_scale([[one[0] for one in frames(40, 0, spread=spread)] for spread in (0.0, 0.2)])


def within(scale, held_out):
    stated = [(scale.standard_error(signs, scale.unlikeness(one.statistics)), error) for one, signs, error in held_out]
    return np.mean([(error <= sigma).double().mean().item() for sigma, error in stated])


@pytest.mark.parametrize(("num_members", "spread"), [(1, 0.0), (2, 0.2), (9, 0.2)])
def test_as_many_pixels_of_other_frames_lie_within_it_as_of_a_normal_distribution(scale, num_members, spread):
    other = frames(20, 1, spread=spread, num_members=num_members)
    assert within(scale, other) == pytest.approx(0.683, abs=0.03)


def test_one_member_states_its_error_by_depth(scale):
    depth_m = torch.tensor([[1.5, 2.0, 12.0, 20.0]])
    flat = torch.zeros_like(depth_m)
    stated = scale.standard_error(Signs(depth_m.log(), flat, flat, 1), 1.0)
    np.testing.assert_allclose(stated[0] / stated[0, 0], [1, 1, 3, 3], rtol=0.15)
    assert 0.07 < stated[0, 0] < 0.11  # of a typical frame; the unlike ones among those held out state more


def test_several_members_state_more_where_they_differ(scale):
    depth_m, spread = torch.full((1, 3), 2.0), torch.tensor([[0.0, 0.1, 0.2]])
    stated = scale.standard_error(Signs(depth_m.log(), spread, 0 * spread, 4), 1.0)[0]
    np.testing.assert_allclose(stated, np.hypot(0.1, [0, 0.2, 0.4]), rtol=0.4)
    assert stated[0] < stated[1] < stated[2]


def test_an_image_unlike_the_held_out_ones_is_less_certain(scale):
    assert scale.unlikeness(torch.tensor(scale.mean)) == 1
    near, far = (scale.unlikeness(torch.full((8,), value)) for value in (2.0, 4.0))
    assert 2 < near < far / 2
    assert scale.unlikeness(torch.full((8,), 1e6)) == MOST_UNLIKE
    flat = torch.zeros(1, 1)
    typical, unlike = (scale.standard_error(Signs(flat, flat, flat, 1), by) for by in (1.0, near))
    torch.testing.assert_close(unlike, typical * near)


def test_it_is_stored_as_json_and_a_broken_one_is_refused(scale):
    stored = json.loads(scale.model_dump_json())
    assert UncertaintyScale.model_validate(stored) == scale
    for change, said in (
        ({"edges_m": stored["edges_m"][::-1]}, "rising edges_m"),
        ({"edges_m": stored["edges_m"][1:]}, "needs 7 factors, got 8"),
        ({"whitening": [[1.0]]}, "whitening 8 x 8"),
        ({"by_members": []}, "by_members"),
    ):
        with pytest.raises(ValidationError, match=said):
            UncertaintyScale.model_validate(stored | change)


def test_members_that_do_not_see_a_pixel_do_not_count_there():
    """Three members, one of which sees the right half alone: spread of two on the left, of three on the right."""
    members = torch.tensor([0.0, 0.2, 0.7])[:, None, None].repeat(1, 4, 6)
    members[2, :, :3] = torch.nan
    signs = Signs.of(members, torch.nanquantile(members, 0.5, dim=0), LOG_DEPTH)
    nats = LOG_DEPTH.ln_range / 2
    np.testing.assert_allclose(signs.spread[:, 0], np.std([0, 0.2], ddof=1) * nats, rtol=1e-5)
    np.testing.assert_allclose(signs.spread[:, 5], np.std([0, 0.2, 0.7], ddof=1) * nats, rtol=1e-5)
    assert Signs.of(members[:1], members[0], LOG_DEPTH).spread.eq(0).all()


def test_slopes_are_nats_a_pixel():
    ln_depth = torch.arange(6) * 0.1 + torch.arange(4)[:, None] * 0.2
    median = torch.as_tensor(LOG_DEPTH.normalize(ln_depth.exp()))
    np.testing.assert_allclose(Signs.of(median[None], median, LOG_DEPTH).slope, np.hypot(0.1, 0.2), rtol=1e-4)


def test_statistics_are_of_each_channel_and_a_blank_image_has_some():
    latent = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    found = image_statistics(latent)
    assert found.shape == (2, 8) and PIXELS_OF_FRAME > 0
    torch.testing.assert_close(found[1, 4:].exp(), latent[1].std(dim=(1, 2)))
    assert image_statistics(torch.zeros(1, 4, 8, 12)).isfinite().all()
