"""Changes on their way to be judged: many to one file become one. Pure: time comes in as an argument."""

from __future__ import annotations

import heapq
from typing import Final

LIMIT: Final = 16_384
"""Most files that wait; about 6 MB. Beyond it a rescan finds what changed."""


class Change:
    """What waits to be judged.

    Attributes:
        path: The file.
        first: Monotonic time of the first sign of a change.
        last: Of the latest.
        content: The content may have changed: hash it whatever its times say.
        created: Its creation was seen, so that it is news even while the baseline is being learnt.
        moved_from: Where it was before, or None.
        tries: How often it has changed while it was read.
        not_before: Monotonic time before which it is not judged.
    """

    __slots__ = ("content", "created", "first", "last", "moved_from", "not_before", "path", "tries")

    def __init__(self, path: str, now: float) -> None:
        self.path = path
        self.first = self.last = now
        self.content = self.created = False
        self.moved_from: str | None = None
        self.tries = 0
        self.not_before = 0.0


class Pending:
    """A settling queue by path.

    Args:
        settle: Seconds of quiet after which a change is judged.
        settle_max: Seconds after which it is judged in any case.
        limit: Most paths.
    """

    def __init__(self, settle: float, settle_max: float, limit: int = LIMIT) -> None:
        self._settle = settle
        self._settle_max = max(settle, settle_max)
        self._limit = limit
        self._changes: dict[str, Change] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._changes)

    def __contains__(self, path: str) -> bool:
        return path in self._changes

    def limit(self, settle: float, settle_max: float) -> None:
        """Change the times, seconds; what waits already is judged by the new ones."""
        self._settle, self._settle_max = settle, max(settle, settle_max)
        self._heap = []
        for path, change in self._changes.items():
            self._push(self._due(change), path)

    def touch(self, path: str, now: float) -> Change | None:
        """Note a sign of a change; None: no room, the caller has to look at everything again."""
        change = self._changes.get(path)
        if change is not None:
            change.last = now
            return change
        if len(self._changes) >= self._limit:
            return None
        change = self._changes[path] = Change(path, now)
        self._push(self._due(change), path)
        return change

    def moved(self, source: str, target: str, now: float) -> Change | None:
        """Note a rename: the two are judged together. None: no room."""
        before = self._changes.get(source)
        change = self.touch(target, now)
        if change is None:
            return None
        change.created = change.content = True
        change.moved_from = before.moved_from if before is not None and before.moved_from is not None else source
        if before is not None:
            # Judged with the target, and by itself only where something happens at the old name again.
            del self._changes[source]
        return change

    def take(self, now: float) -> Change | None:
        """Return and remove the next change whose time has come."""
        while self._heap and self._heap[0][0] <= now:
            _, _, path = heapq.heappop(self._heap)
            change = self._changes.get(path)
            if change is None:
                continue
            due = self._due(change)
            if due > now:
                self._push(due, path)
                continue
            del self._changes[path]
            return change
        return None

    def next_due(self) -> float | None:
        """Return the monotonic time at which `take` should be asked, or None where nothing waits."""
        while self._heap and self._heap[0][2] not in self._changes:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def clear(self) -> None:
        """Forget all."""
        self._changes.clear()
        self._heap.clear()

    def _due(self, change: Change) -> float:
        return max(min(change.last + self._settle, change.first + self._settle_max), change.not_before)

    def _push(self, due: float, path: str) -> None:
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, path))
        if len(self._heap) > 2 * self._limit + 64:
            # Paths that came and went again have left their marks.
            self._heap = [item for item in self._heap if item[2] in self._changes]
            heapq.heapify(self._heap)
