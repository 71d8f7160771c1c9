"""Which sequence numbers of a worker are in flight: interval sets by process and priority, bounded. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import attrgetter

import msgspec

from garrison.ipc.messages import Priority

MAX_WINDOWS = 256
"""Most intervals of one worker. Events leave in order, so that there are one or two unless many were dropped."""

Key = tuple[int, Priority]
"""A process and a priority: what has a sequence of its own."""

_last = attrgetter("last")


class Window(msgspec.Struct, array_like=True):
    """Events of one process and priority that are in flight: `first` to `last`, both inclusive."""

    epoch: int
    priority: Priority
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


class InFlight:
    """The numbers that came in and are neither delivered nor dropped.

    Above `most` intervals two neighbours are joined, the closest first: then a number between them would be taken for
    one in flight if it was settled a second time, which only a restart can make happen. Where there are no neighbours
    the oldest process is kept as a mere count.

    Args:
        windows: What was known before.
        untracked: Events in flight of which no number is known.
        most: Bound.
    """

    __slots__ = ("_most", "_size", "_windows", "untracked")

    def __init__(self, windows: Iterable[Window] = (), untracked: int = 0, most: int = MAX_WINDOWS) -> None:
        self.untracked = untracked
        self._most = most
        self._size = 0
        self._windows: dict[Key, list[Window]] = {}
        for window in sorted(windows, key=lambda window: window.first):
            self.add(window.epoch, window.priority, window.first, window.last)

    def windows(self) -> list[Window]:
        """Return all intervals; they may change with the next call."""
        return [window for windows in self._windows.values() for window in windows]

    def of(self, key: Key) -> list[Window]:
        """Return the intervals of one process and priority, ascending."""
        return self._windows.get(key, [])

    def add(self, epoch: int, priority: Priority, first: int, last: int) -> None:
        """Take numbers in. They are above all that came of this process and priority before."""
        windows = self._windows.setdefault((epoch, priority), [])
        if windows and first <= windows[-1].last + 1:
            windows[-1].last = max(windows[-1].last, last)
            return
        windows.append(Window(epoch=epoch, priority=priority, first=first, last=last))
        self._size += 1
        if self._size > self._most:
            self._shorten()

    def settle(self, epoch: int, priority: Priority, first: int, last: int) -> int:
        """Take numbers out. Returns how many of them were in flight: twice settled counts once."""
        windows = self._windows.get((epoch, priority))
        if windows is None:
            count = min(last - first + 1, self.untracked)
            self.untracked -= count
            return count
        count = 0
        at = bisect_left(windows, first, key=_last)
        while at < len(windows) and windows[at].first <= last:
            window = windows[at]
            count += min(window.last, last) - max(window.first, first) + 1
            if first <= window.first:
                if last < window.last:
                    window.first = last + 1
                    break
                del windows[at]
                self._size -= 1
            else:
                if last < window.last:
                    windows.insert(at + 1, Window(epoch=epoch, priority=priority, first=last + 1, last=window.last))
                    self._size += 1
                window.last = first - 1
                at += 1
        if not windows:
            del self._windows[epoch, priority]
        if self._size > self._most:
            self._shorten()
        return count

    def clear(self) -> None:
        """Forget everything."""
        self._windows.clear()
        self._size = self.untracked = 0

    def _shorten(self) -> None:
        best: tuple[int, list[Window], int] | None = None
        for windows in self._windows.values():
            for at in range(len(windows) - 1):
                gap = windows[at + 1].first - windows[at].last
                if best is None or gap < best[0]:
                    best = (gap, windows, at)
        if best is not None:
            _gap, windows, at = best
            windows[at].last = windows.pop(at + 1).last
            self._size -= 1
            return
        oldest = min(self._windows)
        for window in self._windows.pop(oldest):
            self.untracked += len(window)
            self._size -= 1
