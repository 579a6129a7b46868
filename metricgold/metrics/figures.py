"""How far a depth map is from the truth: figures of one image, in float64, each by its formula.

With p the predicted and g the true planar depth in metres, e = ln p - ln g, means over the N valid pixels:

abs_rel          mean |p - g| / g (Eigen et al., arXiv 1406.2283, section 4.2, as ZoeDepth and Marigold have it)
sq_rel           mean (p - g)^2 / g, metres (the same; KITTI's depth benchmark divides by g^2)
rmse_m           sqrt mean (p - g)^2, metres (the same)
rmse_log         sqrt mean e^2, natural logarithm (the same; Metric3D's figure of that name takes log10)
delta1..3        share with max(p/g, g/p) < 1.25, 1.25^2, 1.25^3 (the same)
delta_half       share with max(p/g, g/p) < 1.25^0.5 (vis4d's d05)
mae_m            mean |p - g|, metres
log10            mean |log10 p - log10 g| (Saxena et al., Make3D, 2009)

Three things are called SILog in public code and cannot be compared:

silog            100 sqrt(mean e^2 - (mean e)^2) (KITTI's depth benchmark, ZoeDepth, Marigold)
silog_unidepth   100 sqrt(sum (e - mean e)^2 / (N - 1)) (UniDepth, by torch.std; not defined for one pixel)
silog_dav2       sqrt(mean e^2 - 0.5 (mean e)^2) (Depth Anything V2; not times 100, and half of the bias stays)

Eigen's loss is the square of the last one. One factor on all depths changes neither of the first two, so that `scale`
leaves them out.
"""

from collections.abc import Sequence

import numpy as np

from metricgold.metrics.alignment import ALIGNMENTS, Alignment, Limits, alignments_of, fit_alignments
from metricgold.metrics.calibration import CALIBRATION, CURVE, calibration
from metricgold.metrics.pairs import Block, Kind, Moments, Pairs

LOWER_IS_BETTER = ("abs_rel", "sq_rel", "rmse_m", "mae_m", "rmse_log", "log10", "silog")
HIGHER_IS_BETTER = ("delta1", "delta2", "delta3")
METRICS = LOWER_IS_BETTER + HIGHER_IS_BETTER

FIGURES = (*LOWER_IS_BETTER, "silog_unidepth", "silog_dav2", "delta_half", *HIGHER_IS_BETTER)
THRESHOLDS = {"delta_half": 1.25**0.5, "delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3}
SAME_AT_ANY_SCALE = ("silog", "silog_unidepth")


def depth_metrics(pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The ten figures of one image (Eigen et al., arXiv 1406.2283), keys as in METRICS; no alignment.

    pred_m, true_m  [H, W] (or any one shape), planar depth in metres
    valid           bool, same shape; other pixels are not read

    rmse_m, mae_m and sq_rel are in metres, silog is times 100, all others are plain ratios or logarithms.
    Raises ValueError when the shapes differ, when no pixel is valid, or when a valid value is not finite and > 0.
    """
    pairs = Pairs(pred_m, true_m, valid)
    (figures,) = _figures(pairs, ["metric"], None)
    return {key: figures[key] for key in METRICS}


def image_figures(
    pred: np.ndarray,
    true_m: np.ndarray,
    valid: np.ndarray,
    *,
    uncertainty: np.ndarray | None = None,
    kind: Kind = "depth_m",
    limits_m: Limits = None,
) -> dict[str, float]:
    """All figures of one image in one pass, keys as in FIGURE_KEYS; NaN where a figure is not defined.

    pred         [H, W] (or any one shape): planar depth in metres, or what `kind` says
    true_m       same shape, planar depth in metres
    valid        bool, same shape; other pixels are not read
    uncertainty  same shape: standard deviation of ln depth, as Prediction.uncertainty; without it the figures of
                 CALIBRATION and CURVE are NaN
    kind         depth_m, disparity_per_m, relative_depth or relative_disparity; a relative prediction has the
                 figures of the one alignment that fits it, all others are NaN
    limits_m     nearest and farthest depth in metres to which aligned depth is clipped; 0 and infinity are open

    `<alignment>/<figure>` for ALIGNMENTS and FIGURES, the medians of truth and prediction in metres, num_pixels,
    CALIBRATION and CURVE. Raises ValueError when the shapes differ, when no pixel is valid, when a valid depth is not
    finite and > 0 (finite, for a relative prediction), a valid uncertainty not finite and >= 0, or limits that are no
    range.
    """
    pairs = Pairs(pred, true_m, valid, kind)
    row = dict.fromkeys(FIGURE_KEYS, float("nan")) | {"num_pixels": float(pairs.num_pixels)}
    row |= {"median_true_m": pairs.median_true_m, "median_pred_m": pairs.median_pred_m}
    alignments = alignments_of(kind)
    for alignment, figures in zip(alignments, _figures(pairs, alignments, limits_m), strict=True):
        row |= {key: figures[figure] for figure in FIGURES if (key := f"{alignment}/{figure}") in row}
    if uncertainty is not None and pairs.is_metric:
        row |= calibration(pairs, np.asarray(uncertainty), np.asarray(valid))
    return row


def _keys(alignment: Alignment) -> list[str]:
    left_out = SAME_AT_ANY_SCALE if alignment == "scale" else ()
    return [f"{alignment}/{figure}" for figure in FIGURES if figure not in left_out]


FIGURE_KEYS = (
    "num_pixels",
    "median_true_m",
    "median_pred_m",
    *(key for alignment in ALIGNMENTS for key in _keys(alignment)),
    *CALIBRATION,
    *CURVE,
)


def _figures(pairs: Pairs, alignments: Sequence[Alignment], limits_m: Limits) -> list[dict[str, float]]:
    """FIGURES under each alignment: of one block of pixels all of them, before the next."""
    fits = fit_alignments(pairs, alignments, limits_m)
    blocks = [_block_sums(block, np.stack([fit.depth_m(block) for fit in fits])) for block in pairs.blocks()]
    sums, moments = zip(*blocks, strict=True)
    return _from_sums(np.sum(sums, axis=0), Moments.merged(list(moments)))


def _block_sums(block: Block, pred_m: np.ndarray) -> tuple[np.ndarray, Moments]:
    """Of aligned depth [alignments, N] the sums over one block, the last of them counts, and the moments of e."""
    error_m = pred_m - block.true_m
    size_m = np.abs(error_m)
    ratio = pred_m / block.true_m
    e = np.log(ratio)
    np.maximum(ratio, block.true_m / pred_m, out=ratio)
    sums = [
        np.vecdot(size_m, block.inverse_true),
        np.vecdot(error_m, error_m * block.inverse_true),
        np.vecdot(error_m, error_m),
        size_m.sum(axis=1),
        np.abs(e).sum(axis=1),
        *([np.count_nonzero(row) for row in ratio < threshold] for threshold in THRESHOLDS.values()),
    ]
    return np.array(sums), Moments.of(e, e)


def _from_sums(sums: np.ndarray, e: Moments) -> list[dict[str, float]]:
    """Figures of each alignment from sums [:, alignments] over all pixels."""
    means, mean_e = sums / e.number, e.mean_x
    variance = e.sum_xx / e.number  # about the mean: mean e^2 - (mean e)^2 would lose the digits of a nearly constant e
    unbiased = e.sum_xx / np.where(e.number > 1, e.number - 1, np.nan)
    values = (
        means[0],
        means[1],
        np.sqrt(means[2]),
        means[3],
        np.sqrt(variance + mean_e**2),
        means[4] / np.log(10),
        100 * np.sqrt(variance),
        100 * np.sqrt(unbiased),
        np.sqrt(variance + 0.5 * mean_e**2),
        *means[5:],
    )
    return [dict(zip(FIGURES, column.tolist(), strict=True)) for column in np.transpose(values)]


def mean_metrics(images: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over images of each figure, every image weighing the same. ValueError for no image or unequal keys."""
    if not images:
        raise ValueError("no image to average metrics over")
    keys = images[0].keys()
    if any(image.keys() != keys for image in images):
        raise ValueError(f"every image needs the same metrics {sorted(keys)}")
    return {key: float(np.mean([image[key] for image in images])) for key in keys}
