"""Byte ranges of a file, [start, end): a set of them, and few requests that cover many."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

Range = tuple[int, int]  # [start, end)


class Ranges:
    """Sorted ranges that neither touch nor overlap."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._ends, strict=True)

    def add(self, start: int, end: int) -> None:
        """Unite with [start, end)."""
        if start < end:
            first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
            start, end = min([start, *self._starts[first:last]]), max([end, *self._ends[first:last]])
            self._starts[first:last], self._ends[first:last] = [start], [end]

    def drop(self, start: int, end: int) -> None:
        """Take [start, end) out."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if start < end and first < last:
            ends = (self._starts[first], start), (end, self._ends[last - 1])
            left = [(before, after) for before, after in ends if before < after]
            self._starts[first:last], self._ends[first:last] = [one for one, _ in left], [two for _, two in left]

    def gaps(self, start: int, end: int) -> Iterator[Range]:
        """What of [start, end) is not covered, in order."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        for covered_start, covered_end in zip(self._starts[first:last], self._ends[first:last], strict=True):
            if start < covered_start:
                yield start, covered_start
            start = covered_end
        if start < end:
            yield start, end


def join_ranges(ranges: Iterable[Range], *, spare: float = 0.01) -> list[Range]:
    """Few ranges that cover all of `ranges`, sorted and apart from each other.

    Gaps are bridged, the smallest first, while all bridged bytes together stay within `spare` of the wanted ones.
    """
    apart = list(Ranges(ranges))
    gaps = sorted((after - before, before) for (_, before), (after, _) in pairwise(apart))
    left = spare * sum(end - start for start, end in apart)
    bridged = set()  # gaps by their first byte
    for gap_bytes, start in gaps:
        left -= gap_bytes
        if left < 0:
            break
        bridged.add(start)
    joined: list[Range] = []
    for start, end in apart:
        if joined and joined[-1][1] in bridged:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined
