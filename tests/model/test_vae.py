import numpy as np
import pytest
import torch

from metricgold.datasets.frame import Frame, fit_frame
from metricgold.images.camera import pinhole
from metricgold.images.network_grid import TrainingSize
from metricgold.log_depth import LogDepth
from metricgold.model.backbone import load_vae
from metricgold.model.vae import (
    decode_log_depth,
    encode_log_depth,
    encode_rgb,
    filled_log_depth,
    latent_valid_mask,
    rgb_to_tensor,
    vae_factor,
)


def frame(height, width):
    rng = np.random.default_rng(0)
    depth_m = np.tile(np.arange(1, width + 1, dtype=np.float32), (height, 1))  # the column's number
    rgb = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Frame.from_arrays(rgb, depth_m, depth_m != 5, pinhole(40.0, height, width), "scene", "name")


def fitted_to(one, height, width, multiple=4):
    return fit_frame(one, TrainingSize(height, width, multiple).grid(*one.valid_mask.shape))


def test_a_frame_of_the_right_size_is_left_alone():
    one = frame(8, 12)
    fitted = fitted_to(one, 8, 12)
    assert fitted.rgb is one.rgb and fitted.planar_depth_m is one.planar_depth_m
    np.testing.assert_array_equal(fitted.intrinsics, one.intrinsics)


def test_fitting_keeps_the_whole_frame_and_pads_what_does_not_divide():
    """Six rows become eight: a copy of the outermost on either side."""
    fitted = fitted_to(frame(6, 20), 12, 10)
    assert fitted.rgb.shape == (8, 20, 3)
    np.testing.assert_array_equal(fitted.planar_depth_m[0], np.where(np.arange(1, 21) == 5, 0, np.arange(1, 21)))
    np.testing.assert_array_equal(fitted.rgb[[0, -1]], fitted.rgb[[1, -2]])
    np.testing.assert_allclose(fitted.intrinsics, pinhole(40.0, 8, 20))


def test_fitting_scales_the_focal_length_and_invents_no_depth():
    fitted = fitted_to(frame(16, 24), 8, 12)
    assert fitted.intrinsics[0, 0] == pytest.approx(20.0)
    assert fitted.intrinsics[0, 2] == pytest.approx(6.0)
    assert set(np.unique(fitted.planar_depth_m)) <= set(range(25))
    assert not fitted.valid_mask[fitted.planar_depth_m == 0].any()


def test_fitting_enlarges_what_is_too_small():
    fitted = fitted_to(frame(4, 6), 8, 12)
    np.testing.assert_array_equal(fitted.planar_depth_m[0], np.repeat([1, 2, 3, 4, 0, 6], 2))


def test_a_latent_is_valid_where_all_its_pixels_are():
    valid = np.ones((2, 8, 8), dtype=bool)
    valid[0, 3, 4] = False
    expected = np.ones((2, 2, 2), dtype=bool)
    expected[0, 0, 1] = False
    np.testing.assert_array_equal(latent_valid_mask(valid, 4), expected)


def test_what_is_not_valid_goes_in_as_far():
    depth_m = np.float32([[0.5, 0.0], [80.0, 3.0]])
    filled = filled_log_depth(LogDepth(0.5, 80.0), depth_m, np.array([[True, False], [True, False]]))
    np.testing.assert_allclose(filled, [[-1, 1], [1, 1]], atol=1e-6)


def test_latents_are_the_unscaled_mean_and_depth_is_three_equal_channels(tiny_backbone):
    vae = load_vae(tiny_backbone).eval()
    depth = torch.rand(2, 16, 24) * 2 - 1
    with torch.no_grad():
        latent = encode_log_depth(vae, depth)
        same = vae.encode(torch.stack([depth] * 3, dim=1)).latent_dist.mean
        decoded = decode_log_depth(vae, latent)
        assert torch.equal(latent, same)
        assert torch.equal(encode_rgb(vae, torch.stack([depth] * 3, dim=1)), same)
        torch.testing.assert_close(decoded, vae.decode(latent).sample.mean(1).clamp(-1, 1))
    assert latent.shape[2:] == (16 // vae_factor(vae), 24 // vae_factor(vae))
    assert decoded.shape == depth.shape


def test_bytes_become_numbers_from_minus_one_to_one():
    tensor = rgb_to_tensor(np.uint8([[[[0, 127, 255]]]]))
    torch.testing.assert_close(tensor.flatten(), torch.tensor([-1.0, -1 / 255, 1.0]), atol=1e-6, rtol=0)
