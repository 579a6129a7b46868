"""Night, water, drones, extreme ranges and a sensor's depth, against figures worked out by hand."""

import numpy as np
import pytest

from metricgold.datasets.synthetic import sensors
from metricgold.datasets.synthetic.benchmark_recipe import take_shots
from metricgold.datasets.synthetic.raycast import Ground, Shell, Solids
from metricgold.datasets.synthetic.render import RenderedFrame, render_scene
from metricgold.datasets.synthetic.shading import Air, Light, shade, through_air
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.datasets.synthetic.synthesize_benchmark import BENCHMARK_RECIPES
from metricgold.datasets.synthetic.world import Pose
from metricgold.params.sections import Synthesize, SynthesizeBenchmark

FEW = SynthesizeBenchmark(seed=4, height=48, num_scenes=4, frames_per_scene=2)
TRAINED = Synthesize(seed=4, height=32, width=48, num_train_scenes=6, num_test_scenes=1, frames_per_scene=2)


def shots_of(name: str):
    return [shot for index in range(4) for shot in take_shots(BENCHMARK_RECIPES[name], FEW, index)]


def frames_of(name: str):
    return [frame for index in range(6) for frame in render_scene(RECIPES[name], TRAINED, index)]


# Depth


@pytest.mark.parametrize("name", ["flsea-synthetic", "night-synthetic", "aerial-synthetic"])
def test_a_ray_to_the_ground_is_as_long_as_the_camera_is_high(name):
    met = 0
    for shot in shots_of(name):
        is_floor = [
            isinstance(one, Ground) or (isinstance(one, Shell) and one.sides == {"floor"})
            for one in shot.world.solids.solids
        ]
        on_ground = shot.shows(is_floor)
        falls = -shot.directions(on_ground)[:, 2]  # metres down for each metre of planar depth
        np.testing.assert_allclose(
            shot.frame.planar_depth_m[on_ground], shot.frame.pose.position_m[2] / falls, rtol=1e-9
        )
        met += on_ground.sum()
    assert met > 5000


def test_a_table_top_is_met_where_its_height_says():
    """Entity 4 of every third scene is the table's board, 0.75 m high."""
    for index in (0, 3):
        for frame in render_scene(RECIPES["ranges-synthetic"], TRAINED, index):
            world = RECIPES["ranges-synthetic"].draw_world(np.random.default_rng(0), index)
            assert world.solids.solids[3].material == "planks"
            falls = -(frame.rays @ frame.pose.world_from_camera().T)[..., 2]
            depth_m = (frame.pose.position_m[2] - 0.75) / falls
            on_top = (frame.entity == 4) & (falls > 0) & np.isclose(frame.planar_depth_m, depth_m, rtol=1e-9)
            assert on_top.sum() > 100


def test_ranges_are_those_of_its_name():
    frames = frames_of("ranges-synthetic")
    nearest = [frame.planar_depth_m.min() for frame in frames]
    farthest = [frame.planar_depth_m[np.isfinite(frame.planar_depth_m)].max() for frame in frames]
    assert 0.15 < min(nearest) < 0.35 and 350 < max(farthest) < 520
    assert any(near < 1 and far > 250 for near, far in zip(nearest, farthest, strict=True))  # both in one view


def test_drones_look_down_from_20_to_120_m():
    recipe = BENCHMARK_RECIPES["aerial-synthetic"]
    world = recipe.draw_world(np.random.default_rng(0), 0)
    poses = [world.pose(np.random.default_rng(number)) for number in range(200)]
    heights = np.array([pose.position_m[2] for pose in poses])
    tilt_deg = np.degrees([abs(pose.pitch + np.pi / 2) for pose in poses])
    assert 20 <= heights.min() < 25 and 100 < heights.max() <= 120 and tilt_deg.max() < 9


# Light


def test_water_takes_each_channel_by_its_own_coefficient_and_gives_its_veil():
    water = Air((0.5, 0.2, 0.1), (0.0, 0.4, 0.8), (0.1, 0.5, 0.9), veil_per_m=(0.4, 0.3, 0.2))
    ahead, up = [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    seen = through_air(water, np.full((3, 3), 0.6), np.array([ahead, ahead, up]), np.array([2.0, 10.0, np.inf]))
    by_hand = [0.6 * np.exp([-1.0, -0.4, -0.2]) + np.array([0.0, 0.4, 0.8]) * (1 - np.exp([-0.8, -0.6, -0.4]))]
    by_hand += [0.6 * np.exp([-5.0, -2.0, -1.0]) + np.array([0.0, 0.4, 0.8]) * (1 - np.exp([-4.0, -3.0, -2.0]))]
    np.testing.assert_allclose(seen, [*by_hand, [0.1, 0.5, 0.9]], rtol=1e-12)


def test_far_things_under_water_have_the_veils_colour():
    for shot in shots_of("flsea-synthetic"):
        far = (shot.frame.ray_distance_m > 60) & np.isfinite(shot.frame.ray_distance_m)
        np.testing.assert_allclose(shot.frame.radiance[far], np.tile(shot.world.air.horizon, (far.sum(), 1)), atol=2e-2)
        red, green, blue = shot.frame.radiance.mean(axis=(0, 1))
        assert red < 0.7 * min(green, blue)


def test_lamps_add_up():
    lights = [Light((x, 0.0, 3.0), (1.0, 1.0, 1.0), (0.1, 0.1, 0.1), fade_m=2.0) for x in (-1.0, 2.0)]
    solids, origin, down = Solids((Ground("plain"),)), np.array([0.0, 0.0, 1.5]), np.array([[0.0, 0.0, -1.0]])
    hits = solids.cast(origin, down)
    both, *alone = (shade(solids, some, origin, down, hits, 0.01) for some in (lights, lights[:1], lights[1:]))
    np.testing.assert_allclose(both, alone[0] + alone[1])


def test_nights_are_dark_and_lamps_are_white():
    frames = [shot.frame for shot in shots_of("night-synthetic")]
    assert np.median([np.median(frame.srgb) for frame in frames]) < 70
    assert max(np.percentile(frame.srgb, 99.9) for frame in frames) > 230


def test_photons_and_reading_make_the_noise_of_a_night():
    radiance = np.stack([np.zeros((400, 400)), np.full((400, 400), 0.1), np.full((400, 400), 0.5)], axis=-1)
    seen = sensors.exposed_by_night(radiance, np.random.default_rng(0))
    electrons = np.array([0, 0.1 * 1.6 * 500, 0.5 * 1.6 * 500])
    np.testing.assert_allclose(seen.mean(axis=(0, 1)), electrons / 500, atol=3e-4)
    np.testing.assert_allclose(seen.std(axis=(0, 1)), np.sqrt(electrons + 9) / 500, rtol=0.02)


# A sensor's depth


def wall_at(depth_m: np.ndarray, luminance: float = 0.5) -> RenderedFrame:
    """A frame that has this depth [H, W] and is grey."""
    rays = np.dstack([np.zeros_like(depth_m), np.full_like(depth_m, 0.75), np.ones_like(depth_m)])
    radiance = np.full((*depth_m.shape, 3), luminance)
    entity = np.ones(depth_m.shape, np.int32)
    return RenderedFrame("s", 0, 0, "clone", Pose((0, 0, 0), 0, 0), radiance, depth_m, 1.25 * depth_m, entity, rays)


@pytest.mark.parametrize(("depth_m", "error_m"), [(0.4, 0.0012), (2.4, 0.0088), (6.4, 0.0696)])
def test_noise_grows_with_the_square_of_depth_around_a_biased_scale(depth_m, error_m):
    assert sensors.rgbd_error_m(depth_m) == pytest.approx(error_m)
    frame = sensors.rgbd_measured(wall_at(np.full((300, 300), depth_m)), np.random.default_rng(0))
    error = frame.planar_depth_m - 1.03 * depth_m
    assert abs(error.mean()) < 4 * error_m / 300 and error.std() == pytest.approx(error_m, rel=0.01)
    np.testing.assert_allclose(frame.ray_distance_m, 1.25 * frame.planar_depth_m)


def test_holes_are_at_edges_in_the_dark_and_far_away():
    depth_m = np.full((40, 60), 2.0)
    depth_m[:, 30:] = 4.0
    depth_m[:10] = 7.5
    depth_m[:, :5] = 0.35
    frame = wall_at(depth_m)
    frame.radiance[30:] = 0.02
    holes = ~np.isfinite(sensors.rgbd_measured(frame, np.random.default_rng(0)).planar_depth_m)
    expected = sensors.depth_edges(depth_m)
    expected[:10] = expected[30:] = expected[:, :5] = True
    np.testing.assert_array_equal(holes, expected)
    assert expected[20, 29] and not expected[20, 30]  # on the nearer side


def test_the_sensors_twin_has_the_photographs_of_its_original():
    pairs = zip(frames_of("hypersim-synthetic"), frames_of("hypersim-sensor-synthetic"), strict=True)
    ratios, holes = [], []
    for exact, sensed in pairs:
        np.testing.assert_array_equal(exact.radiance, sensed.radiance)
        np.testing.assert_array_equal(exact.entity, sensed.entity)
        both = np.isfinite(sensed.planar_depth_m)
        holes.append(1 - both.mean())
        ratios.append(sensed.planar_depth_m[both] / exact.planar_depth_m[both])
    assert np.mean(np.concatenate(ratios)) == pytest.approx(1.03, abs=1e-3)
    assert 0.05 < np.mean(holes) < 0.5
