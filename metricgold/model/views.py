"""Test-time augmentation: one image seen in several ways, each answered by a model that always answers alike.

What a member says of a mirrored or zoomed image is brought back to the pixels and the camera of the image itself, so
that members merge as those of different noise do, and their spread shows what the model is unsure of.
"""

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

import numpy as np

from metricgold.images import NetworkGrid

if TYPE_CHECKING:
    import torch

CENTRE = (0.5, 0.5)


@dataclass(frozen=True, slots=True)
class View:
    """One way to see an image: mirrored or not, enlarged about its centre as a longer lens would, or made smaller.

    Made smaller, the image is surrounded by copies of its outermost pixels. Enlarged, its border is not seen.
    """

    zoom: float = 1.0
    is_mirrored: bool = False

    def grid(self, grid: NetworkGrid) -> NetworkGrid:
        """The grid of this view, from that of the image as it is."""
        return grid.zoomed(self.zoom, CENTRE)

    def see(self, grid: NetworkGrid, rgb: np.ndarray) -> np.ndarray:
        """The image uint8 [H, W, 3] as the network sees it, uint8 [height, width, 3] of `grid`."""
        seen = self.grid(grid).see(rgb)
        return np.ascontiguousarray(seen[:, ::-1]) if self.is_mirrored else seen

    def bring_back(self, grid: NetworkGrid, log_depth: "torch.Tensor", ln_range: float) -> "torch.Tensor":
        """What the network says of this view, log depth [height, width], as log depth of the image in `grid`.

        ln_range: of the log depth, in which a lens twice as long makes everything twice as near; 0 for a network that
        was told the lens of the view and has answered in metres. NaN where the view does not see the image.
        """
        found = log_depth.flip(-1) if self.is_mirrored else log_depth
        if self.zoom == 1:
            return found
        shift = 2 * log(self.zoom) / ln_range if ln_range else 0.0
        return grid.sample_maps(found[None], self.grid(grid))[0].add(shift).clamp(-1, 1)


# In the order in which members are added: first those that help most.
VIEWS = (
    View(),
    View(is_mirrored=True),
    View(0.8),
    View(1.25),
    View(0.8, is_mirrored=True),
    View(1.25, is_mirrored=True),
    View(0.9),
    View(1.12),
    View(0.9, is_mirrored=True),
    View(1.12, is_mirrored=True),
)
