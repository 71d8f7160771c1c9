"""Sets of whole numbers as intervals: small where numbers follow each other, however many there are. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Interval = tuple[int, int]
"""First and last number, both inclusive."""


class Intervals:
    """A set of numbers, kept as disjoint intervals that do not touch.

    Two plain lists, because most sets have one interval and there may be millions of sets.
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in intervals:
            self.add(first, last)

    def __iter__(self) -> Iterator[Interval]:
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        """Return the number of intervals."""
        return len(self._firsts)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    @property
    def count(self) -> int:
        """How many numbers are in the set."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    @property
    def first(self) -> int:
        """The smallest number; 0 where there is none."""
        return self._firsts[0] if self._firsts else 0

    @property
    def last(self) -> int:
        """The largest number; 0 where there is none."""
        return self._lasts[-1] if self._lasts else 0

    def add(self, first: int, last: int) -> int:
        """Add the numbers `first` to `last`; returns how many of them were in the set before."""
        firsts, lasts = self._firsts, self._lasts
        if lasts and first == lasts[-1] + 1:  # the usual case
            lasts[-1] = last
            return 0
        # The intervals that these numbers overlap or touch.
        start = bisect_left(lasts, first - 1)
        end = bisect_right(firsts, last + 1)
        if start == end:
            firsts.insert(start, first)
            lasts.insert(start, last)
            return 0
        known = sum(max(0, min(lasts[at], last) - max(firsts[at], first) + 1) for at in range(start, end))
        low, high = min(first, firsts[start]), max(last, lasts[end - 1])
        firsts[start:end] = [low]
        lasts[start:end] = [high]
        return known

    def missing(self, first: int, last: int) -> list[Interval]:
        """Return the numbers from `first` to `last` that are not in the set."""
        found = []
        at = bisect_left(self._lasts, first)
        while at < len(self._firsts) and self._firsts[at] <= last:
            if self._firsts[at] > first:
                found.append((first, self._firsts[at] - 1))
            first = self._lasts[at] + 1
            at += 1
        if first <= last:
            found.append((first, last))
        return found


def split(intervals: Iterable[Interval], by: Intervals) -> tuple[list[Interval], list[Interval]]:
    """Return what of some intervals is in a set, and what is not."""
    inside: list[Interval] = []
    outside: list[Interval] = []
    for first, last in intervals:
        rest = by.missing(first, last)
        outside += rest
        for gap_first, gap_last in rest:
            if first < gap_first:
                inside.append((first, gap_first - 1))
            first = gap_last + 1
        if first <= last:
            inside.append((first, last))
    return inside, outside


def count(intervals: Iterable[Interval]) -> int:
    """Return how many numbers intervals hold."""
    return sum(last - first + 1 for first, last in intervals)
