"""Metrics: numbers worked out by hand, and what must never change them."""

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from metricgold.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, METRICS, depth_metrics, mean_metrics

depths = arrays(np.float64, 24, elements=st.floats(0.1, 200.0))
masks = arrays(np.bool_, 24).filter(np.any)
everywhere = np.ones(24, dtype=bool)


def test_by_hand():
    """Three pixels: exact, twice as far, a tenth nearer."""
    true_m, pred_m = np.array([4.0, 2.0, 10.0]), np.array([4.0, 4.0, 9.0])
    got = depth_metrics(pred_m, true_m, np.ones(3, dtype=bool))
    e = [0.0, log(2), log(0.9)]
    mean_e, mean_e2 = sum(e) / 3, sum(x * x for x in e) / 3
    assert got == pytest.approx(
        {
            "abs_rel": (0 + 1 + 0.1) / 3,
            "sq_rel": (0 + 2 + 0.1) / 3,
            "rmse_m": sqrt(5 / 3),
            "mae_m": 1.0,
            "rmse_log": sqrt(mean_e2),
            "log10": (0.30102999566 + 0.04575749056) / 3,
            "silog": 100 * sqrt(mean_e2 - mean_e**2),
            "delta1": 2 / 3,
            "delta2": 2 / 3,
            "delta3": 2 / 3,
        }
    )


def test_thresholds_are_strict_and_both_ways():
    true_m = np.array([1.0, 1.0, 1.0, 1.25, 1.0])
    pred_m = np.array([1.25, 1.2499, 1.5624, 1.0, 1.9531])
    got = depth_metrics(pred_m, true_m, np.ones(5, dtype=bool))
    assert (got["delta1"], got["delta2"], got["delta3"]) == (0.2, 0.8, 1.0)


@given(depths, masks)
def test_perfect(true_m, valid):
    got = depth_metrics(true_m.copy(), true_m, valid)
    assert all(got[key] == 0 for key in LOWER_IS_BETTER)
    assert all(got[key] == 1 for key in HIGHER_IS_BETTER)


@given(depths, st.floats(0.2, 5.0))
def test_scale_factor(true_m, factor):
    """A prediction off by one factor everywhere: each figure follows from the factor, SILog forgives it."""
    got = depth_metrics(factor * true_m, true_m, everywhere)
    assert got["abs_rel"] == pytest.approx(abs(factor - 1), abs=1e-9)
    assert got["rmse_log"] == pytest.approx(abs(log(factor)), abs=1e-9)
    assert got["log10"] == pytest.approx(abs(log(factor)) / log(10), abs=1e-9)
    assert got["silog"] == pytest.approx(0, abs=1e-4)
    assert got["mae_m"] == pytest.approx(abs(factor - 1) * true_m.mean(), rel=1e-6, abs=1e-9)


@given(depths, depths, masks, st.sampled_from([0.0, -1.0, np.nan, np.inf, 1e9]))
def test_invalid_pixels_never_count(pred_m, true_m, valid, rubbish):
    clean = depth_metrics(pred_m, true_m, valid)
    pred_m, true_m = np.where(valid, pred_m, rubbish), np.where(valid, true_m, rubbish)
    assert depth_metrics(pred_m, true_m, valid) == clean


@given(depths, depths, masks, st.permutations(range(24)))
def test_order_of_pixels_does_not_matter(pred_m, true_m, valid, order):
    shuffled = depth_metrics(pred_m[order], true_m[order], valid[order])
    assert shuffled == pytest.approx(depth_metrics(pred_m, true_m, valid), abs=1e-6)


@given(depths, depths)
def test_symmetric_figures(pred_m, true_m):
    forth, back = depth_metrics(pred_m, true_m, everywhere), depth_metrics(true_m, pred_m, everywhere)
    for key in ("rmse_m", "mae_m", "rmse_log", "log10", "delta1", "delta2", "delta3"):
        assert forth[key] == pytest.approx(back[key])
    assert forth["delta1"] <= forth["delta2"] <= forth["delta3"]


def test_float16_truth_is_summed_in_float64():
    true_m = np.full((100, 100), 60, dtype=np.float16)
    got = depth_metrics(true_m + np.float16(1), true_m, np.ones((100, 100), dtype=bool))
    assert got["rmse_m"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("pred_m", "true_m", "valid", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), np.ones((2, 3), bool), r"one shape, got \[2, 3\], \[3, 2\]"),
        (np.ones(3), np.ones(3), np.zeros(3, bool), "no valid pixel"),
        (np.ones(3), np.ones(3), np.ones(3, np.uint8), "bool, got uint8"),
        (np.array([1, np.nan, 1]), np.ones(3), np.ones(3, bool), "predicted depth .* got nan at 1 of 3"),
        (np.ones(3), np.array([1, 0, 0]), np.ones(3, bool), "true depth .* got 0.0 at 2 of 3"),
    ],
)
def test_refusals(pred_m, true_m, valid, message):
    with pytest.raises(ValueError, match=message):
        depth_metrics(pred_m, true_m, valid)


def test_mean_weighs_images_alike():
    """One image of a single bad pixel counts as much as one of a hundred good ones."""
    good = depth_metrics(np.ones(100), np.ones(100), np.ones(100, bool))
    bad = depth_metrics(np.array([3.0]), np.array([1.0]), np.ones(1, bool))
    mean = mean_metrics([good, bad])
    assert tuple(mean) == METRICS
    assert mean["abs_rel"] == 1.0
    assert mean["delta1"] == 0.5


def test_mean_refusals():
    with pytest.raises(ValueError, match="no image"):
        mean_metrics([])
    with pytest.raises(ValueError, match="same metrics"):
        mean_metrics([{"abs_rel": 1.0}, {"delta1": 1.0}])
