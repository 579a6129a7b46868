"""Cross-attention to one prompt that never changes: its keys and values are computed once, not in every step.

A pass through the U-Net projects the prompt in every cross-attention layer, for every member and step, always to the
same numbers. Here each layer's keys and values are made once for one prompt and expanded over the batch without a copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.nn import functional


class PromptAttention:
    """What diffusers' AttnProcessor2_0 computes, for one prompt: keys and values [1, heads, tokens, head width]."""

    def __init__(self, attention: Attention, prompt: torch.Tensor) -> None:
        split = lambda projected: projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # noqa: E731
        self.key, self.value = split(attention.to_k(prompt)), split(attention.to_v(prompt))

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, n, width] to the same shape; the prompt that is passed in stands for the one here."""
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [B, heads, n, head width]
        over_batch = (len(query), -1, -1, -1)
        answer = functional.scaled_dot_product_attention(
            query, self.key.expand(over_batch), self.value.expand(over_batch)
        )
        return attn.to_out[1](attn.to_out[0](answer.transpose(1, 2).flatten(2)))


@contextmanager
def prompt_computed_once(unet: UNet2DConditionModel, prompt: torch.Tensor) -> Iterator[None]:
    """Within it, every cross-attention layer of the U-Net attends to `prompt` [1, tokens, width].

    The layers have their own processors back afterwards, so weights that change meet no old keys. A layer that does
    more than AttnProcessor2_0 on plain hidden states keeps its processor.
    """
    layers = [module for module in unet.modules() if isinstance(module, Attention) and _is_plain_cross(module)]
    own = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(PromptAttention(layer, prompt))
        yield
    finally:
        for layer, processor in zip(layers, own, strict=True):
            layer.set_processor(processor)


def _is_plain_cross(layer: Attention) -> bool:
    extras = (layer.spatial_norm, layer.group_norm, layer.norm_cross, layer.norm_q, layer.norm_k)
    plain = not any(extras) and not layer.residual_connection and layer.rescale_output_factor == 1
    return layer.is_cross_attention and plain and type(layer.processor) is AttnProcessor2_0
