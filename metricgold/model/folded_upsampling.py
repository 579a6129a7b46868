"""Nearest upsampling and the convolution after it as one convolution of the small image, with 4/9 of the products.

In an image doubled to the nearest, a 3 x 3 kernel sees only 2 x 2 different pixels. Which of its weights land on the
same pixel depends on whether row and column of the output are even or odd: four kernels of 2 x 2 sums of weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch.nn import functional

# _ROWS[parity of the output row][which of the two source pixels][kernel row] is 1 where that kernel row lands on that
# pixel.
_ROWS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def double_and_convolve(conv: torch.nn.Conv2d, image: torch.Tensor) -> torch.Tensor:
    """conv, 3 x 3 with a padding of 1, of [B, c, h, w] doubled to the nearest: [B, C, 2h, 2w]."""
    height, width = image.shape[2:]
    rows = torch.tensor(_ROWS, dtype=torch.float32, device=image.device)
    kernels = torch.einsum("pak,qbl,ockl->pqocab", rows, rows, conv.weight.float()).flatten(0, 2).to(image.dtype)
    bias = None if conv.bias is None else conv.bias.repeat(4)
    answers = functional.conv2d(image, kernels, bias, padding=1).unflatten(1, (4, -1)).permute(0, 1, 3, 4, 2)
    shifts = ((0, 0), (0, 1), (1, 0), (1, 1))
    parts = [answers[:, k, p : p + height, q : q + width] for k, (p, q) in enumerate(shifts)]  # [B, h, w, C] each
    # Channels last, the layout of convolutions: a pixel's channels move together.
    together = torch.stack(parts, dim=1).unflatten(1, (2, 2)).permute(0, 5, 3, 1, 4, 2)  # [B, C, h, 2, w, 2]
    return together.flatten(4, 5).flatten(2, 3)


def fold_upsampling(unet: UNet2DConditionModel) -> None:
    """Have every upsampling layer of the U-Net use double_and_convolve; weights keep their names."""
    for layer in unet.modules():
        if type(layer) is Upsample2D and _is_plain(layer):
            layer.forward = partial(_forward, layer)


def _forward(layer: Upsample2D, hidden_states: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
    """Upsample2D.forward, folded unless the caller wants another size than twice the input's.

    diffusers names the size at every level as soon as one of them does not halve: 60 rows of latents become 8 and go
    back by 15 and 30, of which only the 15 are not twice as many.
    """
    doubled = tuple(2 * side for side in hidden_states.shape[2:])
    if output_size is not None and tuple(output_size) != doubled:
        return Upsample2D.forward(layer, hidden_states, output_size)
    return double_and_convolve(layer.conv, hidden_states)


def _is_plain(layer: Upsample2D) -> bool:
    """Whether a layer doubles to the nearest and convolves 3 x 3, and nothing else."""
    conv: Any = getattr(layer, "conv", None)
    doubles = layer.interpolate and layer.norm is None and type(conv) is torch.nn.Conv2d
    return doubles and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
