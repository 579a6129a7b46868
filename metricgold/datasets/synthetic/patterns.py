"""Patterns of fixed real-world size over surfaces, of which materials are made.

Every pattern is averaged over the footprint of a pixel, which keeps distance free of aliasing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricgold.datasets.synthetic.raycast import Floats, Solids


@dataclass(frozen=True, slots=True)
class Surface:
    """Where rays met solids, as materials see it."""

    normals: Floats  # [N, 3]
    u: Floats  # [N] metres along the surface
    v: Floats  # [N] metres along the surface; height above the ground on upright faces
    axis: NDArray[np.int64]  # [N] 2 on level faces

    @classmethod
    def gather(cls, solids: Solids, points: Floats, solid: NDArray[np.int32]) -> "Surface":
        """The surface at points [N, 3] of the solids with these indices [N]."""
        normals, local, axis = np.empty_like(points), np.empty_like(points), np.empty(len(points), dtype=int)
        for index in np.unique(solid):
            rows = np.flatnonzero(solid == index)
            normals[rows], local[rows], axis[rows] = solids.solids[index].surface(points[rows])
        is_level = axis == 2
        u = np.where(axis == 0, local[:, 1], local[:, 0])
        return cls(normals, u, np.where(is_level, local[:, 1], points[:, 2]), axis)

    def __getitem__(self, rows: NDArray[np.int64]) -> "Surface":
        return Surface(self.normals[rows], self.u[rows], self.v[rows], self.axis[rows])


# (surface, linear colours [N, 3], footprint [N] in metres) -> albedo [N, 3]
Material = Callable[[Surface, Floats, Floats], Floats]


def pulse(x: Floats, period_m: float, width_m: float, footprint_m: Floats) -> Floats:
    """Share of the footprint around x that is in [0, width) of each period: exactly box-filtered."""

    def integral(x: Floats) -> Floats:
        whole = np.floor(x / period_m)
        return whole * width_m + np.minimum(x - whole * period_m, width_m)

    half = footprint_m / 2
    return (integral(x + half) - integral(x - half)) / footprint_m


def cell_tone(u: Floats, v: Floats, footprint_m: Floats, width_m: float, height_m: float) -> Floats:
    """A random number in [0, 1] per cell, fading to its mean as cells get smaller than the footprint."""
    x, y = np.floor(u / width_m).astype(np.int64), np.floor(v / height_m).astype(np.int64)
    mixed = (x * 73856093) ^ (y * 19349663)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    fade: Floats = np.clip(1.5 - footprint_m / min(width_m, height_m), 0, 1)
    return 0.5 + (((mixed >> 8) & 255) / 255 - 0.5) * fade


def mix(share: Floats, there: ArrayLike, here: ArrayLike) -> Floats:
    """Colours `there` by their share [N], `here` by the rest."""
    mixed: Floats = share[:, None] * np.asarray(there) + (1 - share[:, None]) * np.asarray(here)
    return mixed


def band(x: Floats, low_m: float, high_m: float, footprint_m: Floats) -> Floats:
    """Share of the footprint around x that is in [low, high)."""
    half = footprint_m / 2
    inside = np.minimum(x + half, high_m) - np.maximum(x - half, low_m)
    return np.clip(inside / footprint_m, 0, 1)
