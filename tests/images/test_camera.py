import numpy as np
import pytest

from metricgold.images.camera import (
    crop_intrinsics,
    focal_px_from_fov,
    mirror_intrinsics,
    normals_from_depth,
    pinhole,
    planar_from_ray_distance,
    points_from_depth,
    rays_from_intrinsics,
    resize_intrinsics,
)


def test_ray_distance_of_a_fronto_parallel_wall_becomes_its_planar_depth():
    rays = rays_from_intrinsics(pinhole(50.0, 48, 64), 48, 64)
    ray_distance_m = 3.0 * np.linalg.norm(rays, axis=-1)
    np.testing.assert_allclose(planar_from_ray_distance(ray_distance_m, rays), 3.0, rtol=1e-12)


def test_focal_length_of_ninety_degrees_is_half_the_width():
    assert focal_px_from_fov(90, 640) == pytest.approx(320)


@pytest.mark.parametrize("bad", [None, np.zeros((3, 3)), np.eye(2), np.full((3, 3), np.nan), pinhole(0.0, 4, 4)])
def test_what_is_no_camera_is_named(bad):
    with pytest.raises(ValueError, match=r"intrinsics must be a finite, invertible \[3, 3\], got"):
        points_from_depth(np.ones((4, 4), np.float32), bad)
    with pytest.raises(ValueError, match="intrinsics must be"):
        rays_from_intrinsics(bad, 4, 4)


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


# An off-centre camera whose pixels are not square and slightly skewed.
CAMERA = np.array([[61.0, 1.5, 30.3], [0, 57.0, 21.7], [0, 0, 1]])


def _depth_of_plane(normal, distance_m, height=48, width=64):
    """Planar depth of the plane normal . point + distance = 0, seen by CAMERA."""
    return (-distance_m / (rays_from_intrinsics(CAMERA, height, width) @ normal)).astype(np.float32)


def test_points_of_a_plane_lie_on_it_and_are_seen_where_they_were():
    normal, distance_m = np.array([0.36, 0.48, -0.8]), 2.5
    points_m = points_from_depth(_depth_of_plane(normal, distance_m), CAMERA)
    assert points_m.dtype == np.float32
    np.testing.assert_allclose(points_m @ normal, -distance_m, rtol=1e-6)
    x, y = _project(CAMERA, points_m.reshape(-1, 3).astype(float))
    rows, columns = np.mgrid[0.5:48, 0.5:64]
    np.testing.assert_allclose(x, columns.ravel(), atol=1e-5)
    np.testing.assert_allclose(y, rows.ravel(), atol=1e-5)


def test_points_have_x_right_y_down_z_forward_in_metres():
    points_m = points_from_depth(np.full((3, 5), 2.0, np.float32), pinhole(10.0, 3, 5))
    np.testing.assert_allclose(points_m[1, 2], [0, 0, 2], atol=1e-7)
    np.testing.assert_allclose(points_m[1, 4], [0.4, 0, 2], atol=1e-7)  # two pixels of ten a metre, at two metres
    np.testing.assert_allclose(points_m[2, 2], [0, 0.2, 2], atol=1e-7)


def test_what_is_no_depth_is_no_point_and_no_normal():
    depth_m = np.full((9, 9), 3.0, np.float32)
    depth_m[2, 2:7] = [np.nan, np.inf, -np.inf, 0, -1]
    camera = pinhole(9.0, 9, 9)
    for values in (points_from_depth(depth_m, camera), normals_from_depth(depth_m, camera)):
        unknown = np.isnan(values).all(axis=-1)
        assert (unknown == np.isnan(values).any(axis=-1)).all()
        assert np.argwhere(unknown).tolist() == [[2, x] for x in range(2, 7)]


@pytest.mark.parametrize("normal", [[0, 0, -1.0], [0, -0.8, -0.6], [0.36, 0.48, -0.8], [0.6, 0, -0.8]])
def test_normals_of_a_plane_are_its_own_up_to_the_edge_of_the_image(normal):
    normals = normals_from_depth(_depth_of_plane(np.array(normal), 2.0, 600, 40), CAMERA)  # more rows than a band
    known = _depth_of_plane(np.array(normal), 2.0, 600, 40) > 0  # the floor ends at the horizon
    known[:, :-1] &= known[:, 1:]
    near = known & (np.abs(_depth_of_plane(np.array(normal), 2.0, 600, 40)) < 30)
    assert near.any()
    np.testing.assert_allclose(normals[near], np.broadcast_to(normal, normals[near].shape), atol=2e-3)


def test_normals_of_a_ball_point_from_its_middle():
    middle, radius_m = np.array([0.1, -0.2, 4.0]), 1.5
    camera = pinhole(300.0, 240, 320)
    rays = rays_from_intrinsics(camera, 240, 320)
    # |z ray - middle| = radius, the nearer of two solutions.
    a, b, c = (rays**2).sum(-1), rays @ middle, middle @ middle - radius_m**2
    with np.errstate(invalid="ignore"):
        depth_m = ((b - np.sqrt(b**2 - a * c)) / a).astype(np.float32)
    points_m, normals = points_from_depth(depth_m, camera), normals_from_depth(depth_m, camera)
    hit = np.isfinite(depth_m)
    np.testing.assert_allclose(np.linalg.norm(points_m[hit] - middle, axis=-1), radius_m, rtol=1e-5)
    outward = (points_m - middle) / radius_m
    cosine = (normals * outward).sum(-1)
    assert np.nanmedian(cosine) > 0.9999
    facing = hit & (-(outward * points_m).sum(-1) > 0.3 * np.linalg.norm(points_m, axis=-1))  # not its rim
    assert cosine[facing].min() > 0.998


def test_normals_do_not_bend_at_an_edge_between_two_walls():
    depth_m = np.full((20, 20), 2.0, np.float32)
    depth_m[:, 10:] = 6.0
    normals = normals_from_depth(depth_m, pinhole(20.0, 20, 20))
    np.testing.assert_allclose(normals, np.broadcast_to([0, 0, -1], normals.shape), atol=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (257, 2)])
def test_normals_of_small_and_thin_images(shape):
    normals = normals_from_depth(np.full(shape, 2.0, np.float32), pinhole(10.0, *shape))
    assert np.isnan(normals).all() if 1 in shape else (normals == [0, 0, -1]).all()
