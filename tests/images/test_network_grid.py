"""What the network sees of an image: evenly scaled, padded, its camera carried along; and the way back."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from metricgold.images.camera import inverse_intrinsics, pinhole, pixel_centres
from metricgold.images.network_grid import TrainingSize

SD2 = TrainingSize(480, 640, 8)
KITTI = (375, 1242)
SHAPES = [(480, 640), (768, 1024), (1080, 1920), (1920, 1080), (640, 480), (1000, 1000), KITTI, (500, 1500), (60, 80)]

sides = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("image", "size"),
    [
        # All of 4:3, HyperSim's and TartanAir's frames among them, as training sees them.
        ((480, 640), (480, 640)),
        ((768, 1024), (480, 640)),
        ((3024, 4032), (480, 640)),
        ((60, 80), (480, 640)),
        ((4032, 3024), (640, 480)),
        ((1080, 1920), (416, 744)),
        ((1920, 1080), (744, 416)),
        ((1000, 1000), (560, 560)),
        (KITTI, (312, 1016)),
        ((500, 1500), (320, 960)),
    ],
)
def test_sizes_are_multiples_of_what_the_vae_halves(image, size):
    assert SD2.grid(*image).size == size


@given(height=sides, width=sides)
def test_every_image_is_scaled_evenly_to_one_area(height, width):
    grid = SD2.grid(height, width)
    assert grid.scale**2 * height * width == pytest.approx(480 * 640)
    for side, before, image_side in ((grid.height, grid.top, height), (grid.width, grid.left, width)):
        extent = image_side * grid.scale
        assert (side % 8 == 0 and extent - 0.5 <= side < extent + 8 - 0.5 + 1e-6) or side == 8
        # As much padding before as after it, up to a pixel, so that mirrored it is the same.
        after = side - before - extent
        assert before == int(before) >= 0 and after >= -0.5 and abs(after - before) <= 1 + 1e-6


def test_the_focal_length_does_not_depend_on_rounding():
    """Over 60 heights the sides jump by eight pixels, the focal length never by more than its share of a pixel."""
    focals_px, sizes = [], set()
    for height in range(700, 760):
        grid = SD2.grid(height, 960)
        focals_px.append(grid.intrinsics(pinhole(800.0, height, 960))[0, 0])
        sizes.add(grid.size)
    assert len(sizes) > 4
    np.testing.assert_allclose(np.diff(np.log(focals_px)), -0.5 * np.diff(np.log(np.arange(700, 760))), atol=1e-12)


@pytest.mark.parametrize("image", SHAPES)
def test_a_circle_stays_a_circle(image):
    height, width = image
    x, y = pixel_centres(height, width)
    centre, radius = (0.4 * width, 0.55 * height), 0.3 * min(image)
    share = np.clip(radius + 0.5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)  # of each pixel that it covers
    rgb = np.repeat(np.rint(255 * share).astype(np.uint8)[..., None], 3, axis=2)
    grid = SD2.grid(height, width)
    seen = grid.see(rgb)[..., 0] / 255.0
    widest, highest = seen.sum(axis=1).max(), seen.sum(axis=0).max()
    assert widest == pytest.approx(2 * radius * grid.scale, abs=0.5) == highest
    assert abs(widest - highest) < 0.5
    x, y = pixel_centres(*grid.size)
    found = [(axis * seen).sum() / seen.sum() for axis in (x, y)]
    assert found == pytest.approx([centre[0] * grid.scale + grid.left, centre[1] * grid.scale + grid.top], abs=0.1)


@pytest.mark.parametrize("image", SHAPES)
def test_the_ray_of_a_point_is_the_same_before_and_after(image):
    intrinsics = np.array([[0.7 * image[1], 1.5, 0.48 * image[1]], [0, 0.69 * image[1], 0.53 * image[0]], [0, 0, 1]])
    for grid in (SD2.grid(*image), SD2.grid(*image).zoomed(1.7, (0.2, 0.9)), SD2.grid(*image).window(16, 24, 64, 96)):
        point = np.array([0.31 * image[1], 0.77 * image[0], 1])
        seen = np.array([grid.scale * point[0] + grid.left, grid.scale * point[1] + grid.top, 1])
        rays = inverse_intrinsics(intrinsics) @ point, inverse_intrinsics(grid.intrinsics(intrinsics)) @ seen
        np.testing.assert_allclose(*rays, rtol=1e-9)


@pytest.mark.parametrize("image", SHAPES)
def test_colours_lie_where_the_camera_says(image):
    """A ramp over the image, seen: each pixel has the colour of the point that its centre looks at."""
    x, y = pixel_centres(*image)
    rgb = np.stack([250 * x / image[1], 250 * y / image[0], 0 * x], axis=-1).astype(np.uint8)
    grid = SD2.grid(*image)
    seen, depth = grid.see(rgb).astype(float), grid.sample(x)
    x, y = pixel_centres(*grid.size)
    x, y = (x - grid.left) / grid.scale, (y - grid.top) / grid.scale  # in the image
    inner = (x > 4) & (x < image[1] - 4) & (y > 4) & (y < image[0] - 4)
    assert inner.mean() > 0.7
    np.testing.assert_allclose(seen[inner, 0], 250 * x[inner] / image[1], atol=3)
    np.testing.assert_allclose(seen[inner, 1], 250 * y[inner] / image[0], atol=3)
    assert np.abs(depth - x)[inner].max() <= 0.5 + 1e-6


@pytest.mark.parametrize("image", SHAPES)
def test_a_map_comes_back_to_the_image_s_pixels_without_the_padding(image):
    grid = SD2.grid(*image)
    x, y = pixel_centres(*grid.size)
    plane = torch.tensor(2 * (x - grid.left) / grid.scale + 3 * (y - grid.top) / grid.scale, dtype=torch.float32)
    padding = torch.tensor((x < grid.left) | (y < grid.top), dtype=torch.float32)
    found, padded = grid.to_image(torch.stack([plane, padding])).numpy()
    assert found.shape == image and not padded.any()
    x, y = pixel_centres(*image)
    error = np.abs(found - (2 * x + 3 * y))
    margin = int(np.ceil(1.5 / grid.scale))  # up to where there are pixels of the grid on either side
    inner = np.s_[margin : image[0] - margin, margin : image[1] - margin]
    assert error[inner].max() < 0.05 and error.max() <= 5 * margin


def test_what_fits_is_left_as_it_is():
    grid = TrainingSize(64, 96, 4).grid(64, 96)
    rgb, depth, maps = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96)), torch.zeros(2, 64, 96)
    assert grid.see(rgb) is rgb and grid.sample(depth) is depth and grid.to_image(maps) is maps
    np.testing.assert_array_equal(grid.intrinsics(pinhole(90.0, 64, 96)), pinhole(90.0, 64, 96))


def test_what_is_only_padded_keeps_its_pixels():
    rng, grid = np.random.default_rng(0), TrainingSize(61, 93, 8).grid(61, 93)
    assert grid.size == (64, 96) and (grid.top, grid.left) == (2, 2)
    rgb, depth = rng.integers(0, 255, (61, 93, 3), dtype=np.uint8), rng.random((61, 93))
    np.testing.assert_array_equal(grid.see(rgb), np.pad(rgb, ((2, 1), (2, 1), (0, 0)), mode="edge"))
    np.testing.assert_array_equal(grid.sample(depth), np.pad(depth, ((2, 1), (2, 1)), mode="edge"))
    maps = torch.from_numpy(np.pad(depth, ((2, 1), (2, 1)))[None])
    np.testing.assert_allclose(grid.to_image(maps)[0], depth, rtol=1e-12)


def test_fine_patterns_do_not_alias():
    """Lines of one pixel, 4.2 times too fine for the grid, become grey."""
    rgb = np.zeros((2016, 2688, 3), np.uint8)
    rgb[:, ::2] = 255
    seen = SD2.grid(2016, 2688).see(rgb)
    assert seen.std() < 3 and abs(seen.mean() - 127.5) < 2


def test_a_window_is_a_part_of_the_grid():
    grid, depth = SD2.grid(*KITTI), np.random.default_rng(0).random(KITTI)
    part = grid.window(40, 72, 256, 264).sample(depth)
    np.testing.assert_array_equal(part, grid.sample(depth)[40:296, 72:336])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 1000), (2000, 1), (3, 400)])
def test_single_pixels_and_strips_are_seen(height, width):
    grid = TrainingSize(32, 48, 2).grid(height, width)
    assert grid.see(np.full((height, width, 3), 9, np.uint8)).shape == (*grid.size, 3)
    assert (grid.see(np.full((height, width, 3), 9, np.uint8)) == 9).all()
    assert grid.to_image(torch.full((2, *grid.size), 0.5)).shape == (2, height, width)
