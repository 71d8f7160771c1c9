"""Ranges of sequence numbers: which events were dropped and why, in a bounded list. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import msgspec

from garrison.ipc.messages import Priority

MAX_RANGES = 64
"""Most ranges that are kept of one worker until a heartbeat has told of them."""
MIXED = "mixed"
"""The reason of a range that was joined from several with different ones, what lies between them included."""


class DropRange(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one process and priority that were given up.

    Attributes:
        number: Counts up with every change of a worker's ranges, so that a reader knows what is new.
        epoch: The number of the process.
        priority: Of the events.
        first: Sequence number of the first.
        last: Sequence number of the last, inclusive.
        reason: Why.
    """

    number: int
    epoch: int
    priority: Priority
    first: int
    last: int
    reason: str


class DropRanges:
    """The ranges of one worker that nobody has been told of for certain.

    More than `most` of them are joined, the two of a process and priority that lie closest first: a joined range also
    covers what lies between, so a reader takes it as the reason of what is missing there, and of nothing that is
    not. Where none can be joined the oldest is forgotten, and its events counted.

    Args:
        ranges: What was known before.
        most: Bound.

    Attributes:
        number: Of the newest change.
        forgotten: Events of ranges that had to be forgotten. Their drop stays counted.
    """

    __slots__ = ("_most", "_ranges", "forgotten", "number")

    def __init__(self, ranges: Iterable[DropRange] = (), most: int = MAX_RANGES, forgotten: int = 0) -> None:
        self._ranges = list(ranges)
        self._most = most
        self.number = max((known.number for known in self._ranges), default=0)
        self.forgotten = forgotten

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, epoch: int, priority: Priority, first: int, last: int, reason: str) -> None:
        """Note that the events `first` to `last` (inclusive) were dropped."""
        self.number += 1
        for at in range(len(self._ranges) - 1, -1, -1):
            known = self._ranges[at]
            if (known.epoch, known.priority, known.reason) != (epoch, priority, reason):
                continue
            if first <= known.last + 1 and last >= known.first - 1:
                del self._ranges[at]
                first, last = min(first, known.first), max(last, known.last)
                break
        self._ranges.append(
            DropRange(number=self.number, epoch=epoch, priority=priority, first=first, last=last, reason=reason)
        )
        if len(self._ranges) > self._most:
            self._shorten()

    def known(self) -> list[DropRange]:
        """Return all that are kept, oldest change first."""
        return list(self._ranges)

    def confirm(self, number: int) -> None:
        """Forget what was known at the change `number`: a reader has been told of it."""
        self._ranges = [known for known in self._ranges if known.number > number]

    def _shorten(self) -> None:
        best: tuple[int, DropRange, DropRange] | None = None
        order = sorted(self._ranges, key=lambda known: (known.epoch, known.priority, known.first))
        for left, right in pairwise(order):
            if (left.epoch, left.priority) == (right.epoch, right.priority):
                gap = right.first - left.last
                if best is None or gap < best[0]:
                    best = (gap, left, right)
        if best is None:
            oldest = self._ranges.pop(0)
            self.forgotten += oldest.last - oldest.first + 1
            return
        _gap, left, right = best
        joined = msgspec.structs.replace(
            left,
            # Told of only when both parts were.
            number=max(left.number, right.number),
            last=max(left.last, right.last),
            reason=left.reason if left.reason == right.reason else MIXED,
        )
        self._ranges = sorted(
            [*(known for known in self._ranges if known is not left and known is not right), joined],
            key=lambda known: known.number,
        )
