import pytest
import torch

from metricgold.train.noise import multi_resolution_noise


def draw(strength, seed=0, shape=(4, 4, 32, 48)):
    return multi_resolution_noise(shape, torch.full((shape[0],), strength), torch.Generator().manual_seed(seed))


def coarse_power(noise):
    """Share of the variance that survives averaging 8 x 8 blocks."""
    return torch.nn.functional.avg_pool2d(noise, 8).var().item() / noise.var().item()


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
