"""Whether a model's metres have one scale: the ratio of predicted to true medians over scenes and focal lengths.

ratio = median(p) / median(g) of each image. A model that is wrong by one factor everywhere has a ratio beside 1 and no
spread; a scale-inconsistent one is good after alignment and spreads. A model that does not see the focal length makes
depth in proportion to what it takes the camera for: ln ratio then falls with ln focal, down to a slope of -1.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metricgold.metrics.intervals import Interval, Scenes, mean_by_scene


class ScaleRatio(NamedTuple):
    """Typical ratio predicted / true, and the standard deviation of ln ratio over scenes (0.1 is 10 %)."""

    ratio: float
    log_spread: float


def scale_ratio(median_pred_m: ArrayLike, median_true_m: ArrayLike, scenes: Scenes) -> ScaleRatio:
    """Median over scenes of each scene's ratio, the geometric mean of its images' ratios, and how it spreads.

    median_pred_m, median_true_m  of each image, metres; NaN does not count
    scenes                        each image's scene

    The spread is NaN for one scene. Raises ValueError for lengths that differ.
    """
    of_scenes = np.array(list(mean_by_scene(_log_ratio(median_pred_m, median_true_m), scenes).values()))
    of_scenes = of_scenes[np.isfinite(of_scenes)]
    if not of_scenes.size:
        return ScaleRatio(np.nan, np.nan)
    spread = of_scenes.std(ddof=1) if of_scenes.size > 1 else np.nan
    return ScaleRatio(float(np.exp(np.median(of_scenes))), float(spread))


def focal_trend(
    median_pred_m: ArrayLike,
    median_true_m: ArrayLike,
    focal_px: ArrayLike,
    scenes: Scenes,
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Slope of ln(predicted / true median) over ln focal length by least squares over images, with its interval.

    median_pred_m, median_true_m  of each image, metres; an image with NaN does not count
    focal_px                      of each image, of images of one size: pixels are no angle
    scenes                        each image's scene; scenes are drawn, as in interval_by_scene

    0 is a model that knows its camera. NaN where all focal lengths are equal (to 0.1 %), the ends also for one scene.
    Raises ValueError for lengths that differ.
    """
    y = _log_ratio(median_pred_m, median_true_m)
    x = np.log(np.asarray(focal_px, np.float64))
    names = np.asarray(scenes, dtype=object).astype(str)
    if not x.shape == y.shape == names.shape:
        raise ValueError(f"every image needs a focal length and a scene, got {x.size} and {names.size} for {y.size}")
    known = np.isfinite(x) & np.isfinite(y)
    x, y, names = x[known], y[known], names[known]
    if not x.size or np.ptp(x) < 1e-3:
        return Interval(np.nan, np.nan, np.nan)
    x, y = x - x.mean(), y - y.mean()
    number = np.unique(names, return_inverse=True)[1]
    sums = np.stack([np.bincount(number, of) for of in (np.ones_like(x), x, y, x * x, x * y)])
    slope = float(_slope(sums.sum(axis=1)))
    if sums.shape[1] < 2:
        return Interval(slope, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    drawn = (sums[:, rng.integers(sums.shape[1], size=sums.shape[1])].sum(axis=1) for _ in range(samples))
    slopes = _slope(np.stack(list(drawn), axis=1))
    tail = (1 - level) / 2
    low, high = np.nanquantile(slopes, [tail, 1 - tail])
    return Interval(slope, float(low), float(high))


def _slope(sums: np.ndarray) -> np.ndarray:
    """From count and sums of x, y, x x and x y, [5, ...]; NaN where x does not vary."""
    count, x, y, xx, xy = sums
    spread = xx - x * x / count
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12 * count, (xy - x * y / count) / spread, np.nan)


def _log_ratio(median_pred_m: ArrayLike, median_true_m: ArrayLike) -> np.ndarray:
    pred_m, true_m = np.asarray(median_pred_m, np.float64), np.asarray(median_true_m, np.float64)
    if pred_m.shape != true_m.shape:
        raise ValueError(f"medians need one length, got {list(pred_m.shape)} and {list(true_m.shape)}")
    return np.log(pred_m) - np.log(true_m)
