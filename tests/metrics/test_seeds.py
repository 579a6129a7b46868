"""Intervals over seeds and scenes: what they cover, and how many seeds a question takes."""

import numpy as np
import pytest

from metricgold.metrics import interval_over_seeds, seeds_needed
from metricgold.metrics.seeds import t_quantile


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (1e4, 1.960)])
def test_quantiles_are_those_of_the_tables(freedom, expected):
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=2e-3)


def draws(rng, seeds, scenes, mean, of_seeds, of_scenes, rest):
    return (
        mean
        + rng.normal(0, of_seeds, (seeds, 1))
        + rng.normal(0, of_scenes, (1, scenes))
        + rng.normal(0, rest, (seeds, scenes))
    )


@pytest.mark.parametrize("spread", [(0.0, 0.02, 0.01), (0.02, 0.02, 0.01), (0.02, 0.0, 0.005), (0.0, 0.0, 0.02)])
def test_it_holds_the_mean_in_about_95_of_100_repetitions(spread):
    """Also where scenes alone, or seeds alone, make the difference."""
    rng = np.random.default_rng(0)
    held = [
        low <= 0.1 <= high
        for _, low, high in (interval_over_seeds(draws(rng, 3, 20, 0.1, *spread)) for _ in range(400))
    ]
    assert 0.90 < np.mean(held) <= 1


def test_seeds_that_differ_widen_it_and_more_of_them_narrow_it():
    rng = np.random.default_rng(1)

    def width(seeds, of_seeds):
        _, low, high = interval_over_seeds(draws(rng, seeds, 30, 0, of_seeds, 0.01, 0.005))
        return high - low

    assert width(3, 0.05) > 4 * width(3, 0.0) and width(30, 0.05) < width(3, 0.05) / 2


def test_scenes_that_a_seed_lacks_do_not_count_and_one_seed_has_no_ends():
    values = np.array([[0.1, 0.2, np.nan], [0.3, 0.4, 9.0]])
    assert interval_over_seeds(values).mean == pytest.approx(0.25)
    assert np.isnan(interval_over_seeds(values[:1]).low) and np.isnan(interval_over_seeds(values[:, :1]).low)
    assert np.isnan(interval_over_seeds(np.empty((2, 0))).mean)
    assert interval_over_seeds(np.full((3, 4), 0.5)) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"\[seeds, scenes\], got shape \[3\]"):
        interval_over_seeds([1.0, 2.0, 3.0])


def test_the_seeds_that_a_question_takes():
    rng = np.random.default_rng(2)
    values = draws(rng, 3, 60, 0.0, 0.02, 0.01, 0.005) + 0.02
    number = seeds_needed(values)
    assert number is not None and 3 < number < 40
    assert seeds_needed(values - values.mean()) is None  # nothing to be parted from 0
    assert seeds_needed(values[:1]) is None
    assert seeds_needed(values + 1) == 2
