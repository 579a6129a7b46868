"""Alignments of a prediction to the truth of one image, each named and never mixed.

metric            none: the metres as they are
scale             p median(g) / median(p) (Zhou et al., arXiv 1704.07813, section 4.1)
affine_depth      s p + t with least squares in metres (Ranftl et al., arXiv 1907.01341; Marigold's "least_square")
affine_disparity  1 / (s / p + t) with least squares in 1 / metres (MiDaS; MoGe's "disparity_affine_invariant")
affine_log_depth  exp(s ln p + t) with least squares in ln metres

Each fit is over the image's valid pixels. A fit in metres or in disparity may leave the positive numbers. Aligned
disparity is never below 1 / the farthest true depth (MoGe clamps so), and, as its mirror image, depth aligned in metres
never below the nearest true depth. With `limits_m` aligned depth is clipped to these two instead, whatever the
alignment (Marigold clips to the benchmark's range). Where the prediction is constant, s is 0.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np

from metricgold.metrics.pairs import Kind, Pairs, sum_of_products

Alignment = Literal["metric", "scale", "affine_depth", "affine_disparity", "affine_log_depth"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
ALIGNMENT_OF_RELATIVE: dict[Kind, Alignment] = {
    "relative_depth": "affine_depth",
    "relative_disparity": "affine_disparity",
}
Limits = tuple[float, float] | None


class Line(NamedTuple):
    """y = mean_y + scale (x - mean_x), which loses less in rounding than scale and shift."""

    scale: float
    mean_x: float
    mean_y: float

    def of(self, x: np.ndarray) -> np.ndarray:
        """Y of x, any shape."""
        return (x - self.mean_x) * self.scale + self.mean_y


def least_squares(x: np.ndarray, y: np.ndarray) -> Line:
    """The line that minimises the sum of (mean_y + scale (x - mean_x) - y)^2, from sums; float64 [N] each."""
    mean_x, mean_y = float(x.mean()), float(y.mean())
    from_mean = x - mean_x
    spread = sum_of_products(from_mean, from_mean)
    if spread <= x.size * (8 * np.finfo(float).eps * mean_x) ** 2:  # nothing but rounding
        return Line(0.0, mean_x, mean_y)
    return Line(sum_of_products(from_mean, y - mean_y) / spread, mean_x, mean_y)


def alignments_of(kind: Kind) -> tuple[Alignment, ...]:
    """All of ALIGNMENTS for metres or disparity in 1 / metres; only the affine one that fits for the relative kinds."""
    return (ALIGNMENT_OF_RELATIVE[kind],) if kind in ALIGNMENT_OF_RELATIVE else ALIGNMENTS


def align(
    pred: np.ndarray,
    true_m: np.ndarray,
    valid: np.ndarray,
    alignment: Alignment,
    *,
    kind: Kind = "depth_m",
    limits_m: Limits = None,
) -> np.ndarray:
    """A whole prediction aligned to the truth of the valid pixels, float64 metres, the prediction's shape.

    pred       [H, W] (or any one shape): planar depth in metres, or what `kind` says
    true_m     same shape, planar depth in metres
    valid      bool, same shape; pixels that count in the fit
    alignment  one of ALIGNMENTS; the module's docstring has the formulas and what becomes of depth <= 0
    kind       depth_m, disparity_per_m, relative_depth or relative_disparity
    limits_m   nearest and farthest depth of the result, metres

    Raises ValueError as image_figures does, and for an alignment that is unknown or does not fit the kind.
    """
    if alignment not in alignments_of(kind):
        raise ValueError(f"alignment of {kind} is {alignment!r}, expected one of {', '.join(alignments_of(kind))}")
    pairs = Pairs(pred, true_m, valid, kind)
    whole = np.asarray(pred, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # pixels that are not valid may hold anything
        return aligned(pairs, alignment, limits_m, 1 / whole if kind == "disparity_per_m" else whole)


def aligned(pairs: Pairs, alignment: Alignment, limits_m: Limits, whole: np.ndarray | None = None) -> np.ndarray:
    """Float64 metres of the valid pixels [N], or of a whole prediction in the unit of pairs.pred."""
    depth_m = _ALIGNED[alignment](pairs, pairs.pred if whole is None else whole, limits_m)
    return depth_m if limits_m is None else np.clip(depth_m, *limits_m)


def _metric(pairs: Pairs, pred: np.ndarray, limits_m: Limits) -> np.ndarray:
    return pred


def _scale(pairs: Pairs, pred: np.ndarray, limits_m: Limits) -> np.ndarray:
    return pred * (pairs.median_true_m / pairs.median_pred_m)


def _affine_depth(pairs: Pairs, pred: np.ndarray, limits_m: Limits) -> np.ndarray:
    depth_m = least_squares(pairs.pred, pairs.true_m).of(pred)
    return depth_m if limits_m else np.maximum(depth_m, pairs.true_m.min())


def _affine_disparity(pairs: Pairs, pred: np.ndarray, limits_m: Limits) -> np.ndarray:
    is_disparity = pairs.kind == "relative_disparity"
    x = pairs.pred if is_disparity else pairs.inverse_pred
    at = x if pred is pairs.pred else pred if is_disparity else 1 / pred
    farthest_m = limits_m[1] if limits_m else pairs.true_m.max()
    return 1 / np.maximum(least_squares(x, pairs.inverse_true).of(at), 1 / farthest_m)


def _affine_log_depth(pairs: Pairs, pred: np.ndarray, limits_m: Limits) -> np.ndarray:
    line = least_squares(pairs.log_pred, pairs.log_true)
    return np.exp(line.of(pairs.log_pred if pred is pairs.pred else np.log(pred)))


_ALIGNED: dict[Alignment, Callable[[Pairs, np.ndarray, Limits], np.ndarray]] = {
    "metric": _metric,
    "scale": _scale,
    "affine_depth": _affine_depth,
    "affine_disparity": _affine_disparity,
    "affine_log_depth": _affine_log_depth,
}
