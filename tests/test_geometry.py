import numpy as np
import pytest

from metricgold.geometry import (
    crop_intrinsics,
    focal_px_from_fov,
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
