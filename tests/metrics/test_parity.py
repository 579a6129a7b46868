"""Ten thousand generated images: our figures are those of the papers' formulas, and what cannot be measured says so."""

import numpy as np
import pytest

from metricgold.metrics import FIGURE_KEYS, image_figures

from . import papers

SIZES = (1, 2, 3, 4, 7, 16, 50, 51, 64, 97)
CASES_EACH = 900  # and 1,000 that cannot be measured
RUBBISH = (np.nan, 0.0, -1.0, np.inf, -np.inf, 1e300)


def draw(rng: np.random.Generator, cases: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, truth and uncertainty: good and unrelated ones, constant ones, quantised ones, ranges up to 10^6."""
    span = rng.choice([0.1, 1.0, 3.0, 7.0], (cases, 1))
    g = np.exp(rng.uniform(-span, span, (cases, n)))
    p = g ** rng.choice([0.5, 1.0, 1.5], (cases, 1)) * np.exp(
        rng.normal(0, rng.choice([1e-3, 0.1, 1.0], (cases, 1)), (cases, n))
    )
    p[rng.random(cases) < 0.05] = 2.5
    same = rng.random(cases) < 0.05
    p[same] = g[same]
    steps = rng.random(cases) < 0.1
    g[steps], p[steps] = np.maximum(np.round(4 * g[steps]), 1) / 4, np.maximum(np.round(4 * p[steps]), 1) / 4
    u = rng.choice([0.0, 0.05, 0.1, 0.5], (cases, n)) + rng.choice([0, 1], (cases, 1)) * rng.random((cases, n))
    return p, g, u


def scattered(rng: np.random.Generator, *values: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The values at valid pixels of a larger image whose other pixels hold rubbish."""
    n = values[0].size
    valid = np.zeros(n + rng.integers(0, 9), bool)
    valid[rng.permutation(valid.size)[:n]] = True
    images = []
    for value in values:
        image = rng.choice(RUBBISH, valid.size)
        image[valid] = value
        images.append(image)
    return images, valid


@pytest.mark.parametrize("n", SIZES)
def test_figures_are_those_of_the_papers(n):
    rng = np.random.default_rng(n)
    p, g, u = draw(rng, CASES_EACH, n)
    ours = []
    for case in zip(p, g, u, strict=True):
        (pred, true_m, uncertainty), valid = scattered(rng, *case)
        ours.append(image_figures(pred, true_m, valid, uncertainty=uncertainty))
    assert all(tuple(row) == FIGURE_KEYS for row in ours)

    long_p, long_g, long_u = (values.astype(papers.REAL) for values in (p, g, u))
    check(ours, "num_pixels", np.full(CASES_EACH, n), 0)
    check(ours, "median_true_m", papers.middle(long_g)[:, 0], 0)
    check(ours, "median_pred_m", papers.middle(long_p)[:, 0], 0)
    for alignment, depth_m in papers.aligned(long_p, long_g).items():
        # What rounding of the farthest depth is worth at the nearest: no float64 tells an error below it from none.
        farthest = np.maximum(depth_m, long_g).max(axis=1)
        atol = 1e-15 * farthest / long_g.min(axis=1) + 1e-13
        of_metres = {"rmse_m": farthest, "mae_m": farthest, "sq_rel": farthest}
        # Nor does it tell on which side of a threshold an aligned depth lies that is as good as on it.
        fewer, more = (papers.figures(depth_m, long_g, side * 1e-12 * (alignment != "metric")) for side in (-1, 1))
        for figure, theirs in fewer.items():
            if f"{alignment}/{figure}" not in FIGURE_KEYS:
                continue
            got = np.array([row[f"{alignment}/{figure}"] for row in ours])
            if figure.startswith("delta"):
                assert (theirs.astype(float) <= got).all(), f"{alignment}/{figure}"
                assert (got <= more[figure].astype(float)).all(), f"{alignment}/{figure}"
            else:
                check(
                    ours, f"{alignment}/{figure}", theirs, atol * of_metres.get(figure, 100 if "silog" in figure else 1)
                )
    for key, theirs in papers.calibration(long_p, long_g, long_u).items():
        check(ours, key, theirs, 1e-12 * (long_g.max(axis=1) if key == "ause_rmse" else 1))


def check(ours, key, theirs, atol):
    got = np.array([row[key] for row in ours])
    apart = np.abs(got - theirs.astype(float))
    wrong = ~((apart <= 1e-9 * np.abs(theirs.astype(float)) + atol) | (np.isnan(got) & np.isnan(theirs.astype(float))))
    assert not wrong.any(), f"{key}: {got[wrong][:3]} is not {theirs[wrong][:3]} in {wrong.sum()} cases"


def test_what_cannot_be_measured_says_so():
    """A thousand images with a valid pixel that is no depth, or without a valid pixel."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n = int(rng.integers(1, 30))
        (p,), (g,), _ = draw(rng, 1, n)
        (pred, true_m), valid = scattered(rng, p, g)
        wrong, place = rng.choice(RUBBISH[:5]), rng.choice(np.flatnonzero(valid))
        match rng.integers(3):
            case 0:
                pred[place], message = (
                    wrong,
                    f"predicted depth must be finite and > 0 m where valid, got {wrong} at 1 of {n}",
                )
            case 1:
                true_m[place], message = (
                    wrong,
                    f"true depth must be finite and > 0 m where valid, got {wrong} at 1 of {n}",
                )
            case _:
                valid[:], message = False, "no valid pixel to measure"
        with pytest.raises(ValueError) as told:
            image_figures(pred, true_m, valid)
        assert message in str(told.value)
