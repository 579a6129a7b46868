"""Which frames a step trains on: a stateless, seeded mixture of latent caches.

Sample k of step s is a function of (seed, s, k) alone, so there is nothing to restore after a kill, and
neither the number of workers nor that of devices changes the samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One sample of a batch."""

    dataset: int  # position in the mixture
    frame: int  # position in that data set's cache
    flip: bool  # mirrored left to right


class Mixture:
    """Samples data sets by weight and frames within each uniformly, with replacement.

    sizes: frames in each cache; weights: share of samples of each, any positive scale; curriculum: (until_step,
    weights) by rising until_step, the weights of the steps before it, where 0 leaves a cache out.
    Raises ValueError for an empty cache or a weight that is not positive.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        *,
        flip: bool,
        curriculum: Sequence[tuple[int, Sequence[float]]] = (),
    ) -> None:
        if len(sizes) != len(weights) or min(sizes, default=0) < 1 or min(weights, default=0) <= 0:
            raise ValueError(f"a mixture needs frames and a positive weight in each cache, got {sizes=}, {weights=}")
        if any(len(phase) != len(sizes) or min(phase) < 0 or sum(phase) <= 0 for _, phase in curriculum):
            raise ValueError(f"a curriculum needs a weight for each of {len(sizes)} caches, got {curriculum=}")
        self._sizes = np.asarray(sizes)
        self._phases = [(until, _shares(phase)) for until, phase in curriculum]
        self._shares = _shares(weights)
        self._seed, self._flip = seed, flip

    def shares(self, step: int) -> np.ndarray:
        """Share of samples of each cache at a step."""
        return next((shares for until, shares in self._phases if step < until), self._shares)

    def draw(self, step: int, num_samples: int) -> list[Draw]:
        """The samples of one optimiser step, in order."""
        rng = np.random.default_rng([self._seed, step])
        datasets = rng.choice(len(self._sizes), size=num_samples, p=self.shares(step))
        frames = rng.integers(self._sizes[datasets])
        flips = (rng.random(num_samples) < 0.5) & self._flip
        return [Draw(int(d), int(f), bool(m)) for d, f, m in zip(datasets, frames, flips, strict=True)]


def _shares(weights: Sequence[float]) -> np.ndarray:
    """Weights as shares of 1."""
    return np.asarray(weights, dtype=np.float64) / np.sum(weights)
