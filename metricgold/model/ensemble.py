"""How many runs an image gets, and how they become one map with an uncertainty."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import pi, sqrt
from numbers import Integral, Real
from typing import Literal

import torch

from metricgold.log_depth import LogDepth
from metricgold.params import FIRST_ROUND

# For normal members: sigma is 1.4826 x MAD, and a median of n of them has sqrt(pi/2) = 1.2533 times the standard error
# of their mean, sigma / sqrt(n).
_SIGMA_OF_MAD = 1.4826
_MEDIAN_OF_MEAN = sqrt(pi / 2)
_LOST_TO_FEW = 1.2  # members; see standard_error


@dataclass(frozen=True, slots=True)
class EnsembleOptions:
    """Which members of an image are computed, and how they are merged. ValueError names an option out of range.

    ensemble_size                          members, or auto: rounds of them until one of the two limits is met
    max_ensemble_size, uncertainty_target  the limits of auto
    merge                                  depth: median of log depth; latent: mean of latents, decoded once
    batch_size                             images x members through the U-Net at once
    """

    ensemble_size: int | Literal["auto"] = 10
    max_ensemble_size: int = 10
    uncertainty_target: float = 0.01
    merge: str = "depth"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.merge not in ("depth", "latent"):
            raise ValueError(f"merge must be depth or latent, got {self.merge!r}")
        counts = {"max_ensemble_size": self.max_ensemble_size, "batch_size": self.batch_size}
        if self.ensemble_size == "auto":
            if self.merge != "depth":
                raise ValueError("ensemble_size auto needs merge depth: only decoded members show their uncertainty")
            if not (isinstance(self.uncertainty_target, Real) and self.uncertainty_target > 0):
                raise ValueError(f"uncertainty_target must be positive, got {self.uncertainty_target!r}")
        else:
            counts["ensemble_size"] = self.ensemble_size
        for name, value in counts.items():
            if not (isinstance(value, Integral) and value >= 1):  # Integral: also numpy's
                raise ValueError(f"{name} must be an integer from 1, got {value!r}")

    @property
    def most(self) -> int:
        """Members that an image can get."""
        return self.max_ensemble_size if self.ensemble_size == "auto" else self.ensemble_size

    def check_views(self, num_views: int) -> None:
        """Raise ValueError unless the members can be views of an image, of which there are `num_views`."""
        if self.most > num_views:
            name = "max_ensemble_size" if self.ensemble_size == "auto" else "ensemble_size"
            raise ValueError(f"this model was trained for one step: its {name} is at most {num_views}, got {self.most}")
        if self.merge != "depth":
            raise ValueError("this model was trained for one step: its members are views, whose latents do not merge")

    @property
    def first_round(self) -> int:
        """Members that every image gets: all of them, or of auto three, the fewest that show how far they differ."""
        return min(FIRST_ROUND, self.most) if self.ensemble_size == "auto" else self.most

    def rounds(self) -> Iterator[range]:
        """Numbers of the members that each round adds: the first round, then two by two."""
        starts = [0, *range(self.first_round, self.most, 2)]
        for start, end in zip(starts, [*starts[1:], self.most], strict=True):
            yield range(start, end)


@dataclass(slots=True)
class Ensemble:
    """What an image's members say, before they are merged.

    members     log depth [H, W] of each, NaN where it does not see the image, or scaled latents [c, h, w]
    statistics  image_statistics of the image's latent, [2c]; None before the first member
    """

    members: list[torch.Tensor] = field(default_factory=list)
    statistics: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.members)


def median_and_deviation(members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median over members [E, H, W] and median absolute deviation from it, [H, W] each.

    A pixel's members are those that see it: NaN does not count.
    """
    quantile = torch.nanquantile if members.isnan().any() else torch.quantile
    median = quantile(members, 0.5, dim=0)
    return median, quantile((members - median).abs(), 0.5, dim=0)


def standard_error(members: torch.Tensor, log_depth: LogDepth) -> float:
    """Standard error of the median over members, log depth [E, H, W], relative (nats): the median over all pixels.

    sqrt(pi/2) x 1.4826 x MAD / sqrt(E) at each pixel is what holds for many normal members. Of few the MAD says too
    little, of three 0.6 of the truth: E / (E - 1.2), found by simulating normal members, mends that to within 7 %.
    """
    count = len(members)
    _, deviation = median_and_deviation(members)
    typical = deviation.median().item() * log_depth.ln_range / 2
    return _MEDIAN_OF_MEAN * _SIGMA_OF_MAD * typical / sqrt(count) * count / (count - _LOST_TO_FEW)
