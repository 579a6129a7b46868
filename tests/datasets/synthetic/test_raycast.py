"""Distances against formulas worked out by hand, and against casting without bounding spheres."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from metricgold.datasets.synthetic.raycast import NOTHING, Box, Cylinder, Ground, Shell, Solids, Sphere

ORIGIN = np.array([0.0, 0.0, 1.5])


def cast_one(solid, direction, origin=ORIGIN):
    hits = Solids((solid,)).cast(np.asarray(origin, float), np.array([direction], float))
    return hits.distances[0], hits.solid[0]


def test_ground_is_height_over_fall():
    assert cast_one(Ground(), (0, 1, -0.25)) == (6.0, 0)
    assert cast_one(Ground(), (0, 1, 0.25)) == (np.inf, NOTHING)
    assert cast_one(Ground(), (0, 1, 0.0)) == (np.inf, NOTHING)


def test_sphere_is_met_at_the_near_root():
    sphere = Sphere((0.0, 10.0, 1.5), 2.0)
    assert cast_one(sphere, (0, 1, 0))[0] == pytest.approx(8.0, abs=1e-14)
    # Offset by 1.2 m: half a chord is sqrt(2^2 - 1.2^2) = 1.6.
    assert cast_one(sphere, (0, 2, 0), (1.2, 0, 1.5))[0] == pytest.approx((10 - 1.6) / 2, abs=1e-14)
    assert cast_one(sphere, (0, 1, 0), (2.01, 0, 1.5))[0] == np.inf
    assert cast_one(sphere, (0, -1, 0))[0] == np.inf


def test_box_is_met_on_its_near_face():
    box = Box((1.0, 6.0, 1.0), (2.0, 1.0, 1.0))
    assert cast_one(box, (0, 1, 0))[0] == pytest.approx(5.0, abs=1e-14)
    assert cast_one(box, (0, 1, 0.2))[0] == np.inf  # passes 2.5 m up, above the top at 2 m
    assert cast_one(box, (0, 1, 0.0), (0, 0, 2.5))[0] == np.inf
    # From above onto the top: falls 1 m in 5.5 m.
    assert cast_one(box, (0, 5.5, -1), (0, 0, 3.0))[0] == pytest.approx(1.0, abs=1e-14)


def test_turned_box_is_met_on_its_corner_and_slanted_face():
    box = Box((0.0, 10.0, 1.0), (1.0, 1.0, 1.0), yaw=np.pi / 4)
    assert cast_one(box, (0, 1, 0))[0] == pytest.approx(10 - np.sqrt(2), abs=1e-12)
    # The face |x| + (10 - y) = sqrt(2), met at x = 0.5.
    assert cast_one(box, (0, 1, 0), (0.5, 0, 1.5))[0] == pytest.approx(10 - np.sqrt(2) + 0.5, abs=1e-12)
    # Yaw turns from x to y: a long box turned by 30 degrees has its axis along (cos 30, sin 30).
    long_box = Box((0.0, 0.0, 1.0), (5.0, 0.1, 1.0), yaw=np.pi / 6)
    axis = np.array([np.cos(np.pi / 6), np.sin(np.pi / 6), 0])
    assert cast_one(long_box, -axis, 10 * axis + [0, 0, 1.5])[0] == pytest.approx(5.0, abs=1e-12)


def test_cylinder_has_a_side_and_a_top():
    post = Cylinder((0.0, 5.0, 0.0), 0.5, 1.7)
    assert cast_one(post, (0, 1, 0))[0] == pytest.approx(4.5, abs=1e-14)
    assert cast_one(post, (0, 1, 0), (0.3, 0, 1.5))[0] == pytest.approx(5 - 0.4, abs=1e-14)
    assert cast_one(post, (0, 1, 0), (0, 0, 1.8))[0] == np.inf
    # From 2.7 m falling 1 m in 5 m: lands in the middle of the top.
    assert cast_one(post, (0, 5, -1), (0, 0, 2.7))[0] == pytest.approx(1.0, abs=1e-14)


def test_shell_is_seen_from_inside_by_its_sides_and_not_through_openings():
    low, high = (-2.0, -3.0, 0.0), (2.0, 3.0, 2.7)
    window = ((-0.5, 2.9, 1.0), (0.5, 3.1, 2.0))
    walls = Shell(low, high, frozenset({"wall"}), (window,))
    assert cast_one(walls, (1, 0, 0))[0] == 2.0
    assert cast_one(walls, (0, 1, 0))[0] == np.inf  # through the window
    assert cast_one(walls, (0.3, 1, 0))[0] == 3.0  # beside it
    assert cast_one(walls, (0, 0, -1))[0] == np.inf  # the floor is another solid's
    assert cast_one(Shell(low, high, frozenset({"floor"})), (0, 0, -1))[0] == 1.5
    assert cast_one(Shell(low, high, frozenset({"ceiling"})), (0, 0, 1))[0] == pytest.approx(1.2)


def random_solids(rng) -> list:
    solids = [Ground(), Shell((-30, -30, -1), (30, 30, 12))]
    for _ in range(6):
        x, y, z = rng.uniform(-15, 15, 3)
        size = rng.uniform(0.1, 3, 3)
        solids.append(Box((x, y, z), tuple(size), rng.uniform(0, 3)))
        solids.append(Sphere((y, x, z), size[0]))
        solids.append(Cylinder((-x, y, z), size[0], size[1]))
    return solids


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_bounding_spheres_change_nothing(seed):
    rng = np.random.default_rng(seed)
    solids, origin, directions = (
        random_solids(rng),
        rng.uniform((-20, -20, 0.1), (20, 20, 10)),
        rng.normal(size=(200, 3)),
    )
    hits = Solids(tuple(solids)).cast(origin, directions)
    table = np.stack([solid.distances(origin, directions.T) for solid in solids])
    np.testing.assert_array_equal(hits.distances, table.min(axis=0))
    met = np.isfinite(hits.distances)
    np.testing.assert_array_equal(hits.solid[met], table.argmin(axis=0)[met])
    assert (hits.solid[~met] == NOTHING).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_hits_lie_on_surfaces_that_face_the_eye(seed):
    rng = np.random.default_rng(seed)
    world = Solids(tuple(random_solids(rng)))
    origin, directions = np.array([20.0, 20.0, 5.0]), rng.normal(size=(200, 3))
    hits = world.cast(origin, directions)
    for index in set(hits.solid) - {NOTHING}:
        rows = hits.solid == index
        points = origin + hits.distances[rows, None] * directions[rows]
        normals, _, _ = world.solids[index].surface(points)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-9)
        # A step along the normal leaves the solid towards the eye: from there the way is no longer than before.
        assert (np.einsum("ni,ni->n", normals, directions[rows]) <= 1e-9).all()


def test_no_rays_and_no_solids_are_fine():
    assert Solids(()).cast(ORIGIN, np.ones((3, 3))).solid.tolist() == [NOTHING] * 3
    assert len(Solids((Sphere((0, 0, 0), 1),)).cast(ORIGIN, np.ones((0, 3))).solid) == 0
