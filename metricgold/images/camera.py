"""Cameras: rays, points and normals of planar depth, intrinsics under resize and crop.

Convention: x right, y down, z along the optical axis; the centre of the top-left pixel is (0.5, 0.5).
"""

from math import hypot, radians, sqrt, tan

import numpy as np

_FULL_FRAME_DIAGONAL_MM = hypot(36, 24)
FOV_DEG = 60.0  # over the longer side where no camera is known: a lens of 31 mm on 35 mm film


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


def focal_px_from_35mm(focal_35mm: float, height: int, width: int) -> float:
    """Focal length in pixels for that of equal field of view on 35 mm film, by the diagonal (CIPA DCG-001)."""
    return focal_35mm / _FULL_FRAME_DIAGONAL_MM * hypot(height, width)


def relative_focal(intrinsics: np.ndarray, height: int, width: int) -> float:
    """Focal length of a whole image as a share of the root of its area; 1.06 for 60 degrees over a 3:2 image's width.

    Alike for every size of one image, so that it says the lens and nothing else.
    """
    fx, fy = float(intrinsics[0, 0]), float(intrinsics[1, 1])
    return sqrt(abs(fx * fy) / (height * width))


def resize_intrinsics(intrinsics: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Intrinsics after the image is scaled; exact because pixel centres sit at +0.5."""
    resized: np.ndarray = np.diag([scale_x, scale_y, 1.0]) @ intrinsics
    return resized


def crop_intrinsics(intrinsics: np.ndarray, left: float, top: float) -> np.ndarray:
    """Intrinsics after `left` columns and `top` rows are cut away."""
    cropped = intrinsics.copy()
    cropped[0, 2] -= left
    cropped[1, 2] -= top
    return cropped


def mirror_intrinsics(intrinsics: np.ndarray, width: int) -> np.ndarray:
    """Intrinsics after an image of this width, and the world with it, is mirrored left to right."""
    mirror = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
    mirrored: np.ndarray = mirror @ intrinsics @ np.diag([-1.0, 1, 1])
    return mirrored


def rays_from_intrinsics(intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
    """Ray through every pixel centre with z = 1, float64 [H, W, 3]. Raises ValueError as inverse_intrinsics does."""
    x, y = pixel_centres(height, width)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)  # [H, W, 3]
    rays: np.ndarray = pixels @ inverse_intrinsics(intrinsics).T
    return rays


def intrinsics_from(fx: float, fy: float, cx: float, cy: float, *, first_pixel: float) -> np.ndarray:
    """Intrinsics [3, 3] from numbers that call the centre of the first pixel 0, as most do, or 1, as MATLAB does."""
    shift = 0.5 - first_pixel
    return np.array([[fx, 0, cx + shift], [0, fy, cy + shift], [0, 0, 1]], dtype=np.float64)


def fit_pinhole(rays: np.ndarray) -> np.ndarray:
    """Intrinsics [3, 3] without skew that best map rays [H, W, 3] to their pixels (least squares)."""
    x, y = pixel_centres(*rays.shape[:2])
    ahead = rays[..., 2] > 0
    tangents = rays[ahead][:, :2] / rays[ahead][:, 2:]  # [N, 2]
    fx, cx = np.polyfit(tangents[:, 0], x[ahead], 1)
    fy, cy = np.polyfit(tangents[:, 1], y[ahead], 1)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def inverse_intrinsics(intrinsics: np.ndarray | None) -> np.ndarray:
    """Pixels to rays, [3, 3]. Raises ValueError where the intrinsics are not a finite, invertible [3, 3]."""
    camera = np.asarray(intrinsics, np.float64)  # None becomes NaN
    if camera.shape != (3, 3) or not np.isfinite(camera).all() or np.linalg.det(camera) == 0:
        raise ValueError(f"intrinsics must be a finite, invertible [3, 3], got {intrinsics}")
    return np.linalg.inv(camera)


def planar_from_ray_distance(ray_distance_m: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Planar depth [H, W] from distance along the ray; rays [H, W, 3] of any length, z > 0 in front."""
    cosine = rays[..., 2] / np.linalg.norm(rays, axis=-1)
    planar_depth_m: np.ndarray = ray_distance_m * cosine
    return planar_depth_m


def points_from_depth(planar_depth_m: np.ndarray, intrinsics: np.ndarray | None) -> np.ndarray:
    """Points in metres, float32 [H, W, 3], x right, y down, z forward: z K^-1 (x, y, 1) of each pixel's centre.

    planar_depth_m  [H, W], metres along the optical axis; where it is not finite and positive, the point is NaN
    intrinsics      [3, 3] in pixels of the image, pixel centres at +0.5

    Raises ValueError for intrinsics that are not a camera's, such as the None of an image without a known camera.
    """
    depth_m = np.asarray(planar_depth_m, np.float32)
    depth_m = np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, np.float32(np.nan))
    height, width = depth_m.shape
    x, y = np.arange(0.5, width), np.arange(0.5, height)[:, None]
    points_m = np.empty((height, width, 3), np.float32)
    for axis, (along_x, along_y, offset) in enumerate(inverse_intrinsics(intrinsics)):
        points_m[..., axis] = (along_x * x + along_y * y + offset) * depth_m
    return points_m


_BAND_ROWS = 64  # bounds the memory of large images


def normals_from_depth(planar_depth_m: np.ndarray, intrinsics: np.ndarray | None) -> np.ndarray:
    """Unit normals of the surface seen, facing the camera, float32 [H, W, 3]; NaN where unknown.

    Exact on planes up to rounding. At an edge the neighbour on the same surface decides: of the steps to both
    sides each counts by its length to the power of -4.
    """
    points_m = points_from_depth(planar_depth_m, intrinsics)
    normals = np.empty_like(points_m)
    for top in range(0, len(points_m), _BAND_ROWS):
        above = min(top, 1)  # one more row on either side
        band = normals_from_points(points_m[top - above : top + _BAND_ROWS + 1])
        normals[top : top + _BAND_ROWS] = band[above : above + _BAND_ROWS]
    return normals


def normals_from_points(points_m: np.ndarray) -> np.ndarray:
    """Unit normals of points [H, W, 3] in metres, facing the camera at 0, 0, 0; all rows in memory at once."""
    axes_first = np.moveaxis(points_m, -1, 0).astype(np.float64)  # [3, H, W]: one plane at a time
    (ax, ay, az), (bx, by, bz) = _tangents(axes_first), _tangents(axes_first.swapaxes(1, 2)).swapaxes(1, 2)
    normals = np.stack([by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax])
    normals /= np.sqrt(np.einsum("chw,chw->hw", normals, normals))
    normals *= -np.copysign(1, np.einsum("chw,chw->hw", normals, axes_first))  # towards the camera
    return np.moveaxis(normals, 0, -1)


def _tangents(points_m: np.ndarray) -> np.ndarray:
    """Mean step along the last axis of [3, H, W]; NaN where neither neighbour is known."""
    steps = np.full((*points_m.shape[:-1], points_m.shape[-1] + 1), np.nan)  # the first and the last lead nowhere
    np.subtract(points_m[..., 1:], points_m[..., :-1], out=steps[..., 1:-1])
    square = np.einsum("chw,chw->hw", steps, steps)
    unknown = np.isnan(square)
    steps[:, unknown], square[unknown] = 0, np.inf
    weights = square**-2
    steps *= weights
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = (steps[..., 1:] + steps[..., :-1]) / (weights[:, 1:] + weights[:, :-1])
    return mean
