import numpy as np
import pytest

from metricgold.datasets.synthetic.patterns import pulse
from metricgold.datasets.synthetic.raycast import NOTHING, Box, Ground, Hits, Solids
from metricgold.datasets.synthetic.shading import MATERIALS, Air, Light, shade, through_air
from metricgold.datasets.synthetic.training_worlds import draw_garden, draw_hall, draw_room, draw_street

SUN = Light((0.0, 0.0, 1000.0), (1.0, 1.0, 1.0), (0.2, 0.2, 0.2))


def look_down(solids: Solids, x: float) -> np.ndarray:
    origin, directions = np.array([x, 0.0, 1.5]), np.array([[0.0, 0.0, -1.0]])
    return shade(solids, [SUN], origin, directions, solids.cast(origin, directions), 0.01)[0]


def test_pattern_is_the_mean_over_its_footprint():
    x, footprint_m = np.array([0.03, 0.49, 7.2, -3.3]), 0.37
    fine = x[:, None] + np.linspace(-0.5, 0.5, 100_001) * footprint_m
    expected = ((fine % 0.5) < 0.08).mean(axis=1)
    np.testing.assert_allclose(pulse(x, 0.5, 0.08, np.full(4, footprint_m)), expected, atol=1e-4)


def test_shadow_falls_where_the_sun_is_hidden():
    ground, roof = Ground("plain"), Box((0.0, 0.0, 3.0), (1.0, 1.0, 0.1))
    in_sun, in_shade = look_down(Solids((ground, roof)), x=2.0), look_down(Solids((ground, roof)), x=0.0)
    np.testing.assert_allclose(in_sun, look_down(Solids((ground,)), x=0.0), rtol=1e-5)
    np.testing.assert_allclose(in_sun - in_shade, 0.5**2.2, rtol=1e-5)  # albedo times the sun, full on


def test_haze_and_sky():
    air = Air(0.01, horizon=(1.0, 0.0, 0.0), zenith=(0.0, 0.0, 1.0))
    directions = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    seen = through_air(air, np.zeros((3, 3)), directions, np.array([100.0, np.inf, np.inf]))
    np.testing.assert_allclose(seen, [[1 - np.exp(-1), 0, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("draw", [draw_room, draw_street, draw_garden, draw_hall])
def test_worlds_are_drawn_from_the_seed_in_known_materials(draw):
    first, again, other = (draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.solids.solids == again.solids.solids != other.solids.solids
    assert {solid.material for solid in first.solids.solids} <= set(MATERIALS)
    pose = first.pose(np.random.default_rng(0))
    assert pose == again.pose(np.random.default_rng(0))
    rotation = pose.world_from_camera()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1) and rotation[2, 1] < -0.9  # the camera's y points down


def test_nothing_met_is_black_before_the_air():
    hits = Hits(np.array([np.inf]), np.array([NOTHING], dtype=np.int32))
    assert not shade(Solids((Ground(),)), [SUN], np.ones(3), np.ones((1, 3)), hits, 0.01).any()
