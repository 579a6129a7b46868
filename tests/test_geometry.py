import numpy as np
import pytest

from metricgold.geometry import (
    crop_intrinsics,
    focal_px_from_fov,
    mirror_intrinsics,
    pinhole,
    planar_from_ray_distance,
    rays_from_intrinsics,
    resize_intrinsics,
)


def test_ray_distance_of_a_fronto_parallel_wall_becomes_its_planar_depth():
    rays = rays_from_intrinsics(pinhole(50.0, 48, 64), 48, 64)
    ray_distance_m = 3.0 * np.linalg.norm(rays, axis=-1)
    np.testing.assert_allclose(planar_from_ray_distance(ray_distance_m, rays), 3.0, rtol=1e-12)


def test_focal_length_of_ninety_degrees_is_half_the_width():
    assert focal_px_from_fov(90, 640) == pytest.approx(320)


def test_rays_survive_resize_and_crop():
    intrinsics = pinhole(50.0, 48, 64)
    half = resize_intrinsics(intrinsics, 0.5, 0.5)
    # The centre of a 2x2 block of pixels is the centre of the half-size pixel.
    blocks = rays_from_intrinsics(intrinsics, 48, 64).reshape(24, 2, 32, 2, 3).mean((1, 3))
    np.testing.assert_allclose(rays_from_intrinsics(half, 24, 32), blocks, atol=1e-12)
    cropped = crop_intrinsics(intrinsics, left=10, top=6)
    np.testing.assert_allclose(
        rays_from_intrinsics(cropped, 20, 30), rays_from_intrinsics(intrinsics, 48, 64)[6:26, 10:40], atol=1e-12
    )


def test_points_are_seen_where_the_changed_image_shows_them():
    """Any camera, skewed or off centre: crop, scale and mirror move the image of each point as they move pixels."""
    rng = np.random.default_rng(0)
    intrinsics = np.array([[50.0, 1.5, 30.3], [0, 47.0, 21.7], [0, 0, 1]])
    points_m = rng.uniform([-3, -3, 1], [3, 3, 9], (100, 3))
    x, y = _project(intrinsics, points_m)
    left, top, scale, width = 3.25, 7.5, 1.6, 40
    changed = resize_intrinsics(crop_intrinsics(intrinsics, left, top), scale, scale)
    np.testing.assert_allclose(_project(changed, points_m), ((x - left) * scale, (y - top) * scale), rtol=1e-12)
    # In the mirrored world a point on the left lies on the right.
    mirrored = _project(mirror_intrinsics(intrinsics, width), points_m * [-1, 1, 1])
    np.testing.assert_allclose(mirrored, (width - x, y), rtol=1e-12)


def _project(intrinsics, points_m):
    x, y, z = intrinsics @ points_m.T
    return x / z, y / z
