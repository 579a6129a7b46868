"""Intervals that say how far a mean would move with other scenes, and means by scene.

Images of one scene are alike, so that scenes are drawn, not images: the bootstrap for clustered data (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13; percentile interval). Each sample draws as many
scenes as there are, with replacement, and takes the mean over all images in them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Scenes = Sequence[str] | np.ndarray
_DRAWN_AT_ONCE = 100_000  # scenes; memory does not grow with their number


class Interval(NamedTuple):
    """A mean and the ends of its interval; NaN where there is no value, the ends also where there is one scene."""

    mean: float
    low: float
    high: float


def interval_by_scene(
    values: ArrayLike,
    scenes: Scenes,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of a figure over images, and the bootstrap interval by scene.

    values   one figure for each image, NaN where it is not defined: such an image does not count
    scenes   each image's scene
    weights  of each image, >= 0; by default equal. num_pixels makes a mean over pixels, scene_weights one over scenes
    level    share of the samples within the interval
    samples  how many times scenes are drawn
    seed     equal seeds give equal intervals

    Raises ValueError for lengths that differ, a level not within (0, 1) or no sample.
    """
    values, weights, number = _checked(values, scenes, weights, level, samples)
    if not values.size:
        return Interval(np.nan, np.nan, np.nan)
    sums = np.bincount(number, values * weights)
    counts = np.bincount(number, weights)
    mean = float(sums.sum() / counts.sum())
    if sums.size < 2:
        return Interval(mean, np.nan, np.nan)
    means = np.concatenate(
        [sums_drawn / counts_drawn for sums_drawn, counts_drawn in _draws(sums, counts, samples, seed)]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def paired_interval(
    values_a: ArrayLike,
    values_b: ArrayLike,
    scenes: Scenes,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of a - b of two models on the same images, and its interval; images that lack either figure do not count.

    What the images have in common cancels, so that it is narrower than the difference of two intervals. Arguments and
    errors as interval_by_scene has them.
    """
    a, b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired figures need one length, got {list(a.shape)} and {list(b.shape)}")
    return interval_by_scene(a - b, scenes, weights=weights, level=level, samples=samples, seed=seed)


def mean_interval(intervals: Sequence[Interval]) -> Interval:
    """Of the mean of independent figures, each with an interval of its own (Zou and Donner, Construction of confidence
    limits about effect measures, Statistics in Medicine 27, 2008); NaN ends where one has none.
    """
    mean, low, high = np.array(intervals).T
    below, above = (float(np.sqrt(np.sum((end - mean) ** 2))) / len(mean) for end in (low, high))
    return Interval(float(mean.mean()), float(mean.mean()) - below, float(mean.mean()) + above)


def mean_by_scene(values: ArrayLike, scenes: Scenes) -> dict[str, float]:
    """Mean of a figure over the images of each scene, by name; NaN where no image of it has the figure."""
    values = np.asarray(values, np.float64)
    if values.shape != (len(scenes),):
        raise ValueError(f"every image needs a scene, got {list(values.shape)} figures and {len(scenes)} scenes")
    names, number = np.unique(np.asarray(scenes, dtype=object).astype(str), return_inverse=True)
    present = np.isfinite(values)
    counts = np.bincount(number[present], minlength=names.size)
    sums = np.bincount(number[present], values[present], minlength=names.size)
    means = np.divide(sums, counts, out=np.full(names.size, np.nan), where=counts > 0)
    return dict(zip(names.tolist(), means.tolist(), strict=True))


def scene_weights(scenes: Scenes) -> np.ndarray:
    """Weights with which every scene counts the same: 1 / the number of its images, float64 [images]."""
    _, number, counts = np.unique(np.asarray(scenes, dtype=object).astype(str), return_inverse=True, return_counts=True)
    return 1 / counts[number]


def _checked(
    values: ArrayLike, scenes: Scenes, weights: ArrayLike | None, level: float, samples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Figures, weights and numbers of scenes of the images that count."""
    values = np.asarray(values, np.float64)
    weights = np.ones(values.shape) if weights is None else np.asarray(weights, np.float64)
    if not values.shape == weights.shape == (len(scenes),):
        raise ValueError(
            f"every image needs a scene and a weight, got {list(values.shape)} figures, "
            f"{len(scenes)} scenes and {list(weights.shape)} weights"
        )
    if not 0 < level < 1 or samples < 1:
        raise ValueError(f"level must be within (0, 1) and samples >= 1, got {level} and {samples}")
    counts = np.isfinite(values) & (weights > 0)
    names = np.asarray(scenes, dtype=object).astype(str)[counts]
    return values[counts], weights[counts], np.unique(names, return_inverse=True)[1]


def _draws(sums: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sums and counts of drawn scenes, some samples at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(_DRAWN_AT_ONCE // sums.size, 1)
    for start in range(0, samples, at_once):
        drawn = rng.integers(sums.size, size=(min(at_once, samples - start), sums.size))
        yield sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)
