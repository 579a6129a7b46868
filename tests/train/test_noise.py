import numpy as np
import pytest
import torch

from metricgold.train.noise import multi_resolution_noise


def draw(strength, seed=0, shape=(4, 4, 32, 48)):
    return multi_resolution_noise(shape, torch.full((shape[0],), strength), torch.Generator().manual_seed(seed))


def coarse_power(noise):
    """Share of the variance that survives averaging 8 x 8 blocks."""
    return torch.nn.functional.avg_pool2d(noise, 8).var().item() / noise.var().item()


def linear_upscaling(coarse, fine):
    """The matrix [fine, coarse] of linear interpolation between the centres of pixels."""
    at = np.clip((np.arange(fine) + 0.5) * coarse / fine - 0.5, 0, coarse - 1)
    return np.clip(1 - np.abs(at[:, None] - np.arange(coarse)), 0, None)


def power(side, coarse, block):
    """Mean variance of the means of `block` pixels of white noise that was scaled up from `coarse` to `side`."""
    means = linear_upscaling(coarse, side).reshape(side // block, block, coarse).mean(axis=1)
    return (means**2).sum(axis=1).mean()


@pytest.mark.parametrize("strength", [0.3, 0.9, 1.0])
def test_power_at_every_scale_is_that_of_its_levels(monkeypatch, strength):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.5]))  # 3 times, 9 times coarser
    # Channels are independent draws, and the variance is measured over all of them.
    noise = multi_resolution_noise((1, 6000, 48, 60), torch.tensor([strength]), torch.Generator().manual_seed(0))
    levels = [(48, 60), (48, 60), (16, 20), (1, 2)]  # the map itself, level 0, 1, 2; a side of one pixel ends it
    weights = [1.0, 1.0, strength**2, strength**4]

    def expected(block):
        maps = [power(48, rows, block) * power(60, columns, block) for rows, columns in levels]
        return np.dot(weights, maps)

    for block in (2, 6, 12):
        measured = (torch.nn.functional.avg_pool2d(noise, block) ** 2).mean().item()
        assert measured == pytest.approx(expected(block) / expected(1), rel=0.03)


def test_share_of_power_in_means_of_10_by_10_is_marigolds():
    # Marigold's own noise at latents of 480 x 640 pixels and strength 0.9, mean of 1,500 draws of two samples: 0.262.
    noise = [draw(0.9, seed, (2, 4, 60, 80)) for seed in range(300)]
    means = [torch.nn.functional.avg_pool2d(one, 10) for one in noise]
    share = sum((one**2).mean() for one in means) / sum((one**2).mean() for one in noise)
    assert share.item() == pytest.approx(0.262, abs=0.015)


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 1.0])
def test_unit_variance_at_any_strength(strength):
    torch.testing.assert_close(draw(strength).std(dim=(1, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_strength_zero_is_gaussian_noise():
    # White noise keeps 1/64 of its variance in the mean of 64 pixels.
    assert coarse_power(draw(0.0)) == pytest.approx(1 / 64, rel=0.3)


def test_strength_moves_power_to_coarse_scales():
    powers = [coarse_power(draw(strength)) for strength in (0.0, 0.5, 0.9)]
    assert powers[0] < powers[1] < powers[2] and powers[2] > 10 * powers[0]


def test_each_sample_has_its_own_strength():
    strength = torch.tensor([0.0, 0.9])
    noise = multi_resolution_noise((2, 4, 32, 48), strength, torch.Generator().manual_seed(0))
    assert coarse_power(noise[1]) > 5 * coarse_power(noise[0])


def test_equal_seeds_equal_noise_and_tiny_maps_work():
    assert torch.equal(draw(0.9, seed=3), draw(0.9, seed=3))
    assert not torch.equal(draw(0.9, seed=3), draw(0.9, seed=4))
    assert draw(0.9, shape=(1, 4, 1, 2)).isfinite().all()
