"""Depth stored as a 16-bit grey PNG: Virtual KITTI 2 (cm), NYUv2 (mm), KITTI (1/256 m)."""

from pathlib import Path

import numpy as np

from metricgold.datasets.arrays import read_pixels


def read_depth_png(path: Path, units_per_metre: float, no_depth: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Planar depth float32 [H, W] in metres (0 where invalid) and valid mask bool [H, W].

    A pixel is invalid where it holds `no_depth` or 0. Raises ValueError naming the file when it is not
    16-bit grey: read as 8 bits, a KITTI map would hold whole metres and look right.
    """
    units = read_pixels(path, "I;16")
    valid_mask = (units != no_depth) & (units != 0)
    planar_depth_m = np.where(valid_mask, units / np.float32(units_per_metre), np.float32(0))
    return planar_depth_m.astype(np.float32), valid_mask
