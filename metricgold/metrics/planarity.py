"""Flatness and tilt of planes (Koch et al., arXiv 1805.01328, section 3: planarity errors; as iBims-1's own script).

For each plane of the image the prediction is scaled so that its median on the plane is the truth's, and a plane is
fitted to its points by least squares of distances. PE_plan is the standard deviation of these distances, in
centimetres; PE_orie is the angle between its normal and the true plane's, in degrees. Planes on less than 5 % of the
image do not count. iBims-1's script takes the true normal from the data set's table of planes; here it is that of the
plane fitted to the truth in the same way.
"""

from typing import NamedTuple

import numpy as np

_LEAST_SHARE = 0.05


class Planarity(NamedTuple):
    """Means over the planes of one image, NaN without any: PE_plan in centimetres and PE_orie in degrees."""

    plan_cm: float
    orientation_deg: float
    num_planes: int


def planarity(pred_m: np.ndarray, true_m: np.ndarray, mask: np.ndarray, intrinsics: np.ndarray) -> Planarity:
    """PE_plan and PE_orie of the planes of one kind (walls, floors or tables).

    pred_m, true_m  [H, W], planar depth in metres; pixels where either is not finite and > 0 do not count
    mask            [H, W]: True on the plane, or whole numbers, a plane each and 0 beside them
    intrinsics      [3, 3] in pixels of the image, pixel centres at +0.5

    Raises ValueError when the shapes differ or the intrinsics are no camera's.
    """
    pred_m, true_m, mask = np.asarray(pred_m, np.float64), np.asarray(true_m, np.float64), np.asarray(mask)
    if not (pred_m.ndim == 2 and pred_m.shape == true_m.shape == mask.shape):
        shapes = f"{list(pred_m.shape)}, {list(true_m.shape)}, {list(mask.shape)}"
        raise ValueError(f"prediction, truth and planes must be [H, W] of one size, got {shapes}")
    rays = _rays(np.asarray(intrinsics, np.float64), mask.shape)
    known = np.isfinite(pred_m) & np.isfinite(true_m) & (pred_m > 0) & (true_m > 0)
    plans_cm, angles_deg = [], []
    for number in np.unique(mask[mask > 0]):
        plane = (mask == number) & known
        if np.count_nonzero(plane) < _LEAST_SHARE * mask.size:
            continue
        p, g = pred_m[plane], true_m[plane]
        normal, spread_m = _fit_plane(rays[plane] * (p * (np.median(g) / np.median(p)))[:, None])
        true_normal, _ = _fit_plane(rays[plane] * g[:, None])
        plans_cm.append(100 * spread_m)
        angles_deg.append(_angle_deg(normal, true_normal))
    if not plans_cm:
        return Planarity(np.nan, np.nan, 0)
    return Planarity(float(np.mean(plans_cm)), float(np.mean(angles_deg)), len(plans_cm))


def _rays(intrinsics: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Points at depth 1, [H, W, 3]."""
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all() or np.linalg.det(intrinsics) == 0:
        raise ValueError(f"intrinsics must be a camera's 3x3 matrix, got {intrinsics.tolist()}")
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T


def _fit_plane(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit normal and standard deviation of the distances, of points [N, 3]."""
    from_mean = points - points.mean(axis=0)
    # The triangle of QR has the singular values of all points in nine numbers.
    _, sizes, axes = np.linalg.svd(np.linalg.qr(from_mean, mode="r"))
    return axes[2], float(sizes[2] / np.sqrt(len(points)))


def _angle_deg(one: np.ndarray, other: np.ndarray) -> float:
    """Between two lines, 0 to 90; exact for small angles too, where the cosine is not."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(one, other)), abs(one @ other))))
