"""Habits of sensors, against geometry worked out by hand."""

import numpy as np
import pytest

from metricgold.datasets.holes import fill_holes
from metricgold.datasets.synthetic import sensors
from metricgold.datasets.synthetic.raycast import Box, Shell, Solids
from metricgold.datasets.synthetic.render import CameraRays, Capture
from metricgold.datasets.synthetic.sensors import Shot
from metricgold.datasets.synthetic.shading import Air, Light
from metricgold.datasets.synthetic.world import Pose, World
from metricgold.images import pinhole

FOCAL_PX, HEIGHT, WIDTH = 100.0, 60, 80
K = pinhole(FOCAL_PX, HEIGHT, WIDTH)
ROOM = [Shell((-5, -5, 0), (5, 8, 3), frozenset({side}), (), "plaster") for side in ("floor", "wall", "ceiling")]


def shot_of(*things, height_m=1.5) -> Shot:
    """A look along +y from the origin."""
    light = Light((0.0, 0.0, 2.9), (1.0, 1.0, 1.0), (0.3, 0.3, 0.3))
    world = World(Solids((*ROOM, *things)), light, Air(0.0, (1, 1, 1), (1, 1, 1)), lambda rng: pose)
    pose = Pose((0.0, 0.0, height_m), 0.0, 0.0)
    capture = Capture.take(world, CameraRays(np.linalg.inv(K), HEIGHT, WIDTH), pose)
    return Shot(capture.frame(world.air, "scene", 0, 0), world, K, np.random.default_rng(0))


def test_light_passes_glass_and_meets_what_is_behind_it():
    pane = Box((0.0, 4.0, 1.5), (0.5, 0.01, 0.5), 0.0, "glass")
    shot = shot_of(pane, Box((0.0, 6.0, 1.5), (2.0, 0.5, 1.5), 0.0, "veneer"))
    glass = shot.is_glass
    # The pane is 1 m of 3.99 m: 25 pixels on each side.
    assert glass[18:42, 28:52].all() and glass.sum() == pytest.approx((100 / 3.99) ** 2, rel=0.08)
    assert shot.frame.planar_depth_m[30, 40] == pytest.approx(3.99)
    behind_m = shot.depth_behind_glass_m()
    np.testing.assert_allclose(behind_m[glass], 5.5)
    np.testing.assert_array_equal(behind_m[~glass], shot.frame.planar_depth_m[~glass])


def test_what_hides_a_wall_from_the_projector_leaves_a_shade_of_its_baseline():
    """A post 2 m away, a wall 8 m away, 7.5 cm to the left: a shade of f b (1/2 - 1/8) pixels on the post's right."""
    shot = shot_of(Box((0.0, 2.05, 1.5), (0.2, 0.05, 1.5), 0.0, "veneer"))
    seen = shot.is_seen_from((-0.075, 0.0, 0.0), shot.frame.planar_depth_m)
    row = seen[30]
    shade = np.flatnonzero(~row)
    assert len(shade) == pytest.approx(FOCAL_PX * 0.075 * (1 / 2 - 1 / 8), abs=1.5)
    post = np.flatnonzero(shot.frame.planar_depth_m[30] < 3)
    # Seen from the left, the post hides wall to its right.
    assert (shade > post.max()).all() and shade.min() == post.max() + 1


def test_the_kinect_has_a_border_a_range_and_no_glass():
    shot = shot_of(Box((0.0, 4.0, 1.5), (0.5, 0.01, 0.5), 0.0, "glass"))
    depth_m = sensors.kinect_depth_m(shot)
    assert sensors.border_px(480) == 8 and sensors.border_px(120) == 2 and sensors.border_px(HEIGHT) == 1
    has_depth = depth_m > 0
    assert not has_depth[[0, -1]].any() and not has_depth[:, [0, -1]].any() and not has_depth[shot.is_glass].any()
    np.testing.assert_array_equal(depth_m[has_depth], shot.frame.planar_depth_m[has_depth])
    assert has_depth.mean() > 0.7
    filled_m = fill_holes(depth_m)
    assert (filled_m > 0).all()
    np.testing.assert_array_equal(filled_m[has_depth], depth_m[has_depth])


def test_lidar_has_rows_and_nothing_above_two_degrees():
    shot = shot_of()
    depth_m = sensors.lidar_depth_m(shot)
    has_depth = depth_m > 0
    np.testing.assert_array_equal(depth_m[has_depth], shot.frame.planar_depth_m[has_depth])
    points = depth_m[..., None] * shot.frame.rays - sensors.LIDAR
    down = np.degrees(np.arcsin(points[has_depth][:, 1] / np.linalg.norm(points[has_depth], axis=1)))
    assert down.min() > -2.3 and down.max() < 25
    off_beam = (down + 2) / 0.42 - np.rint((down + 2) / 0.42)
    pixel_deg = np.degrees(1 / FOCAL_PX)
    assert np.abs(off_beam * 0.42).max() <= pixel_deg / 2 + 1e-9
    # The wall is 8 m away: two degrees above the LIDAR, which is 8 cm above the camera.
    top = np.flatnonzero(has_depth.any(axis=1)).min()
    assert top == pytest.approx(30 - FOCAL_PX * (0.08 + 8.27 * np.tan(np.radians(2))) / 8, abs=2)


def test_lidar_rows_leave_gaps_where_pixels_are_finer_than_beams():
    fine = np.diag([8, 8, 1]) @ K
    world_shot = shot_of()
    camera = CameraRays(np.linalg.inv(fine), 8 * HEIGHT, WIDTH)
    frame = Capture.take(world_shot.world, camera, world_shot.frame.pose).frame(world_shot.world.air, "scene", 0, 0)
    depth_m = sensors.lidar_depth_m(Shot(frame, world_shot.world, fine, np.random.default_rng(0)))
    # A pixel of 0.07 degrees, a beam each 0.42, of whose points 55 % stay.
    assert (depth_m > 0)[8 * 35 :].mean() == pytest.approx(0.0716 / 0.42 * 0.55, rel=0.15)


def test_edges_are_on_the_nearer_side():
    depth_m = np.full((5, 6), 4.0)
    depth_m[:, 3:] = 4.1
    depth_m[2, 1] = 2.0
    depth_m[0, 5] = np.inf
    expected = np.zeros((5, 6), dtype=bool)
    expected[2, 1] = expected[0, 4] = expected[1, 5] = True
    np.testing.assert_array_equal(sensors.depth_edges(depth_m), expected)


def test_planes_are_numbered_walls_the_floor_and_table_tops():
    table = Box((0.0, 3.0, 0.7), (0.6, 0.4, 0.03), 0.0, "tabletop")
    shot = shot_of(table, Box((-1.0, 5.0, 0.4), (0.4, 0.4, 0.03), 0.3, "tabletop"))
    planes = sensors.plane_ids(shot)
    entity = shot.frame.entity
    np.testing.assert_array_equal(planes["floor"] > 0, entity == 1)
    np.testing.assert_array_equal(planes["wall"] > 0, entity == 2)
    assert set(np.unique(planes["wall"])) == {0, 1}  # the far wall alone is in view
    assert set(np.unique(planes["table"])) == {0, 1, 2}
    assert (planes["table"][entity == 4] == 1).mean() > 0.5  # all but the table's rim
    for kind, axis in (("wall", 2), ("floor", 1)):
        points = shot.frame.planar_depth_m[..., None] * shot.frame.rays
        assert np.ptp(points[planes[kind] == 1][:, axis]) < 1e-9


def test_two_walls_of_a_corner_are_two_planes():
    shot = shot_of()
    turned = Pose((0.0, 0.0, 1.5), 0.6, 0.0)
    capture = Capture.take(shot.world, CameraRays(np.linalg.inv(K), HEIGHT, WIDTH), turned)
    corner = Shot(capture.frame(shot.world.air, "scene", 0, 0), shot.world, K, np.random.default_rng(0))
    walls = sensors.plane_ids(corner)["wall"]
    assert set(np.unique(walls)) == {0, 1, 2}
    rotation = turned.world_from_camera()
    points = corner.frame.planar_depth_m[..., None] * corner.frame.rays @ rotation.T
    planes = [points[walls == number] for number in (1, 2)]
    assert sorted(int(np.argmin(np.ptp(plane, axis=0))) for plane in planes) == [0, 1]


def test_a_scan_is_sparser_with_distance():
    near, far = (shot_of(Box((0, y, 1.5), (4, 0.1, 1.5), 0.0, "veneer")) for y in (1.6, 7.9))
    shares = [(sensors.sparse_scan_m(shot)[10:50, 20:60] > 0).mean() for shot in (near, far)]
    assert shares[0] > 0.65 and shares[1] < 0.4
