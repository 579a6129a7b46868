"""Upsampling folded into its convolution: the same numbers as diffusers', and nothing else changed."""

import copy

import pytest
import torch

from metricgold.model import folded_upsampling
from metricgold.model.folded_upsampling import double_and_convolve, fold_upsampling
from metricgold.model.stand_in import new_unet
from metricgold.params.sections import StandIn


@pytest.mark.parametrize(("height", "width", "bias"), [(4, 6, True), (1, 1, True), (3, 5, False)])
def test_it_is_upsampling_and_convolution(height, width, bias):
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=bias)
    image = torch.randn(2, 3, height, width)
    expected = conv(torch.nn.functional.interpolate(image, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(double_and_convolve(conv, image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (9, 13)])  # a size that does not halve is asked of the layers above
@torch.no_grad()
def test_a_unet_answers_as_before_and_keeps_its_weights(size):
    unet = new_unet(StandIn(unet_channels=[16, 32], text_width=8)).eval()
    sample, prompt = torch.randn(2, 4, *size), torch.randn(2, 2, 8)
    expected, names = unet(sample, 10, encoder_hidden_states=prompt).sample, unet.state_dict().keys()
    fold_upsampling(unet)
    copied = copy.deepcopy(unet)
    assert unet.state_dict().keys() == names
    for one in (unet, copied):
        torch.testing.assert_close(one(sample, 10, encoder_hidden_states=prompt).sample, expected, rtol=0, atol=1e-5)
    copied.up_blocks[0].upsamplers[0].conv.weight.zero_()
    assert (copied(sample, 10, encoder_hidden_states=prompt).sample - expected).abs().max() > 1e-3
    torch.testing.assert_close(unet(sample, 10, encoder_hidden_states=prompt).sample, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "num_folded"),
    [((60, 80), 2), ((39, 127), 2), ((51, 75), 1), ((64, 80), 3), ((1, 5), 0)],  # 4:3, KITTI, ..., all halve, a strip
)
@torch.no_grad()
def test_latents_that_do_not_halve_as_often_as_a_unet_would_are_answered_as_before(size, num_folded, monkeypatch):
    """With Stable Diffusion's four levels; 15 rows have to come from 8, every other level is doubled and folded."""
    unet = new_unet(StandIn(unet_channels=[8] * 4, text_width=8)).eval()
    sample, prompt = torch.randn(2, 4, *size), torch.randn(2, 2, 8)
    expected = unet(sample, 10, encoder_hidden_states=prompt).sample
    assert expected.shape == sample.shape
    folded = []
    monkeypatch.setattr(
        folded_upsampling,
        "double_and_convolve",
        lambda conv, image: folded.append(image.shape) or double_and_convolve(conv, image),
    )
    fold_upsampling(unet)
    found = unet(sample, 10, encoder_hidden_states=prompt).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(folded) == num_folded
