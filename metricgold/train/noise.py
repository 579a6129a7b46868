"""Multi-resolution noise, annealed with the timestep (Marigold, arXiv 2312.02145, section 3.2)."""

import torch
from torch.nn import functional


def multi_resolution_noise(
    shape: tuple[int, ...], strength: torch.Tensor, generator: torch.Generator, max_levels: int = 10
) -> torch.Tensor:
    """Unit-variance noise [B, c, h, w] with power moved to coarse scales.

    Gaussian maps of ever smaller size, each 2 to 4 times coarser than the one before, are scaled up and added
    with weight strength^level; strength [B] in [0, 1], 0 gives plain Gaussian noise. Drawn on the CPU, so
    that every device sees the same numbers.
    """
    batch, channels, height, width = shape
    noise = torch.randn(shape, generator=generator)
    side_h, side_w = float(height), float(width)
    for level in range(1, max_levels):
        shrink = 2 + 2 * torch.rand(1, generator=generator).item()
        side_h, side_w = side_h / shrink, side_w / shrink
        size = (max(1, int(side_h)), max(1, int(side_w)))
        coarse = torch.randn((batch, channels, *size), generator=generator)
        weight = strength**level
        noise += functional.interpolate(coarse, (height, width), mode="bilinear") * weight.view(-1, 1, 1, 1)
        if size == (1, 1):
            break
    # The upsampled maps lose a little variance between their nodes, so measure instead of computing it.
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)
