"""Intervals that say how far a mean would move with other scenes and with other seeds of training.

Every seed measures the same scenes, so that both are crossed random effects (Searle, Casella and McCulloch, Variance
Components, 1992, chapter 4). The variance of the mean over all is (MS_seeds + MS_scenes - MS_rest) / number of values,
a t distribution gives the ends, and Satterthwaite (An Approximate Distribution of Estimates of Variance Components,
Biometrics Bulletin 2, 1946) its degrees of freedom. An effect that the values do not show, its mean square below that
of the rest, is left out. With three seeds that differ the interval is wide, as little is known of seeds then.
"""

from math import pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metricgold.metrics.intervals import Interval

MAX_SEEDS = 100


class _Spread(NamedTuple):
    """Mean squares of values [seeds, scenes]."""

    seeds: float
    scenes: float
    rest: float
    num_seeds: int
    num_scenes: int

    def half_width(self, level: float) -> float:
        """Of the interval of the mean."""
        num_rest = (self.num_seeds - 1) * (self.num_scenes - 1)
        effects = [(self.seeds, self.num_seeds - 1), (self.scenes, self.num_scenes - 1)]
        shown = [(square, freedom) for square, freedom in effects if square > self.rest]
        total = sum(square for square, _ in shown) - (len(shown) - 1) * self.rest
        if not total > 0:
            return 0.0
        parts = shown if len(shown) == 1 else [*shown, (self.rest, num_rest)]
        freedom = total**2 / sum(square**2 / its_freedom for square, its_freedom in parts)
        return t_quantile((1 + level) / 2, freedom) * sqrt(total / (self.num_seeds * self.num_scenes))

    def with_seeds(self, number: int) -> "_Spread":
        """What to expect of another number of seeds on the same scenes."""
        of_seeds = max(self.seeds - self.rest, 0.0) / self.num_scenes
        of_scenes = max(self.scenes - self.rest, 0.0) / self.num_seeds
        squares = self.num_scenes * of_seeds + self.rest, number * of_scenes + self.rest
        return _Spread(*squares, self.rest, number, self.num_scenes)


def interval_over_seeds(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of a figure, and its interval for other scenes and other seeds.

    values  [seeds, scenes]; of a - b for two models that are paired by seed and scene. A scene that is NaN for one seed
            does not count
    level   share of repetitions in which the interval would hold the mean

    The ends are NaN with one seed or one scene. Raises ValueError for another shape.
    """
    whole = _whole_scenes(values)
    if not whole.size:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(whole.mean())
    if min(whole.shape) < 2:
        return Interval(mean, np.nan, np.nan)
    half = _spread(whole).half_width(level)
    return Interval(mean, mean - half, mean + half)


def seeds_needed(values: ArrayLike, *, level: float = 0.95) -> int | None:
    """How many seeds would part the mean of values [seeds, scenes] from 0, if it and its spread stay as they are.

    None where not even MAX_SEEDS would on these scenes, and with one seed or one scene. Raises as interval_over_seeds.
    """
    whole = _whole_scenes(values)
    if not whole.size or min(whole.shape) < 2:
        return None
    mean, spread = abs(float(whole.mean())), _spread(whole)
    numbers = range(2, MAX_SEEDS + 1)
    return next((number for number in numbers if spread.with_seeds(number).half_width(level) < mean), None)


def t_quantile(share: float, freedom: float) -> float:
    """The value below which a share of Student's t distribution lies; to four digits.

    With t = sqrt(freedom) tan(angle) the density is cos(angle) ** (freedom - 1), on a finite range.
    """
    angles = np.linspace(-pi / 2, pi / 2, 20_001)
    middles = (angles[1:] + angles[:-1]) / 2
    below = np.concatenate([[0.0], np.cumsum(np.cos(middles) ** (freedom - 1))])
    return float(sqrt(freedom) * np.tan(np.interp(share, below / below[-1], angles)))


def _whole_scenes(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 2:
        raise ValueError(f"expected figures [seeds, scenes], got shape {list(array.shape)}")
    whole: np.ndarray = array[:, np.isfinite(array).all(axis=0)]
    return whole


def _spread(values: np.ndarray) -> _Spread:
    num_seeds, num_scenes = values.shape
    by_seed, by_scene, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    rest = ((values - by_seed[:, None] - by_scene + mean) ** 2).sum() / ((num_seeds - 1) * (num_scenes - 1))
    of_seeds, of_scenes = num_scenes * by_seed.var(ddof=1), num_seeds * by_scene.var(ddof=1)
    return _Spread(float(of_seeds), float(of_scenes), float(rest), num_seeds, num_scenes)
