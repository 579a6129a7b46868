"""Keys and values of one prompt, computed once: the same numbers as diffusers', and nothing left behind."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from metricgold.model.prompt_attention import FoldedAttention, PromptAttention, prompt_computed_once
from metricgold.model.stand_in import new_unet
from metricgold.params.sections import StandIn


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return new_unet(StandIn(unet_channels=[16, 32], text_width=8)).eval()


def answer(unet, prompt):
    sample = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet(sample, 10, encoder_hidden_states=prompt.expand(3, -1, -1)).sample


@pytest.mark.parametrize(("num_tokens", "kind"), [(2, FoldedAttention), (8, PromptAttention)])
def test_it_equals_diffusers_to_a_millionth(unet, num_tokens, kind):
    """Four heads of 8 channels each: 8 tokens are too many to be worth folding."""
    prompt = torch.randn(1, num_tokens, 8)
    expected = answer(unet, prompt)
    with torch.no_grad(), prompt_computed_once(unet, prompt):
        crossing = [name for name, one in unet.attn_processors.items() if type(one) is kind]
        assert len(crossing) == 4 and all(".attn2." in name for name in crossing)  # 1 down, 2 up, 1 in the middle
        found = answer(unet, torch.zeros_like(prompt))  # what is passed in is not looked at
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_nothing_stays_neither_after_an_error_nor_in_the_weights(unet):
    processors, names = unet.attn_processors, unet.state_dict().keys()
    with (
        pytest.raises(RuntimeError, match="on the way"),
        torch.no_grad(),
        prompt_computed_once(unet, torch.zeros(1, 2, 8)),
    ):
        assert unet.state_dict().keys() == names
        raise RuntimeError("on the way")
    assert unet.attn_processors == processors


def test_weights_that_changed_meet_no_old_keys(unet):
    prompt = torch.randn(1, 2, 8)
    with torch.no_grad():
        with prompt_computed_once(unet, prompt):
            before = answer(unet, prompt)
        for name, parameter in unet.named_parameters():
            if "attn2.to_k" in name or "attn2.to_v" in name:
                parameter.mul_(-3)
        expected = answer(unet, prompt)
        with prompt_computed_once(unet, prompt):
            after = answer(unet, prompt)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)
    assert (before - after).abs().max() > 1e-3


def test_a_layer_with_a_processor_of_its_own_keeps_it(unet):
    class Own:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            return hidden_states

    own = Own()
    unet.set_attn_processor(own)
    with prompt_computed_once(unet, torch.zeros(1, 2, 8)):
        assert set(unet.attn_processors.values()) == {own}
