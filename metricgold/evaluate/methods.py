"""What a benchmark measures: whatever gives a depth map for an image, and says of which kind its numbers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

# depth_m             planar depth in metres
# disparity_per_m     1 / planar depth, in 1 / metre
# relative_depth      planar depth but for a scale and a shift that are not known
# relative_disparity  disparity but for a scale and a shift that are not known
Kind = Literal["depth_m", "disparity_per_m", "relative_depth", "relative_disparity"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What a method says of one image.

    depth        float32 [h, w], numbers of this kind; of any size, each protocol says how it is fitted to the truth's
    kind         one of KINDS; the relative ones have no metric figures
    uncertainty  float32 [h, w], the standard deviation of ln depth (0.1 is about 10 % of the depth); None without one
    """

    depth: np.ndarray
    kind: Kind
    uncertainty: np.ndarray | None = None


class Method(Protocol):
    """A model under measurement. Equal images give equal estimates, or rows of two runs would not belong together."""

    @property
    def name(self) -> str:
        """What tables call it, unique within a run."""

    @property
    def digest(self) -> str:
        """sha256 of all that decides its estimates: weights and options. Rows of another digest are never mixed in."""

    @property
    def takes_camera(self) -> bool:
        """Whether intrinsics change its estimates."""

    def estimate(self, rgbs: Sequence[np.ndarray], intrinsics: Sequence[np.ndarray] | None) -> list[Estimate]:
        """One estimate for each image.

        rgbs        uint8 [H, W, 3], all of one size
        intrinsics  float64 [3, 3] of each, pixel centres at +0.5; None where the protocol withholds the camera
        """
