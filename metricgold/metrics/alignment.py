"""Alignments of a prediction to the truth of one image, each named and never mixed.

metric            none: the metres as they are
scale             p median(g) / median(p) (Zhou et al., arXiv 1704.07813, section 4.1)
affine_depth      s p + t with least squares in metres (Ranftl et al., arXiv 1907.01341; Marigold's "least_square")
affine_disparity  1 / (s / p + t) with least squares in 1 / metres (MiDaS; MoGe's "disparity_affine_invariant")
affine_log_depth  exp(s ln p + t) with least squares in ln metres

Each fit is over the image's valid pixels. A fit in metres or in disparity may leave the positive numbers. Aligned
disparity is never below 1 / the farthest true depth (MoGe clamps so), and, as its mirror image, depth aligned in metres
never below the nearest true depth. With `limits_m` aligned depth is clipped to these two instead, whatever the
alignment (Marigold clips to the benchmark's range); 0 or infinity leaves its side to the rule before. Where the
prediction is constant, s is 0.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple, get_args

import numpy as np

from metricgold.metrics.pairs import Block, Kind, Moments, Pairs

Alignment = Literal["metric", "scale", "affine_depth", "affine_disparity", "affine_log_depth"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
ALIGNMENT_OF_RELATIVE: dict[Kind, Alignment] = {
    "relative_depth": "affine_depth",
    "relative_disparity": "affine_disparity",
}
Limits = tuple[float, float] | None


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
    limits_m   nearest and farthest depth of the result, metres; 0 and infinity leave a side open

    Raises ValueError as image_figures does, and for an alignment that is unknown or does not fit the kind.
    """
    if alignment not in alignments_of(kind):
        raise ValueError(f"alignment of {kind} is {alignment!r}, expected one of {', '.join(alignments_of(kind))}")
    (fit,) = fit_alignments(Pairs(pred, true_m, valid, kind), [alignment], limits_m)
    whole = np.asarray(pred, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # pixels that are not valid may hold anything
        return fit.depth_m(Block(1 / whole if kind == "disparity_per_m" else whole, whole))


class Line(NamedTuple):
    """y = mean_y + scale (x - mean_x), which loses less in rounding than scale and shift."""

    scale: float
    mean_x: float
    mean_y: float

    @classmethod
    def of(cls, moments: Moments) -> "Line":
        """By least squares."""
        number, mean_x, mean_y, sum_xx, sum_xy = map(float, moments)
        is_rounding = sum_xx <= number * (8 * np.finfo(float).eps * mean_x) ** 2
        return cls(0.0 if is_rounding else sum_xy / sum_xx, mean_x, mean_y)

    def at(self, x: np.ndarray) -> np.ndarray:
        """Y of x, any shape."""
        y = x - self.mean_x
        y *= self.scale
        y += self.mean_y
        return y


class Proportion(NamedTuple):
    """y = x true / pred, in this order: of depths in round numbers, such as millimetres, the product is exact."""

    true_m: float
    pred_m: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """Y of x, any shape."""
        return x * self.true_m / self.pred_m


class Space(NamedTuple):
    """Where a line is fitted: the prediction's and the truth's values there, and the way back to metres."""

    x: Callable[[Block], np.ndarray]
    y: Callable[[Block], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


_DEPTH = Space(attrgetter("pred"), attrgetter("true_m"), np.asarray)
_DISPARITY = Space(attrgetter("inverse_pred"), attrgetter("inverse_true"), np.reciprocal)
_LOG_DEPTH = Space(attrgetter("log_pred"), attrgetter("log_true"), np.exp)
SPACES = {"affine_depth": _DEPTH, "affine_disparity": _DISPARITY, "affine_log_depth": _LOG_DEPTH}


class Fit(NamedTuple):
    """One alignment of one image; `least` bounds the line's values, in their own space."""

    space: Space
    line: Line | Proportion | None
    least: float
    limits_m: Limits

    def depth_m(self, block: Block) -> np.ndarray:
        """Aligned depth in metres; the prediction itself where nothing changes it."""
        if self.line is None:
            depth_m = block.pred
        else:
            depth_m = self.space.back(np.maximum(self.line.at(self.space.x(block)), self.least))
        return depth_m if self.limits_m is None else np.clip(depth_m, *self.limits_m)


def fit_alignments(pairs: Pairs, alignments: Sequence[Alignment], limits_m: Limits) -> list[Fit]:
    """The fit of each alignment, all of them from one pass over the image."""
    spaces: dict[str, Space] = {name: SPACES.get(name, _DEPTH) for name in alignments}
    if pairs.kind == "relative_disparity":
        spaces = {"affine_disparity": _DISPARITY._replace(x=_DEPTH.x)}
    moments: dict[str, list[Moments]] = {name: [] for name in alignments if name in SPACES}
    for block in pairs.blocks() if moments else ():
        for name, parts in moments.items():
            parts.append(Moments.of(spaces[name].x(block), spaces[name].y(block)))
    lines: dict[str, Line | Proportion] = {name: Line.of(Moments.merged(parts)) for name, parts in moments.items()}
    if "scale" in alignments:
        lines["scale"] = Proportion(pairs.median_true_m, pairs.median_pred_m)
    nearest_m, farthest_m = limits_m or (0.0, np.inf)
    if not 0 <= nearest_m < farthest_m:
        raise ValueError(f"limits of aligned depth must be 0 <= nearest < farthest m, got {nearest_m} and {farthest_m}")
    nearest_m = nearest_m or float(pairs.true_m.min())
    farthest_m = farthest_m if farthest_m < np.inf else float(pairs.true_m.max())
    least = {"affine_depth": nearest_m, "affine_disparity": 1 / farthest_m}
    return [Fit(spaces[name], lines.get(name), least.get(name, -np.inf), limits_m) for name in alignments]
