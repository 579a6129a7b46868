"""Sharpness of occluding contours (Bochkovskii et al., Depth Pro, arXiv 2410.02073, section 3.2).

Of two neighbouring pixels the nearer one occludes the other where the ratio of their depths is above t. Contours are
counted in each of four directions (the occluder left, right, above or below); precision and recall are the means over
directions of |both| / |predicted| and |both| / |true|. F1 = 2 P R / (P + R) is averaged over ten thresholds from 1.05
to 1.25 with weights in proportion to t. A ratio of depths is one of inverse depths the other way round, and no scale
changes it; a shift does. A direction without a contour counts as 0, so that even the truth has 1 only where all four
have one.

Where there is a valid mask both pixels must be valid, as in MoGe's form of the figure. An image whose truth has no
contour has no figure (NaN), where Depth Pro's code has 0.
"""

from collections.abc import Iterator

import numpy as np

from metricgold.metrics.pairs import Pairs

THRESHOLDS = np.linspace(1.05, 1.25, 10)
WEIGHTS = THRESHOLDS / THRESHOLDS.sum()
MATTE_ABOVE = 0.1
_LEAST_DEPTH_M = 1e-6


def boundary_f1(pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> float:
    """F1 of occluding contours, 0 to 1, higher is better; NaN where the truth has none.

    pred_m, true_m  [H, W], planar depth in metres
    valid           bool [H, W]; pairs of pixels count where both are valid

    Raises ValueError when the shapes differ, no pixel is valid, or a valid depth is not finite and > 0.
    """
    pred_m, true_m, valid = np.asarray(pred_m, np.float64), np.asarray(true_m, np.float64), np.asarray(valid)
    _check(pred_m, true_m, valid)
    directions = [
        _counts(pred[both], true[both])
        for pred, true, both in zip(_ratios(pred_m), _ratios(true_m), _pairs_of(valid), strict=True)
    ]
    hits, predicted, true = np.transpose(directions, (1, 2, 0))  # [thresholds, 4] each
    if not true[0].any():
        return float("nan")
    precision = (hits / np.maximum(predicted, 1)).mean(axis=1)
    recall = (hits / np.maximum(true, 1)).mean(axis=1)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return float(WEIGHTS @ f1)


def boundary_recall(pred_m: np.ndarray, matte: np.ndarray) -> float:
    """Recall of the outline of a matted object, 0 to 1, higher is better; NaN where the matte has no outline.

    pred_m  [H, W], planar depth in metres; below 1e-6 it counts as 1e-6
    matte   bool [H, W], or alpha of 0 to 1, of which more than 0.1 is the object

    For data without true depth: the object occludes what is beside it. Of each run of predicted contours across the
    outline only the strongest counts, so that a blurred edge finds one pixel. Raises ValueError when the shapes differ
    or depth is not finite.
    """
    pred_m, matte = np.asarray(pred_m, np.float64), np.asarray(matte)
    if pred_m.ndim != 2 or pred_m.shape != matte.shape:
        raise ValueError(f"depth and matte must be [H, W] of one size, got {list(pred_m.shape)}, {list(matte.shape)}")
    if not np.isfinite(pred_m).all():
        raise ValueError(f"depth must be finite, got {pred_m[~np.isfinite(pred_m)][0]}")
    is_object = matte if matte.dtype == np.bool_ else matte > MATTE_ABOVE
    depth_m = np.maximum(pred_m, _LEAST_DEPTH_M)
    totals, recalls = [], []
    for number, (ratio, (first, second)) in enumerate(zip(_ratios(depth_m), _neighbours(is_object), strict=True)):
        outline = (first & ~second) if number % 2 == 0 else (second & ~first)
        if number >= 2:  # upper and lower: a run is along a column
            ratio, outline = ratio.T, outline.T
        total = int(np.count_nonzero(outline))
        totals.append(total)
        recalls.append([np.count_nonzero(_strongest(ratio, t) & outline) / max(total, 1) for t in THRESHOLDS])
    return float(WEIGHTS @ np.mean(recalls, axis=0)) if any(totals) else float("nan")


def _neighbours(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Left and right of each pair of pixels, twice, then upper and lower, twice: one for each occluder."""
    for _ in range(2):
        yield values[:, :-1], values[:, 1:]
    for _ in range(2):
        yield values[:-1], values[1:]


def _ratios(depth_m: np.ndarray) -> Iterator[np.ndarray]:
    """How much farther the other pixel is, for an occluder on the left, on the right, above and below."""
    with np.errstate(divide="ignore", invalid="ignore"):  # invalid pixels may hold anything
        for number, (first, second) in enumerate(_neighbours(depth_m)):
            yield second / first if number % 2 == 0 else first / second


def _pairs_of(valid: np.ndarray) -> Iterator[np.ndarray]:
    for first, second in _neighbours(valid):
        yield first & second


def _counts(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Contours of both, of the prediction and of the truth at each threshold, [3, thresholds]; ratios [N] each."""
    ratios = (np.minimum(pred, true), pred, true)
    above = [np.sort(ratio[ratio > THRESHOLDS[0]]) for ratio in ratios]
    return np.array([ratio.size - np.searchsorted(ratio, THRESHOLDS, side="right") for ratio in above])


def _strongest(ratio: np.ndarray, threshold: float) -> np.ndarray:
    """Of each run along a row above the threshold the greatest, the first of equals; bool of the ratio's shape."""
    strongest = np.zeros(ratio.shape, bool)
    where = np.flatnonzero(ratio > threshold)
    if where.size:
        values = ratio.ravel()[where]
        begins = (np.diff(where, prepend=-2) > 1) | (where % ratio.shape[1] == 0)
        run = np.cumsum(begins) - 1
        greatest = np.flatnonzero(values == np.maximum.reduceat(values, np.flatnonzero(begins))[run])
        _, first = np.unique(run[greatest], return_index=True)
        strongest.ravel()[where[greatest[first]]] = True
    return strongest


def _check(pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> None:
    if pred_m.ndim != 2:
        raise ValueError(f"prediction must be [H, W], got {list(pred_m.shape)}")
    Pairs(pred_m, true_m, valid)
