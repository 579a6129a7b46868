"""The same predictions measured as MoGe's and Marigold's evaluation scripts do, and sharpness as Depth Pro's code."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from metricgold.metrics import boundary_f1, boundary_recall, image_figures

SEEDS = st.integers(0, 2**32 - 1)


def an_image(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true_m = np.exp(rng.uniform(np.log(0.8), np.log(9.5), (20, 30)))
    pred = 1.3 * true_m ** rng.uniform(0.7, 1.2) * np.exp(rng.normal(0, 0.3, true_m.shape))
    return pred, true_m, rng.random(true_m.shape) < 0.8


def marigold_figures(depth, g, valid):
    """Over the whole image, with 0 where it is not valid, as script/depth/eval.py calls src/util/metric.py."""
    n = valid.sum()

    def average(x):
        return np.where(valid, x, 0).sum() / n

    e = np.log(depth) - np.log(g)
    larger = np.maximum(depth / g, g / depth)
    return {
        "abs_rel": average(abs(depth - g) / g),
        "sq_rel": average(abs(depth - g) ** 2 / g),
        "rmse_m": np.sqrt(average((depth - g) ** 2)),
        "rmse_log": np.sqrt(average(e**2)),
        "log10": abs(np.log10(depth[valid]) - np.log10(g[valid])).mean(),
        "delta1": average(larger < 1.25),
        "delta2": average(larger < 1.25**2),
        "delta3": average(larger < 1.25**3),
        "silog": 100 * np.sqrt(average(e**2) - average(e) ** 2),
    }


def fitted(x, y, valid):
    s, t = np.linalg.lstsq(np.stack([x[valid], np.ones(valid.sum())], axis=1), y[valid], rcond=None)[0]
    return s * x + t


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_marigold(seed):
    """Its protocol of NYU: fitted depth clipped to 1e-3 to 10 m; for disparity, fitted disparity from 1e-3 on."""
    pred, g, valid = an_image(seed)
    limits_m = (1e-3, 10.0)
    depth = np.clip(np.clip(fitted(pred, g, valid), *limits_m), 1e-6, None)
    ours = image_figures(pred, g, valid, limits_m=limits_m)
    for figure, theirs in marigold_figures(depth, g, valid).items():
        assert ours[f"affine_depth/{figure}"] == pytest.approx(theirs, rel=1e-6)

    disparity = 1 / pred - 0.05
    positive = valid & (disparity > 0)
    depth = np.clip(1 / np.clip(fitted(disparity, 1 / g, positive), 1e-3, None), *limits_m)
    ours = image_figures(disparity, g, positive, kind="relative_disparity", limits_m=limits_m)
    for figure, theirs in marigold_figures(depth, g, positive).items():
        assert ours[f"affine_disparity/{figure}"] == pytest.approx(theirs, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_moge(seed):
    """Metric depth, and disparity fitted by least squares and clamped to the farthest truth; it divides by g + 1e-6."""
    pred, g, valid = an_image(seed)
    ours = image_figures(pred, g, valid)
    disparity = fitted(1 / pred, 1 / g, valid)
    for alignment, depth in {
        "metric": pred,
        "affine_disparity": 1 / np.clip(disparity, 1 / g[valid].max(), None),
    }.items():
        p, t = depth[valid], g[valid]
        assert ours[f"{alignment}/abs_rel"] == pytest.approx((abs(p - t) / (t + 1e-6)).mean(), abs=1e-6)
        assert ours[f"{alignment}/delta1"] == pytest.approx((np.maximum(t / p, p / t) < 1.25).mean(), abs=1e-12)


@given(SEEDS)
def test_moge_scales_to_the_least_abs_rel_and_we_to_the_median(seed):
    """Its scale is the weighted median of g / p with weights p / g, which no other scale beats in AbsRel."""
    pred, g, valid = an_image(seed)
    p, t = pred[valid], g[valid]
    order = np.argsort(t / p)
    weights = np.cumsum((p / t)[order])
    theirs = (t / p)[order][np.searchsorted(weights, weights[-1] / 2)]
    assert (abs(theirs * p - t) / t).mean() <= image_figures(pred, g, valid)["scale/abs_rel"] + 1e-12


# Depth Pro


def contours(d, t):
    return [d[:, :-1] / d[:, 1:] > t, d[:-1] / d[1:] > t, d[:, 1:] / d[:, :-1] > t, d[1:] / d[:-1] > t]


def depth_pro_f1(pred, g):
    inverse = [1 / np.maximum(x, 1e-6) for x in (pred, g)]
    thresholds = np.linspace(1.05, 1.25, 10)
    scores = []
    for t in thresholds:
        found, true = (contours(d, t) for d in inverse)
        hits = [np.sum(a & b) for a, b in zip(found, true, strict=True)]
        recall = np.mean([hit / max(np.sum(b), 1) for hit, b in zip(hits, true, strict=True)])
        precision = np.mean([hit / max(np.sum(a), 1) for hit, a in zip(hits, found, strict=True)])
        scores.append(2 * recall * precision / (recall + precision) if recall + precision else 0)
    return np.sum(scores * thresholds / thresholds.sum())


def thinned(ratio, t):
    """Row by row, pixel by pixel: of neighbours above t the greatest, the first of equals."""
    kept = np.zeros(ratio.shape, bool)
    for row, values in enumerate(ratio):
        run: list[int] = []
        for column in range(len(values) + 1):
            if column < len(values) and values[column] > t:
                run.append(column)
            elif run:
                kept[row, max(run, key=lambda at: (values[at], -at))] = True
                run = []
    return kept


def depth_pro_recall(pred, matte):
    d = 1 / np.maximum(pred, 1e-6)
    mask = matte > 0.1
    thresholds = np.linspace(1.05, 1.25, 10)
    outline = [mask[:, :-1] & ~mask[:, 1:], mask[:-1] & ~mask[1:], mask[:, 1:] & ~mask[:, :-1], mask[1:] & ~mask[:-1]]
    scores = []
    for t in thresholds:
        found = [
            thinned(d[:, :-1] / d[:, 1:], t),
            thinned((d[:-1] / d[1:]).T, t).T,
            thinned(d[:, 1:] / d[:, :-1], t),
            thinned((d[1:] / d[:-1]).T, t).T,
        ]
        scores.append(np.mean([np.sum(a & b) / max(np.sum(b), 1) for a, b in zip(found, outline, strict=True)]))
    return np.sum(scores * thresholds / thresholds.sum())


def blocks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two depth maps with steps that are partly the same."""
    rng = np.random.default_rng(seed)
    true_m = np.kron(rng.uniform(1, 3, (5, 6)), np.ones((4, 4))) * np.exp(rng.normal(0, 0.01, (20, 24)))
    return true_m * np.exp(rng.normal(0, 0.05, true_m.shape)), true_m


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_boundary_f1_is_depth_pros(seed):
    pred, g = blocks(seed)
    assert boundary_f1(pred, g, np.ones(g.shape, bool)) == pytest.approx(depth_pro_f1(pred, g), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_boundary_recall_is_depth_pros(seed):
    pred, g = blocks(seed)
    alpha = np.where(g < 2, np.random.default_rng(seed).random(g.shape), 0.0)
    assert boundary_recall(pred, alpha) == pytest.approx(depth_pro_recall(pred, alpha), rel=1e-9)
    assert boundary_recall(pred, alpha > 0.1) == boundary_recall(pred, alpha)
