from collections import Counter

import pytest

from metricgold.train.mixture import Mixture


def test_weights_are_shares_of_samples():
    draws = Mixture([10, 1000, 50], [0.5, 0.3, 0.2], seed=0, flip=True).draw(step=0, num_samples=20_000)
    counts = Counter(draw.dataset for draw in draws)
    for dataset, share in enumerate([0.5, 0.3, 0.2]):
        assert counts[dataset] / 20_000 == pytest.approx(share, abs=0.02)
    assert sum(draw.flip for draw in draws) / 20_000 == pytest.approx(0.5, abs=0.02)


def test_frames_lie_inside_their_cache_and_all_are_reached():
    draws = [draw for step in range(50) for draw in Mixture([3, 7], [1, 1], seed=1, flip=False).draw(step, 16)]
    assert {draw.frame for draw in draws if draw.dataset == 0} == set(range(3))
    assert {draw.frame for draw in draws if draw.dataset == 1} == set(range(7))
    assert not any(draw.flip for draw in draws)


def test_a_step_is_a_function_of_seed_and_step_alone():
    mixture = Mixture([100, 100], [1, 2], seed=5, flip=True)
    later = mixture.draw(7, 8)
    mixture.draw(3, 8)
    assert mixture.draw(7, 8) == later == Mixture([100, 100], [1, 2], seed=5, flip=True).draw(7, 8)
    assert mixture.draw(8, 8) != later
    assert Mixture([100, 100], [1, 2], seed=6, flip=True).draw(7, 8) != later


@pytest.mark.parametrize("sizes, weights", [([], []), ([3, 0], [1, 1]), ([3, 3], [1, 0]), ([3], [1, 1])])
def test_nothing_to_draw_from_is_refused(sizes, weights):
    with pytest.raises(ValueError, match="frames and a positive weight"):
        Mixture(sizes, weights, seed=0, flip=False)


def test_a_curriculum_changes_the_shares_at_its_steps_and_nothing_else():
    plain = Mixture([100, 100], [1, 3], seed=5, flip=True)
    taught = Mixture([100, 100], [1, 3], seed=5, flip=True, curriculum=[(10, [1, 0]), (20, [1, 1])])
    assert [taught.shares(step)[0] for step in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]
    assert {draw.dataset for draw in taught.draw(9, 100)} == {0}
    assert taught.draw(20, 100) == plain.draw(20, 100)
    with pytest.raises(ValueError, match="a weight for each of 2 caches"):
        Mixture([3, 3], [1, 1], seed=0, flip=False, curriculum=[(10, [0, 0])])
