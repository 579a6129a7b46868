"""Uncertainty: what a perfect, a useless and a reversed one get, and ties."""

import numpy as np
import pytest

from metricgold.metrics import image_figures, sparsification
from metricgold.metrics.calibration import STEPS

from . import papers

rng = np.random.default_rng(0)
TRUE_M = rng.uniform(1, 20, (60, 70))
VALID = rng.random(TRUE_M.shape) < 0.9


def measured(pred_m, uncertainty):
    return image_figures(pred_m, TRUE_M, VALID, uncertainty=uncertainty)


def test_an_honest_uncertainty_covers_what_it_says():
    sigma = rng.choice([0.05, 0.2, 0.4], TRUE_M.shape)
    pred_m = TRUE_M * np.exp(sigma * rng.standard_normal(TRUE_M.shape))
    row = measured(pred_m, sigma)
    assert row["coverage50"] == pytest.approx(0.50, abs=0.03)
    assert row["coverage68"] == pytest.approx(0.683, abs=0.03)
    assert row["coverage80"] == pytest.approx(0.80, abs=0.03)
    assert row["coverage95"] == pytest.approx(0.95, abs=0.02)
    overconfident = measured(pred_m, sigma / 3)
    assert all(overconfident[key] < row[key] for key in ("coverage50", "coverage80", "coverage95"))
    assert overconfident["ause_abs_rel"] == pytest.approx(row["ause_abs_rel"])  # the order is the same


def test_the_error_itself_is_a_perfect_order_and_its_inverse_the_worst():
    pred_m = TRUE_M * np.exp(0.3 * rng.standard_normal(TRUE_M.shape))
    abs_rel, error_m = np.abs(pred_m - TRUE_M) / TRUE_M, np.abs(pred_m - TRUE_M)
    assert measured(pred_m, abs_rel)["ause_abs_rel"] == pytest.approx(0, abs=1e-15)
    assert measured(pred_m, error_m)["ause_rmse"] == pytest.approx(0, abs=1e-15)
    useless, reversed_ = measured(pred_m, rng.random(TRUE_M.shape)), measured(pred_m, 10 - abs_rel)
    assert 0 < measured(pred_m, error_m)["ause_abs_rel"] < useless["ause_abs_rel"] < reversed_["ause_abs_rel"]


def test_curves_by_hand():
    """A hundred pixels with errors of 1 to 100 %, in the order of their uncertainty or of its inverse."""
    true_m, error = np.ones(100), np.arange(1, 101) / 100
    curves = sparsification(true_m + error, true_m, np.ones(100, bool), error)
    kept = 100 - 2 * np.arange(STEPS)
    np.testing.assert_allclose(curves.removed, 1 - kept / 100)
    np.testing.assert_allclose(curves.abs_rel, (kept + 1) / 200)
    np.testing.assert_allclose(curves.abs_rel_oracle, curves.abs_rel)
    np.testing.assert_allclose(curves.rmse_m, np.sqrt((kept + 1) * (2 * kept + 1) / 6) / 100)
    wrong = sparsification(true_m + error, true_m, np.ones(100, bool), 2 - error)
    np.testing.assert_allclose(wrong.abs_rel, (201 - kept) / 200)


def test_a_constant_uncertainty_says_nothing_whatever_the_order_of_pixels():
    pred_m = TRUE_M * np.exp(0.3 * rng.standard_normal(TRUE_M.shape))
    curves = sparsification(pred_m, TRUE_M, VALID, np.full(TRUE_M.shape, 0.1))
    np.testing.assert_allclose(curves.abs_rel, curves.abs_rel[0])
    np.testing.assert_allclose(curves.rmse_m, curves.rmse_m[0])


@pytest.mark.parametrize("decimals", [1, 3, 12])
def test_curves_of_many_pixels_are_those_of_sorting_them(decimals):
    """Ties, zeros and exact predictions among twenty thousand."""
    true_m = rng.uniform(1, 20, (1, 20_000))
    pred_m = true_m * np.exp(np.round(0.3 * rng.standard_normal(true_m.shape), decimals))
    uncertainty = np.round(np.abs(rng.standard_normal(true_m.shape)), decimals)
    curves = sparsification(pred_m, true_m, np.ones(true_m.shape, bool), uncertainty)
    abs_rel, squared = np.abs(pred_m - true_m) / true_m, (pred_m - true_m) ** 2
    for step in range(STEPS):
        stay = 20_000 - 400 * step
        for order, relative_curve, metres_curve in (
            (uncertainty, curves.abs_rel, curves.rmse_m),
            (None, curves.abs_rel_oracle, curves.rmse_m_oracle),
        ):
            by = [abs_rel, squared] if order is None else [order, order]
            assert relative_curve[step] == pytest.approx(papers.kept_error(abs_rel, by[0], stay)[0])
            assert metres_curve[step] == pytest.approx(np.sqrt(papers.kept_error(squared, by[1], stay)[0]))


def test_nothing_is_said_without_an_uncertainty():
    row = image_figures(TRUE_M, TRUE_M, VALID)
    assert all(np.isnan(row[key]) for key in ("ause_abs_rel", "ause_rmse", "coverage50", "coverage80", "coverage95"))


@pytest.mark.parametrize(
    ("uncertainty", "message"),
    [
        (np.ones((2, 2)), r"uncertainty and valid mask must have one shape, got \[2, 2\] and \[60, 70\]"),
        (np.full(TRUE_M.shape, np.nan), "uncertainty must be finite and >= 0 where valid, got nan at"),
        (np.full(TRUE_M.shape, -0.1), "uncertainty must be finite and >= 0 where valid, got -0.1 at"),
    ],
)
def test_refusals(uncertainty, message):
    with pytest.raises(ValueError, match=message):
        image_figures(TRUE_M, TRUE_M, VALID, uncertainty=uncertainty)
