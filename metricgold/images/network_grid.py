"""How an image becomes what the network sees: one even scale, padding, and the camera that goes along.

Every image is scaled, whole and alike in both directions, to the area in pixels that the network was trained at. So
its focal length there follows from its own shape alone. A side that the VAE cannot halve often enough is padded with
copies of the outermost pixels, half of them on either side; of a prediction that padding is cut away again. Encoding
for training, validation, evaluation and prediction all ask here, so that a network meets what it has learnt from.
"""

from dataclasses import dataclass, replace
from math import ceil, floor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from metricgold.images.camera import crop_intrinsics, relative_focal, resize_intrinsics

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-6  # of a pixel: a side that is whole but for it, is whole
# Of a pixel: so little over a multiple needs no more padding, since interpolation reaches half a pixel anyway.
OVERHANG = 0.5


class TrainingSize(NamedTuple):
    """The size in pixels whose area a network was trained at, and what its VAE needs sides to be multiples of."""

    height: int
    width: int
    multiple: int

    def grid(self, height: int, width: int) -> "NetworkGrid":
        """The pixels in which the network sees an image of that height and width."""
        scale = (self.height * self.width / (height * width)) ** 0.5
        (rows, top), (columns, left) = (self._padded(side * scale) for side in (height, width))
        return NetworkGrid(height, width, rows, columns, scale, top, left)

    def relative_focal(self, intrinsics: np.ndarray) -> float:
        """How long the lens is whose intrinsics [3, 3] are in pixels of a grid, as a share of the root of the area.

        Of a whole image metricgold.images.relative_focal; of a part of it, enlarged, that of a longer lens.
        """
        return relative_focal(intrinsics, self.height, self.width)

    def _padded(self, extent: float) -> tuple[int, int]:
        """The side of a grid that holds so many pixels, and how many of its padding lie before them.

        They are whole, so that an image which needs no scaling keeps its pixels as they are.
        """
        side = max(1, ceil((extent - OVERHANG) / self.multiple)) * self.multiple
        return side, max(0, round((side - extent) / 2))


@dataclass(frozen=True, slots=True)
class NetworkGrid:
    """The pixels in which the network sees one image of image_height x image_width pixels.

    height, width  of the grid
    scale          pixels of the grid for each pixel of the image, alike in both directions
    top, left      where the image's upper left corner lies in the grid: rows and columns of padding before it, or,
                   negative, of the image before the grid
    """

    image_height: int
    image_width: int
    height: int
    width: int
    scale: float
    top: float
    left: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.height, self.width

    def zoomed(self, zoom: float, place: tuple[float, float]) -> "NetworkGrid":
        """A grid of the same size that sees a part of the image, enlarged, as a longer lens would.

        zoom: 1 for all of it, 2 for a part of half its sides; place: from the top (0) to the bottom (1), and from left
        to right.
        """
        return replace(
            self,
            scale=self.scale * zoom,
            top=self.top - (zoom - 1) * self.image_height * self.scale * place[0],
            left=self.left - (zoom - 1) * self.image_width * self.scale * place[1],
        )

    def window(self, top: int, left: int, height: int, width: int) -> "NetworkGrid":
        """A part of this grid, its pixels as they are."""
        return replace(self, height=height, width=width, top=self.top - top, left=self.left - left)

    def intrinsics(self, intrinsics: np.ndarray) -> np.ndarray:
        """Intrinsics [3, 3] in pixels of the grid, from those in pixels of the image."""
        return crop_intrinsics(resize_intrinsics(intrinsics, self.scale, self.scale), -self.left, -self.top)

    def see(self, rgb: np.ndarray) -> np.ndarray:
        """The image uint8 [H, W, 3] in the grid, its colours averaged over what each pixel covers (Lanczos)."""
        from PIL import Image

        if self._is_the_image:
            return rgb
        (first, last), (begin, end) = self._rows, self._columns
        box = (
            max(0.0, (begin - self.left) / self.scale),
            max(0.0, (first - self.top) / self.scale),
            min(float(self.image_width), (end - self.left) / self.scale),
            min(float(self.image_height), (last - self.top) / self.scale),
        )
        seen = Image.fromarray(rgb).resize((end - begin, last - first), Image.Resampling.LANCZOS, box=box)
        padding = ((first, self.height - last), (begin, self.width - end), (0, 0))
        return np.pad(np.asarray(seen), padding, mode="edge")

    def sample(self, pixels: np.ndarray) -> np.ndarray:
        """A map of the image [H, W] in the grid, each pixel the nearest one: a mean of two depths is not a surface."""
        if self._is_the_image:
            return pixels
        rows = self._nearest(self.height, self.top, self.image_height)
        columns = self._nearest(self.width, self.left, self.image_width)
        sampled: np.ndarray = pixels[np.ix_(rows, columns)]
        return sampled

    def to_image(self, maps: "torch.Tensor") -> "torch.Tensor":
        """Maps of the whole grid [N, height, width] in the image's own pixels, without the padding; bilinear."""
        from torch.nn import functional

        if self._is_the_image:
            return maps
        (first, last), (begin, end) = self._rows, self._columns
        # Beyond its last pixels the map continues as it ends; two more are enough for any part of one.
        inner = functional.pad(maps[None, :, first:last, begin:end], (0, 2, 0, 2), mode="replicate")
        grown = functional.interpolate(inner, scale_factor=1 / self.scale, mode="bilinear", align_corners=False)
        return grown[0, :, : self.image_height, : self.image_width]

    def sample_maps(self, maps: "torch.Tensor", other: "NetworkGrid") -> "torch.Tensor":
        """Maps [N, height, width] of another grid of the same image in this grid's pixels; bilinear.

        NaN where the other grid does not reach; padding counts as the image.
        """
        import torch

        rows, columns = (
            (torch.arange(side, device=maps.device) + 0.5 - here) * (other.scale / self.scale) + there
            for side, here, there in ((self.height, self.top, other.top), (self.width, self.left, other.left))
        )
        y, x = torch.meshgrid(2 * rows / other.height - 1, 2 * columns / other.width - 1, indexing="ij")
        places = torch.stack([x, y], dim=-1)[None].to(maps.dtype)
        sampled = torch.nn.functional.grid_sample(maps[None], places, padding_mode="border", align_corners=False)[0]
        return sampled.masked_fill((places[0].abs() > 1 + ROUNDING).any(dim=-1), torch.nan)

    @property
    def _is_the_image(self) -> bool:
        """Whether the grid's pixels are the image's."""
        same = (self.scale, self.top, self.left) == (1, 0, 0)
        return same and self.size == (self.image_height, self.image_width)

    @property
    def _rows(self) -> tuple[int, int]:
        """The grid's first row that lies in the image, and the one after the last."""
        return _inside(self.top, self.image_height * self.scale, self.height)

    @property
    def _columns(self) -> tuple[int, int]:
        return _inside(self.left, self.image_width * self.scale, self.width)

    def _nearest(self, side: int, before: float, image_side: int) -> np.ndarray:
        """The image's row or column for each of the grid's; its outermost for the padding."""
        centres = (np.arange(side) + 0.5 - before) / self.scale
        nearest: np.ndarray = np.clip(centres.astype(int), 0, image_side - 1)
        return nearest


def _inside(before: float, extent: float, side: int) -> tuple[int, int]:
    """Of a side of the grid the pixels that lie wholly in an image which begins at `before`; at least one."""
    first = min(max(0, ceil(before - ROUNDING)), side - 1)
    return first, max(first + 1, min(side, floor(before + extent + ROUNDING)))
