"""What a benchmark measures: whatever gives a depth map for an image, and says of which kind its numbers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metricgold.datasets import Frame
from metricgold.metrics import KINDS, Kind

__all__ = ["KINDS", "Estimate", "FrameMethod", "Kind", "Method", "SeesImages"]


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What a method says of one image.

    depth        float32 [h, w], numbers of this kind; of any size, each protocol says how it is fitted to the truth's
    kind         depth_m, metres; disparity_per_m, 1 / metre; relative_depth and relative_disparity, the same but for a
                 scale and a shift that are not known: these have no metric figures
    uncertainty  float32 [h, w], the standard deviation of ln depth (0.1 is about 10 % of the depth); None without one
    """

    depth: np.ndarray
    kind: Kind
    uncertainty: np.ndarray | None = None


class Measurable(Protocol):
    """What rows know a method by."""

    @property
    def name(self) -> str:
        """What tables call it, unique within a run."""

    @property
    def digest(self) -> str:
        """sha256 of all that decides its estimates: weights and options. Rows of another digest are never mixed in."""

    @property
    def takes_camera(self) -> bool:
        """Whether intrinsics change its estimates."""


class Method(Measurable, Protocol):
    """A model under measurement. Equal images give equal estimates, or rows of two runs would not belong together."""

    def estimate(self, rgbs: Sequence[np.ndarray], intrinsics: Sequence[np.ndarray] | None) -> list[Estimate]:
        """One estimate for each image.

        rgbs        uint8 [H, W, 3], all of one size
        intrinsics  float64 [3, 3] of each, pixel centres at +0.5; None where the protocol withholds the camera
        """

    def unload(self) -> None:
        """Free its weights: it has been measured, and the next one needs the memory. A later estimate loads them."""


class FrameMethod(Measurable, Protocol):
    """What the benchmark runs: it may look at a frame's name or truth, as predictions from files and baselines do."""

    def estimate_frames(self, frames: Sequence[Frame], with_camera: bool) -> list[Estimate]:
        """One estimate for each frame, all of one size. ValueError names a frame or a file that cannot be used."""


@dataclass(frozen=True, slots=True)
class SeesImages:
    """A Method as a FrameMethod: it gets images, and cameras where they are given, and nothing else."""

    method: Method

    @property
    def name(self) -> str:
        """The method's own."""
        return self.method.name

    @property
    def digest(self) -> str:
        """The method's own."""
        return self.method.digest

    @property
    def takes_camera(self) -> bool:
        """The method's own."""
        return self.method.takes_camera

    def estimate_frames(self, frames: Sequence[Frame], with_camera: bool) -> list[Estimate]:
        """As of FrameMethod."""
        intrinsics = [frame.intrinsics for frame in frames] if with_camera else None
        return self.method.estimate([frame.rgb for frame in frames], intrinsics)
