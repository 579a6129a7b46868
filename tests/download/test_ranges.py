"""Byte ranges: a set of numbers, and few requests that cover many."""

from itertools import pairwise

from hypothesis import given, strategies as st

from metricgold.download.ranges import Ranges, join_ranges

SPANS = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40)))


@given(SPANS, st.integers(0, 40), st.integers(0, 40))
def test_ranges_are_a_set_of_numbers(steps, start, end):
    ranges, expected = Ranges(), set()
    for is_added, one, two in steps:
        (ranges.add if is_added else ranges.drop)(one, two)
        expected = expected | set(range(one, two)) if is_added else expected - set(range(one, two))
    spans = list(ranges)
    assert {number for one, two in spans for number in range(one, two)} == expected
    assert all(two < three for (_, two), (three, _) in pairwise(spans))
    gaps = list(ranges.gaps(start, end))
    assert [number for one, two in gaps for number in range(one, two)] == sorted(set(range(start, end)) - expected)


RANGES = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 60)).map(lambda pair: (pair[0], sum(pair))), max_size=12
)


@given(RANGES, st.sampled_from([0, 0.01, 0.1, 0.5, 2]))
def test_joined_ranges_cover_what_is_wanted_and_little_more(ranges, spare):
    joined = join_ranges(ranges, spare=spare)
    wanted = {byte for start, end in ranges for byte in range(start, end)}
    taken = [byte for start, end in joined for byte in range(start, end)]
    assert wanted <= set(taken)
    assert len(taken) - len(wanted) <= spare * len(wanted)
    assert len(taken) == len(set(taken)), "no byte twice"
    assert joined == sorted(joined)
    assert all(before[1] < after[0] for before, after in pairwise(joined)), "neighbours are one"
    assert all(start in wanted and end - 1 in wanted for start, end in joined), "nothing at the ends"
    gaps = [after[0] - before[1] for before, after in pairwise(joined)]
    if gaps:
        assert len(taken) - len(wanted) + min(gaps) > spare * len(wanted), "one more would not have fitted"


def test_the_smallest_gaps_are_bridged_first():
    assert join_ranges([(0, 100), (103, 200), (201, 300)], spare=0.01) == [(0, 100), (103, 300)]
    assert join_ranges([(0, 100), (103, 200), (201, 300)], spare=0.02) == [(0, 300)]
    assert join_ranges([]) == []
