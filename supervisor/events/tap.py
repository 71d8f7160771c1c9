"""The tap: the last events in memory and a live view of what passes, for ``garrison events``.

Bounded and beside the delivery: a subscriber that does not keep up loses events of its view, never of the
sink.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from garrison.supervisor.events.queue import Batch

RING_BYTES = 256 * 1024
"""How much of the past is kept, bytes."""


class Tap:
    """Keeps the newest batches and passes new ones to subscribers. Used from the master's loop only."""

    def __init__(self, max_bytes: int = RING_BYTES) -> None:
        self._ring: deque[Batch] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._subscribers: dict[Callable[[Batch], None], Callable[[], None]] = {}
        self._closed = False

    def publish(self, batch: Batch) -> None:
        """Keep a batch and show it to every subscriber."""
        if self._closed:
            return
        self._ring.append(batch)
        self._bytes += batch.size
        while self._bytes > self._max_bytes and len(self._ring) > 1:
            self._bytes -= self._ring.popleft().size
        for subscriber in tuple(self._subscribers):
            subscriber(batch)

    def recent(self) -> list[Batch]:
        """Return what is kept, oldest first."""
        return list(self._ring)

    @property
    def closed(self) -> bool:
        """Whether the master has no time for this now."""
        return self._closed

    def close(self, closed: bool) -> None:
        """End all views and keep nothing, or begin again. Idempotent."""
        self._closed = closed
        if closed:
            self._ring.clear()
            self._bytes = 0
            subscribers, self._subscribers = self._subscribers, {}
            for end in subscribers.values():
                end()

    def subscribe(self, call: Callable[[Batch], None], end: Callable[[], None]) -> Callable[[], None]:
        """Have `call` see each new batch; returns what ends that. Neither function may block or raise.

        Args:
            call: Takes a batch.
            end: Called when there will be no more, because the tap was closed.
        """
        self._subscribers[call] = end

        def unsubscribe() -> None:
            self._subscribers.pop(call, None)

        return unsubscribe
