"""Edges and planes: boundaries, iBims-1's distances and planarity, on shapes whose figures are known."""

import numpy as np
import pytest
from scipy import ndimage

from metricgold.metrics import boundary_f1, boundary_recall, edge_distances, planarity
from metricgold.metrics.edges import canny, distances_px

rng = np.random.default_rng(0)
STEP_M = np.where(np.arange(40) < 20, 2.0, 3.0) * np.ones((30, 1))
EVERYWHERE = np.ones(STEP_M.shape, bool)

# Boundaries


def test_a_sharp_step_is_found_and_a_blurred_one_is_not():
    disc = np.where(np.hypot(*np.mgrid[-14:16, -19:21]) < 8, 1.0, 2.0)
    assert boundary_f1(disc, disc, EVERYWHERE) == pytest.approx(1)
    assert boundary_f1(STEP_M, STEP_M, EVERYWHERE) == pytest.approx(0.25)  # three of four directions have no contour
    assert boundary_f1(5 * STEP_M, STEP_M, EVERYWHERE) == boundary_f1(STEP_M, STEP_M, EVERYWHERE)
    blurred = ndimage.gaussian_filter1d(STEP_M, 6, axis=1)
    assert boundary_f1(blurred, STEP_M, EVERYWHERE) == 0
    assert boundary_f1(np.roll(STEP_M, 1, axis=1), STEP_M, EVERYWHERE) == 0
    assert np.isnan(boundary_f1(STEP_M, np.ones_like(STEP_M), EVERYWHERE))


def test_boundaries_beside_pixels_without_truth_do_not_count():
    valid = EVERYWHERE.copy()
    valid[:, 20] = False
    rubbish = np.where(valid, STEP_M, np.nan)
    assert np.isnan(boundary_f1(rubbish, rubbish, valid))
    with pytest.raises(ValueError, match="no valid pixel"):
        boundary_f1(STEP_M, STEP_M, ~EVERYWHERE)
    with pytest.raises(ValueError, match=r"must be \[H, W\], got \[1200\]"):
        boundary_f1(STEP_M.ravel(), STEP_M.ravel(), EVERYWHERE.ravel())


def test_recall_of_a_matte():
    matte = STEP_M < 2.5
    assert boundary_recall(STEP_M, matte) == pytest.approx(0.25)  # of four directions the object has one
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 12
    assert boundary_recall(np.where(disc, 1.0, 2.0), disc) == pytest.approx(1)
    assert boundary_recall(np.where(disc, 2.0, 1.0), disc) == 0  # the object is behind
    assert np.isnan(boundary_recall(STEP_M, np.zeros(STEP_M.shape, bool)))
    with pytest.raises(ValueError, match="of one size"):
        boundary_recall(STEP_M, disc)


# Edges


def test_distances_are_those_of_the_transform():
    for density in (0.001, 0.01, 0.3):
        to, of = (rng.random((50, 61)) < share for share in (density, 0.2))
        to[7, 9] = True
        expected = ndimage.distance_transform_edt(~to)[of]
        np.testing.assert_allclose(distances_px(to, of), expected)
    assert np.isinf(distances_px(np.zeros((3, 4), bool), np.ones((3, 4), bool))).all()


def test_edges_of_the_truth_found_at_their_place_and_beside_it():
    edges = np.zeros(STEP_M.shape, bool)
    edges[1:-1, 19] = True
    here = edge_distances(STEP_M, edges)
    assert here.accuracy_px == pytest.approx(0.5)  # pixels on both sides of the step
    assert here.completeness_px == pytest.approx(0)
    shifted = edge_distances(np.roll(STEP_M, 3, axis=1)[:, 3:], edges[:, 3:])
    assert shifted.accuracy_px > 2
    assert edge_distances(1 + 0 * STEP_M, edges) == (10, 10)
    assert np.isnan(edge_distances(STEP_M, np.zeros_like(edges))).all()
    assert edge_distances(7 * STEP_M, edges) == pytest.approx(here)


def test_canny_is_thin_and_drops_what_is_faint():
    """A ramp from nothing to a step: the weak part stays only as far as it hangs on the strong one."""
    image = np.zeros((40, 41))
    image[:, 20:] = np.linspace(0, 0.4, 40)[:, None]
    found = canny(image)
    assert not found[:2].any()
    assert found[20:38].any(axis=1).all()
    assert set(np.nonzero(found[20:38])[1]) <= {19, 20}
    assert not canny(0.05 * image).any()


def test_canny_is_that_of_scikit_image():
    feature = pytest.importorskip("skimage.feature", reason="scikit-image is not installed")
    for _ in range(20):
        image = ndimage.gaussian_filter(rng.random(rng.integers(20, 90, 2)), rng.uniform(0.3, 3))
        image = (image - image.min()) / np.ptp(image)
        expected = feature.canny(image, sigma=2**0.5, low_threshold=0.1, high_threshold=0.2)
        np.testing.assert_array_equal(canny(image), expected)


@pytest.mark.parametrize(
    ("pred_m", "edges", "message"),
    [
        (STEP_M, EVERYWHERE[1:], "of one size"),
        (STEP_M, EVERYWHERE.astype(int), "edges must be bool, got int64"),
        (np.where(STEP_M > 2, np.nan, STEP_M), EVERYWHERE, "depth must be finite, got nan"),
    ],
)
def test_refusals_of_edges(pred_m, edges, message):
    with pytest.raises(ValueError, match=message):
        edge_distances(pred_m, edges)


# Planes

INTRINSICS = np.array([[50.0, 0, 24], [0, 50, 18], [0, 0, 1]])


def plane(tilt_deg: float) -> np.ndarray:
    """Depth of a plane through (0, 0, 3), turned about the vertical, 36 x 48."""
    slope = np.tan(np.radians(tilt_deg))
    x = (np.arange(48) + 0.5 - 24) / 50
    return np.broadcast_to(3 / (1 - slope * x), (36, 48)).copy()


def test_a_tilted_plane_is_flat_and_off_by_its_angle():
    true_m, pred_m = plane(10), plane(35)
    got = planarity(1.7 * pred_m, true_m, np.ones((36, 48), bool), INTRINSICS)
    assert got.plan_cm == pytest.approx(0, abs=1e-9)
    assert got.orientation_deg == pytest.approx(25)
    assert got.num_planes == 1


def test_a_bumpy_plane_is_not_flat():
    rays_z = np.ones((36, 48))
    bumps = np.where(np.add.outer(np.arange(36), np.arange(48)) % 2, 0.01, -0.01)
    got = planarity(3 * rays_z + bumps, 3 * rays_z, np.ones((36, 48), bool), INTRINSICS)
    assert got.plan_cm == pytest.approx(1, rel=0.01)
    assert got.orientation_deg == pytest.approx(0, abs=0.1)


def test_planes_by_number_and_those_too_small_or_unknown():
    mask = np.zeros((36, 48), np.uint8)
    mask[:, :20], mask[:, 25:45], mask[:2, 46:] = 1, 2, 3
    true_m = np.where(mask == 1, plane(0), plane(20))
    pred_m = true_m.copy()
    pred_m[mask == 2] = plane(30)[mask == 2]
    pred_m[:, 0], true_m[:, 1] = np.nan, 0
    got = planarity(pred_m, true_m, mask, INTRINSICS)
    assert got.num_planes == 2
    assert got.orientation_deg == pytest.approx((0 + 10) / 2)
    assert np.isnan(planarity(pred_m, true_m, mask == 3, INTRINSICS)[:2]).all()
    with pytest.raises(ValueError, match="camera's 3x3 matrix"):
        planarity(pred_m, true_m, mask, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="of one size"):
        planarity(pred_m, true_m, mask[1:], INTRINSICS)
