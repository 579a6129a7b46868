"""Metres onto [-1, 1] and back: log depth (MetricGold, arXiv 2411.10886, section 3), and what a VAE sees of it."""

from dataclasses import dataclass
from math import isfinite, log
from typing import Any, Literal, get_args

import numpy as np

EncodingName = Literal["log", "linear", "inverse", "sqrt"]
POWERS: dict[str, float] = {"log": 0.0, "linear": 1.0, "inverse": -1.0, "sqrt": 0.5}


@dataclass(frozen=True, slots=True)
class LogDepth:
    """Planar depth z in metres onto d in [-1, 1] and back (MetricGold, arXiv 2411.10886, section 3).

    The inverse pair d = clip(2 ln(z/near) / ln(far/near) - 1, -1, 1) and z = near (far/near)^((d+1)/2): near_m, in
    metres, maps to -1 and far_m to +1; depth outside saturates. Both methods take numpy arrays, torch tensors or
    floats of any shape and keep shape and type. Raises ValueError unless 0 < near_m < far_m.
    """

    near_m: float
    far_m: float

    def __post_init__(self) -> None:
        if not (isfinite(self.near_m) and isfinite(self.far_m) and 0 < self.near_m < self.far_m):
            raise ValueError(f"log depth needs 0 < near_m < far_m, got near_m={self.near_m}, far_m={self.far_m}")

    @property
    def ln_range(self) -> float:
        """ln(far/near): the width of [-1, 1] is this many nats."""
        return log(self.far_m / self.near_m)

    def normalize(self, planar_depth_m: Any) -> Any:
        """Planar depth in metres, of any shape, to log depth in [-1, 1]. 0 or less saturates at -1; NaN stays NaN."""
        if _is_tensor(planar_depth_m):
            ln = (planar_depth_m.clamp(min=self.near_m) / self.near_m).log()
            return (2 * ln / self.ln_range - 1).clamp(-1, 1)
        depth_m = np.asarray(planar_depth_m)
        scaled = np.maximum(depth_m, self.near_m) / self.near_m
        d = np.clip(2 * np.log(scaled) / self.ln_range - 1, -1, 1)
        return d.astype(depth_m.dtype) if np.issubdtype(depth_m.dtype, np.floating) else d

    def denormalize(self, d: Any) -> Any:
        """Log depth of any shape to planar depth in metres, near_m to far_m; d outside [-1, 1] saturates."""
        if _is_tensor(d):
            return self.near_m * ((d.clamp(-1, 1) + 1) * (self.ln_range / 2)).exp()
        d = np.clip(np.asarray(d), -1, 1)
        depth_m = self.near_m * np.exp((d + 1) * (self.ln_range / 2))
        return depth_m.astype(d.dtype) if np.issubdtype(d.dtype, np.floating) else depth_m


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the VAE sees of log depth d: e in [-1, 1], near_m at -1 and far_m at +1 in every encoding.

    With z in metres, and p of POWERS by name,

        e = 2 (z^p - near^p) / (far^p - near^p) - 1

    linear   p = 1
    sqrt     p = 1/2
    log      the limit p -> 0, in which e is d itself
    inverse  p = -1: 1/z falls with depth, e rises as it does in the others

    Whatever is merged, compared or stated about uncertainty is log depth; e is what goes into a VAE and comes out. Both
    methods take torch tensors of any shape and saturate outside the range. Raises ValueError for another name, and
    unless 0 < near_m < far_m.
    """

    name: str  # an EncodingName
    near_m: float
    far_m: float

    def __post_init__(self) -> None:
        if self.name not in POWERS:
            raise ValueError(f"encoding is {self.name!r:.80}, expected one of {', '.join(get_args(EncodingName))}")
        LogDepth(self.near_m, self.far_m)  # raises where they are not a range

    def __str__(self) -> str:
        return f"{self.name}/{self.near_m:g}-{self.far_m:g}"

    @property
    def log_depth(self) -> LogDepth:
        """The log depth of the same range."""
        return LogDepth(self.near_m, self.far_m)

    def of_log_depth(self, d: Any) -> Any:
        """Log depth in [-1, 1] to e in [-1, 1]."""
        if self.name == "log":
            return d
        ratio = self._ratio
        return (2 * (ratio ** ((d.clamp(-1, 1) + 1) / 2) - 1) / (ratio - 1) - 1).clamp(-1, 1)

    def to_log_depth(self, e: Any) -> Any:
        """What of_log_depth made, back to log depth."""
        if self.name == "log":
            return e.clamp(-1, 1)
        ratio = self._ratio
        return (2 * (1 + (ratio - 1) * (e.clamp(-1, 1) + 1) / 2).log() / log(ratio) - 1).clamp(-1, 1)

    @property
    def _ratio(self) -> float:
        """(far/near)^p, by which e is a power of log depth."""
        return float((self.far_m / self.near_m) ** POWERS[self.name])


LOG = Encoding("log", 1.0, 2.0)  # the same for every range


def _is_tensor(value: Any) -> bool:
    # Tensors of torch have a device and clamp; isinstance would need torch, which this module does not import.
    return hasattr(value, "device") and hasattr(value, "clamp")
