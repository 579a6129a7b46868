"""Errors by range of true depth, as sums: those of many images are added up, and then divided."""

from collections.abc import Sequence

import numpy as np

from metricgold.metrics.pairs import Pairs

SUMS = ("num_pixels", "abs_rel", "squared_m", "abs_log", "log", "squared_log", "delta1")


def range_sums(
    pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray, edges_m: Sequence[float]
) -> dict[str, np.ndarray]:
    """Sums over the pixels of one image within each range edges_m[k] <= truth < edges_m[k + 1].

    pred_m, true_m  [H, W] (or any one shape), planar depth in metres
    valid           bool, same shape; other pixels are not read
    edges_m         rising, metres; pixels outside all ranges do not count

    Keys as in SUMS, float64 [len(edges_m) - 1] each; with p, g and e as in figures: the count, the sums of |p - g| / g,
    (p - g)^2, |e|, e and e^2, and how many are within 1.25. Raises ValueError as depth_metrics does, and for edges that
    do not rise.
    """
    edges = np.asarray(edges_m, np.float64)
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges of ranges must be two or more numbers that rise, got {list(edges_m)}")
    sums = np.zeros((len(SUMS), edges.size - 1))
    for block in Pairs(pred_m, true_m, valid).blocks():
        p, g = block.pred, block.true_m
        error_m, e = p - g, block.log_pred - block.log_true
        hits = np.maximum(p / g, g / p) < 1.25
        figures = [np.ones_like(g), np.abs(error_m) / g, error_m * error_m, np.abs(e), e, e * e, hits]
        within = (edges[:-1, None] <= g) & (g < edges[1:, None])
        sums += np.array(figures) @ within.T.astype(np.float64)
    return dict(zip(SUMS, sums, strict=True))


def range_figures(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """abs_rel, rmse_m, rmse_log, log10, silog and delta1 over all pixels of each range; NaN for a range without any.

    sums  of range_sums, added up over images
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = {key: sums[key] / sums["num_pixels"] for key in SUMS}
    return {
        "abs_rel": mean["abs_rel"],
        "rmse_m": np.sqrt(mean["squared_m"]),
        "rmse_log": np.sqrt(mean["squared_log"]),
        "log10": mean["abs_log"] / np.log(10),
        "silog": 100 * np.sqrt(np.maximum(mean["squared_log"] - mean["log"] ** 2, 0)),
        "delta1": mean["delta1"],
    }
