"""Cross-attention to one prompt that never changes: its keys and values are computed once, not in every step.

A pass through the U-Net projects the prompt in every cross-attention layer, for every member and step, always to the
same numbers. Here each layer's keys and values are made once for one prompt and expanded over the batch without a copy.
A prompt of few tokens, as the empty one's two, goes further: where heads x tokens are fewer than channels, the layer's
two large projections, of hidden states to queries and of answers back, are folded into keys and values.
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
        self.key, self.value = _keys_and_values(attention, prompt)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, n, width] to the same shape. It attends to the constructor's prompt only."""
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [B, heads, n, head width]
        over_batch = (len(query), -1, -1, -1)
        answer = functional.scaled_dot_product_attention(
            query, self.key.expand(over_batch), self.value.expand(over_batch)
        )
        return attn.to_out[1](attn.to_out[0](answer.transpose(1, 2).flatten(2)))


class FoldedAttention:
    """PromptAttention with a head's projections of queries and outputs folded into its keys and values, in float32.

    With a head's keys K and values V [tokens, head width] and its parts Q [head width, width] and O [width, head
    width] of to_q and to_out: (x Q') K' = x (K Q)' and a (V O') = (a V) O'. to_score [heads tokens, width] holds
    every head's K Q over the root of the head width, to_answer [width, heads tokens] its (V O')'.
    """

    def __init__(self, attention: Attention, prompt: torch.Tensor) -> None:
        key, value = (one[0].float() for one in _keys_and_values(attention, prompt))  # [heads, tokens, head width]
        query = attention.to_q.weight.float().unflatten(0, (attention.heads, -1))  # [heads, head width, width]
        answer = attention.to_out[0].weight.float().T.unflatten(0, (attention.heads, -1))  # [heads, head width, width]
        self.to_score = (key @ query * key.shape[-1] ** -0.5).flatten(0, 1).to(prompt.dtype)
        self.to_answer = (value @ answer).flatten(0, 1).T.contiguous().to(prompt.dtype)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [B, n, width] to the same shape. It attends to the constructor's prompt only."""
        scores = functional.linear(hidden_states, self.to_score).unflatten(-1, (attn.heads, -1))
        shares = scores.softmax(dim=-1).flatten(2)  # [B, n, heads tokens]
        return attn.to_out[1](functional.linear(shares, self.to_answer, attn.to_out[0].bias))


def compute_prompt_once(unet: UNet2DConditionModel, prompt: torch.Tensor) -> list[tuple[Attention, AttnProcessor2_0]]:
    """Have every cross-attention layer of the U-Net attend to `prompt` [1, tokens, width].

    Returns the layers with the processors they had before. A layer that does more than AttnProcessor2_0 on plain
    hidden states keeps its own. Keys and values do not follow weights that change later: see prompt_computed_once.
    """
    layers = [module for module in unet.modules() if isinstance(module, Attention) and _is_plain_cross(module)]
    own = [(layer, layer.processor) for layer in layers]
    kinds = [FoldedAttention if _is_worth_folding(layer, prompt.shape[1]) else PromptAttention for layer in layers]
    made = [kind(layer, prompt) for kind, layer in zip(kinds, layers, strict=True)]
    for layer, processor in zip(layers, made, strict=True):
        layer.set_processor(processor)
    return own


@contextmanager
def prompt_computed_once(unet: UNet2DConditionModel, prompt: torch.Tensor) -> Iterator[None]:
    """Within it, compute_prompt_once; the layers have their own processors back afterwards."""
    own = compute_prompt_once(unet, prompt)
    try:
        yield
    finally:
        for layer, processor in own:
            layer.set_processor(processor)


def _keys_and_values(attention: Attention, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, heads, tokens, head width] each of a prompt [1, tokens, width]."""
    key, value = (
        projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for projected in (attention.to_k(prompt), attention.to_v(prompt))
    )
    return key, value


def _is_plain_cross(layer: Attention) -> bool:
    """Whether a layer is cross-attention that does no more than AttnProcessor2_0 on plain hidden states."""
    extras = (layer.spatial_norm, layer.group_norm, layer.norm_cross, layer.norm_q, layer.norm_k)
    plain = not any(extras) and not layer.residual_connection and layer.rescale_output_factor == 1
    return layer.is_cross_attention and plain and type(layer.processor) is AttnProcessor2_0


def _is_worth_folding(layer: Attention, num_tokens: int) -> bool:
    """Whether folding saves products, and no bias of the queries prevents it."""
    return layer.to_q.bias is None and layer.heads * num_tokens < layer.inner_dim
