"""How far a depth map is from the truth. Plain numpy, metres in, no alignment of scale or shift.

Formulas with p the predicted and g the true planar depth in metres, e = ln p - ln g, means over the valid
pixels of one image (Eigen et al., arXiv 1406.2283, section 4.2, as used by ZoeDepth and Marigold):

abs_rel    mean |p - g| / g
sq_rel     mean (p - g)^2 / g, metres
rmse_m     sqrt mean (p - g)^2, metres
mae_m      mean |p - g|, metres
rmse_log   sqrt mean e^2, natural logarithm (Metric3D's figure of that name takes log10)
log10      mean |log10 p - log10 g|
silog      100 sqrt(mean e^2 - (mean e)^2)
delta1..3  share of pixels with max(p/g, g/p) < 1.25, 1.25^2, 1.25^3

Three things are called SILog in public code and cannot be compared: this one (Marigold, ZoeDepth; UniDepth's
100 std(e) with n - 1 is the same but for the count), and Depth-Anything-V2's sqrt(mean e^2 - 0.5 (mean e)^2),
which is not times 100 and keeps half of the bias; Eigen's loss has that half and no root.
"""

from collections.abc import Sequence

import numpy as np

LOWER_IS_BETTER = ("abs_rel", "sq_rel", "rmse_m", "mae_m", "rmse_log", "log10", "silog")
HIGHER_IS_BETTER = ("delta1", "delta2", "delta3")
METRICS = LOWER_IS_BETTER + HIGHER_IS_BETTER


def depth_metrics(pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The ten figures of one image (Eigen et al., arXiv 1406.2283), keys as in METRICS.

    pred_m, true_m  [H, W] (or any one shape), planar depth in metres
    valid           bool, same shape; other pixels are not read

    rmse_m, mae_m and sq_rel are in metres, silog is times 100, all others are plain ratios or logarithms.
    Raises ValueError when the shapes differ, when no pixel is valid, or when a valid value is not finite and > 0.
    """
    p, g = _valid_pairs(pred_m, true_m, valid)
    error_m, e = p - g, np.log(p) - np.log(g)
    ratio = np.maximum(p / g, g / p)
    # Rounding may put the variance a hair below zero when e is constant.
    variance = max(np.mean(e**2) - np.mean(e) ** 2, 0.0)
    figures = {
        "abs_rel": np.mean(np.abs(error_m) / g),
        "sq_rel": np.mean(error_m**2 / g),
        "rmse_m": np.sqrt(np.mean(error_m**2)),
        "mae_m": np.mean(np.abs(error_m)),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(np.abs(e)) / np.log(10),
        "silog": 100 * np.sqrt(variance),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
    }
    return {key: float(value) for key, value in figures.items()}


def mean_metrics(images: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over images of each figure, every image weighing the same. ValueError for no image or unequal keys."""
    if not images:
        raise ValueError("no image to average metrics over")
    keys = images[0].keys()
    if any(image.keys() != keys for image in images):
        raise ValueError(f"every image needs the same metrics {sorted(keys)}")
    return {key: float(np.mean([image[key] for image in images])) for key in keys}


def _valid_pairs(pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true depth of the valid pixels, float64 [N] each, checked."""
    pred_m, true_m, valid = np.asarray(pred_m), np.asarray(true_m), np.asarray(valid)
    if not pred_m.shape == true_m.shape == valid.shape:
        shapes = f"{list(pred_m.shape)}, {list(true_m.shape)}, {list(valid.shape)}"
        raise ValueError(f"prediction, truth and valid mask must have one shape, got {shapes}")
    if valid.dtype != np.bool_:
        raise ValueError(f"valid mask must be bool, got {valid.dtype}")
    if not valid.any():
        raise ValueError("no valid pixel to measure")
    p, g = pred_m[valid].astype(np.float64), true_m[valid].astype(np.float64)
    for name, depth_m in (("predicted", p), ("true", g)):
        wrong = ~(np.isfinite(depth_m) & (depth_m > 0))
        if wrong.any():
            raise ValueError(
                f"{name} depth must be finite and > 0 m where valid, got {depth_m[wrong][0]} "
                f"at {np.count_nonzero(wrong)} of {wrong.size} pixels"
            )
    return p, g
