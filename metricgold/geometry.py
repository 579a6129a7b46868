"""Cameras: rays, ray distance to planar depth, intrinsics under resize and crop.

Convention: x right, y down, z along the optical axis; the centre of the top-left pixel is (0.5, 0.5).
"""

from math import radians, tan

import numpy as np


def pixel_centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel centre, float64 [H, W] each."""
    y, x = np.mgrid[0.5:height, 0.5:width]
    return x, y


def pinhole(focal_px: float, height: int, width: int) -> np.ndarray:
    """Intrinsics [3, 3] of a camera with square pixels and a centred principal point."""
    return np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]], dtype=np.float64)


def focal_px_from_fov(fov_deg: float, width: int) -> float:
    """Focal length in pixels for a horizontal field of view in degrees."""
    return width / 2 / tan(radians(fov_deg) / 2)


def resize_intrinsics(intrinsics: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Intrinsics after the image is scaled; exact because pixel centres sit at +0.5."""
    return np.diag([scale_x, scale_y, 1.0]) @ intrinsics


def crop_intrinsics(intrinsics: np.ndarray, left: float, top: float) -> np.ndarray:
    """Intrinsics after `left` columns and `top` rows are cut away."""
    cropped = intrinsics.copy()
    cropped[0, 2] -= left
    cropped[1, 2] -= top
    return cropped


def mirror_intrinsics(intrinsics: np.ndarray, width: int) -> np.ndarray:
    """Intrinsics after an image of this width, and the world with it, is mirrored left to right."""
    mirrored = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
    return mirrored @ intrinsics @ np.diag([-1.0, 1, 1])


def rays_from_intrinsics(intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
    """Ray through every pixel centre with z = 1, float64 [H, W, 3]."""
    x, y = pixel_centres(height, width)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)  # [H, W, 3]
    return pixels @ np.linalg.inv(intrinsics).T


def planar_from_ray_distance(ray_distance_m: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Planar depth [H, W] from distance along the ray; rays [H, W, 3] of any length, z > 0 in front."""
    cosine = rays[..., 2] / np.linalg.norm(rays, axis=-1)
    return ray_distance_m * cosine
