"""Alignments: what each fits, what becomes of depth that a fit makes negative, and predictions that are not metres."""

import numpy as np
import pytest

from metricgold.metrics import ALIGNMENTS, FIGURE_KEYS, FIGURES, KINDS, align, image_figures

rng = np.random.default_rng(0)
TRUE_M = rng.uniform(1, 20, (12, 9))
EVERYWHERE = np.ones(TRUE_M.shape, bool)
OF = {
    "metric": lambda g: g,
    "scale": lambda g: 3 * g,
    "affine_depth": lambda g: 0.5 * g + 2,
    "affine_disparity": lambda g: 1 / (2 / g + 0.1),
    "affine_log_depth": lambda g: np.exp(0.7 * np.log(g) - 1),
}


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_each_alignment_undoes_its_own_error_and_no_other(alignment):
    pred = OF[alignment](TRUE_M)
    np.testing.assert_allclose(align(pred, TRUE_M, EVERYWHERE, alignment), TRUE_M, rtol=1e-12)
    errors = {name: image_figures(pred, TRUE_M, EVERYWHERE)[f"{name}/abs_rel"] for name in ALIGNMENTS}
    assert errors[alignment] < 1e-12
    if alignment not in ("metric", "scale"):
        assert all(error > 1e-3 for name, error in errors.items() if name != alignment)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_figures_are_those_of_the_aligned_depth(alignment):
    pred = TRUE_M * np.exp(rng.normal(0, 0.5, TRUE_M.shape))
    valid = rng.random(TRUE_M.shape) < 0.7
    aligned = align(np.where(valid, pred, np.nan), TRUE_M, valid, alignment)
    row, alone = image_figures(pred, TRUE_M, valid), image_figures(np.where(valid, aligned, 1), TRUE_M, valid)
    for figure in FIGURES:
        if f"{alignment}/{figure}" in row:
            assert row[f"{alignment}/{figure}"] == pytest.approx(alone[f"metric/{figure}"], rel=1e-12)


def test_scale_has_no_silog_of_its_own():
    left_out = {f"{name}/{figure}" for name in ALIGNMENTS for figure in FIGURES} - set(FIGURE_KEYS)
    assert left_out == {"scale/silog", "scale/silog_unidepth"}
    pred = TRUE_M * np.exp(rng.normal(0, 0.5, TRUE_M.shape))
    row, scaled = image_figures(pred, TRUE_M, EVERYWHERE), image_figures(5 * pred, TRUE_M, EVERYWHERE)
    assert row["metric/silog"] == pytest.approx(scaled["metric/silog"])
    assert row["metric/silog_unidepth"] == pytest.approx(scaled["metric/silog_unidepth"])
    assert row["metric/silog_dav2"] != pytest.approx(scaled["metric/silog_dav2"])


def test_depth_that_a_fit_leaves_too_near_or_too_far_is_clipped_to_the_truth_or_to_limits():
    x, y, valid = np.array([0.1, 5.0, 10.0]), np.array([1.0, 1.0, 10.0]), np.ones(3, bool)
    s, t = np.polyfit(x, y, 1)
    by_hand = s * x + t
    assert by_hand[0] < 0
    np.testing.assert_allclose(align(x, y, valid, "affine_depth"), [1, *by_hand[1:]])
    np.testing.assert_allclose(align(x, y, valid, "affine_depth", limits_m=(0.5, 6)), [0.5, by_hand[1], 6])
    np.testing.assert_allclose(align(1 / x, 1 / y, valid, "affine_disparity"), [1, *1 / by_hand[1:]])
    limited = align(1 / x, 1 / y, valid, "affine_disparity", limits_m=(0.3, 6))
    np.testing.assert_allclose(limited, [6, 0.3, 0.3])
    np.testing.assert_allclose(align(x, y, valid, "affine_depth", limits_m=(0, 6)), [1, by_hand[1], 6])
    open_far = align(1 / x, 1 / y, valid, "affine_disparity", limits_m=(0.3, np.inf))
    np.testing.assert_allclose(open_far, [1, *np.maximum(1 / by_hand[1:], 0.3)])


def test_limits_clip_every_alignment():
    pred = np.array([0.5, 5.0, 50.0])
    row = image_figures(pred, np.array([1.0, 5.0, 10.0]), np.ones(3, bool), limits_m=(1.0, 10.0))
    assert row["metric/abs_rel"] == 0


def test_constant_prediction_has_the_mean_in_every_space():
    pred = np.full(TRUE_M.shape, 0.1)
    for alignment, mean in {
        "affine_depth": TRUE_M.mean(),
        "affine_disparity": 1 / (1 / TRUE_M).mean(),
        "affine_log_depth": np.exp(np.log(TRUE_M).mean()),
        "scale": np.median(TRUE_M),
    }.items():
        np.testing.assert_allclose(align(pred, TRUE_M, EVERYWHERE, alignment), mean)


def test_disparity_in_units_of_metres_is_depth():
    pred = TRUE_M * np.exp(rng.normal(0, 0.2, TRUE_M.shape))
    row = image_figures(pred, TRUE_M, EVERYWHERE)
    assert image_figures(1 / pred, TRUE_M, EVERYWHERE, kind="disparity_per_m") == pytest.approx(row, nan_ok=True)
    with pytest.raises(ValueError, match=r"predicted disparity must be finite and > 0 1/m where valid, got 0.0 at"):
        image_figures(np.where(TRUE_M > 19, 0, pred), TRUE_M, EVERYWHERE, kind="disparity_per_m")


@pytest.mark.parametrize(
    ("kind", "alignment", "relative"),
    [
        ("relative_depth", "affine_depth", lambda g: 0.1 * g - 1.5),
        ("relative_disparity", "affine_disparity", lambda g: 7 / g - 0.5),
    ],
)
def test_relative_predictions_have_one_alignment(kind, alignment, relative):
    pred = relative(TRUE_M)
    assert (pred < 0).any()
    row = image_figures(pred, TRUE_M, EVERYWHERE, kind=kind, uncertainty=np.ones(TRUE_M.shape))
    assert tuple(row) == FIGURE_KEYS
    defined = {key for key, value in row.items() if np.isfinite(value)}
    assert defined == {"num_pixels", "median_true_m"} | {f"{alignment}/{figure}" for figure in FIGURES}
    assert row[f"{alignment}/abs_rel"] < 1e-12
    np.testing.assert_allclose(align(pred, TRUE_M, EVERYWHERE, alignment, kind=kind), TRUE_M)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": "affine"}, "alignment of depth_m is 'affine', expected one of metric, scale, affine_depth"),
        ({"kind": "relative_depth"}, "alignment of relative_depth is 'metric', expected one of affine_depth"),
        ({"limits_m": (10.0, 1.0)}, "limits of aligned depth must be 0 <= nearest < farthest m, got 10.0 and 1.0"),
        ({"kind": "metres"}, "kind of prediction is 'metres', expected one of depth_m, disparity_per_m"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        align(TRUE_M, TRUE_M, EVERYWHERE, **{"alignment": "metric"} | options)


def test_kinds():
    assert KINDS == ("depth_m", "disparity_per_m", "relative_depth", "relative_disparity")
