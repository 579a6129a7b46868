"""The VAE whose latents are the image: exact, and a VAE like any other to all that reads one."""

import pytest
import torch
from pydantic import ValidationError

from metricgold.model.backbone import load_backbone, load_vae, vae_digest
from metricgold.model.identity_vae import identity_vae
from metricgold.model.vae import check_size, decode_log_depth, encode_log_depth, encode_rgb, vae_factor
from metricgold.params.sections import StandIn


def images(height, width):
    """Noise, one colour at an end of the range, black and white, and a slope."""
    slope = torch.linspace(-1, 1, width).expand(3, height, width)
    flat = torch.ones(3, height, width)
    return torch.stack([torch.rand(3, height, width) * 2 - 1, flat, -flat, (slope > 0.3) * 2.0 - 1, slope])


@pytest.mark.parametrize("size", [(64, 96), (61, 97), (3, 5), (240, 320)])
@torch.no_grad()
def test_it_gives_back_what_it_gets_whatever_the_size(size):
    torch.manual_seed(0)
    vae, rgb = identity_vae(), images(*size)
    torch.testing.assert_close(encode_rgb(vae, rgb), rgb, rtol=0, atol=1e-6)
    torch.testing.assert_close(vae.decode(rgb).sample, rgb, rtol=0, atol=1e-6)
    depth = rgb[:, 0]
    torch.testing.assert_close(decode_log_depth(vae, encode_log_depth(vae, depth)), depth, rtol=0, atol=1e-6)


@torch.no_grad()
def test_what_a_u_net_says_beyond_the_range_comes_back_too():
    torch.manual_seed(0)
    latent = 3 * images(32, 48)
    torch.testing.assert_close(identity_vae().decode(latent).sample, latent, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype, error", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_in_half_precision_it_rounds_as_that_does(dtype, error):
    torch.manual_seed(0)
    rgb = images(32, 48)
    latent = encode_rgb(torch.nn.Module.to(identity_vae(), dtype), rgb)
    torch.testing.assert_close(latent, rgb, rtol=0, atol=error)


@torch.no_grad()
def test_a_pixel_is_a_latent_of_its_own():
    vae, rgb = identity_vae(), torch.zeros(1, 3, 8, 12)
    assert vae_factor(vae) == 1
    check_size(vae, (7, 11))  # nothing is halved
    rgb[0, 1, 4, 5] = 1.0
    latent = encode_rgb(vae, rgb)
    assert latent[0, 1, 4, 5].item() == pytest.approx(1.0, abs=1e-6)
    latent[0, 1, 4, 5] = 0.0
    assert latent.abs().max() < 1e-6


def test_gradients_go_through_it_unchanged():
    """As a loss of decoded depth needs them."""
    latent = images(8, 12).requires_grad_()
    identity_vae().decode(latent).sample.sum().backward()
    torch.testing.assert_close(latent.grad, torch.ones_like(latent), rtol=0, atol=1e-5)


def test_a_backbone_of_pixels_is_a_folder_like_any_other(pixels_backbone, tiny_backbone):
    names = [sorted(path.relative_to(one) for path in one.rglob("*")) for one in (pixels_backbone, tiny_backbone)]
    assert names[0] == names[1]
    parts, vae = load_backbone(pixels_backbone), load_vae(pixels_backbone)
    assert (parts["unet"].config.in_channels, parts["unet"].config.out_channels) == (6, 3)
    rgb = images(16, 24)
    with torch.no_grad():
        torch.testing.assert_close(encode_rgb(vae, rgb), rgb, rtol=0, atol=1e-6)
    assert vae_digest(pixels_backbone) != vae_digest(tiny_backbone)
    assert 1 < parts["vae"].config.scaling_factor < 4  # to unit variance, as of any stand-in


def test_an_image_has_three_colours():
    with pytest.raises(ValidationError, match="vae identity needs latent_channels 3, got 4"):
        StandIn(vae="identity")


def test_params_without_it_leave_digests_as_they_were():
    assert "vae" not in StandIn().model_dump()
    assert StandIn(vae="identity", latent_channels=3).model_dump()["vae"] == "identity"
