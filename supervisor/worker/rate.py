"""The rate of one worker's events. Pure: time comes in as an argument."""

from __future__ import annotations

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import TokenBucket
from garrison.supervisor.events.pacing import URGENT


class WorkerRate:
    """Two token buckets of events: one that everything draws from, and one that alerts and states alone ask.

    So a worker that floods loses no alert to its own events. What alerts and states take is missing to events and
    metrics, and the average holds for all of them together.

    Args:
        rate: Events a second.
        burst_seconds: The largest burst, in seconds of the rate.
    """

    def __init__(self, rate: float, burst_seconds: float) -> None:
        self._common = TokenBucket(rate, rate * burst_seconds)
        self._urgent = TokenBucket(rate, rate * burst_seconds)

    def limit(self, rate: float, burst_seconds: float) -> None:
        """Change the rate, events a second, and its burst, in seconds of it."""
        self._common.limit(rate, rate * burst_seconds)
        self._urgent.limit(rate, rate * burst_seconds)

    def admit(self, priority: Priority, count: int, now: float) -> bool:
        """Take a batch at the monotonic time `now`, seconds. False: over the limit, nothing taken."""
        if priority not in URGENT:
            return self._common.admit(count, now)
        if not self._urgent.admit(count, now):
            return False
        self._common.charge(count, now)
        return True
