"""Log depth: metres onto [-1, 1] and back (MetricGold, arXiv 2411.10886, section 3)."""

from dataclasses import dataclass
from math import isfinite, log
from typing import Any

import numpy as np


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


def _is_tensor(value: Any) -> bool:
    # Tensors of torch have a device and clamp; isinstance would need torch, which this module does not import.
    return hasattr(value, "device") and hasattr(value, "clamp")
