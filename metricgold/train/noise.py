"""Multi-resolution noise, annealed with the timestep (Marigold, arXiv 2312.02145, section 3.2)."""

from math import sqrt

import torch
from torch.nn import functional


def multi_resolution_noise(
    shape: tuple[int, ...], strength: torch.Tensor, generator: torch.Generator, max_levels: int = 10
) -> torch.Tensor:
    """Unit-variance noise [B, c, h, w] with power moved to coarse scales, as Marigold's training draws it.

    Ever coarser Gaussian maps, scaled up, are added with weight strength^level. Level 0 has full size, so that white
    noise counts twice; each further level has r^level times fewer rows and columns than the one before, r drawn anew
    from 2 to 4, and a map with a side of one pixel is the last. strength [B] in [0, 1], 0 gives plain Gaussian noise.
    Drawn on the CPU, so that every device sees the same numbers.

    Each sample is divided by its own standard deviation. Marigold divides by that of a micro-batch of two, where a
    sample's variance, which the noise schedule takes for one, depends on the strength of the other.
    """
    batch, channels, *size = shape
    noise = sqrt(2) * torch.randn(shape, generator=generator)  # one map, and level 0
    for level in range(1, max_levels):
        shrink = 2 + 2 * torch.rand(1, generator=generator).item()
        size = [max(1, int(side / shrink**level)) for side in size]
        coarse = torch.randn((batch, channels, *size), generator=generator)
        upscaled = functional.interpolate(coarse, shape[2:], mode="bilinear")
        noise += upscaled * (strength**level).view(-1, 1, 1, 1)
        if 1 in size:
            break
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)
