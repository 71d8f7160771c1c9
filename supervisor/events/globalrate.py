"""The limit of what leaves the host, bytes a second, for all workers together. Pure: time comes in as an argument."""

from __future__ import annotations

from garrison.ipc.messages import Priority
from garrison.supervisor.events.pacing import URGENT

BURST_SECONDS = 2.0
"""The burst, in seconds of the rate."""
RESERVED_SHARE = 0.25
"""Share of the burst that events leave to alerts and states."""
URGENT_SECONDS = 10.0
"""The burst of alerts and states by themselves, in seconds of the rate. Events make up for it."""


class GlobalRate:
    """Two token buckets of bytes: one that everything draws from, and one for what is urgent alone.

    Alerts and states ask only their own: however much events have overdrawn (one write of the sink's may), they do not
    wait for that, and only they themselves can be too many. Events and metrics leave while the common bucket
    holds more than a reserve, and what alerts and states took is missing there; so the average holds for all
    of them together, and a flood of events never delays an alert.

    Args:
        rate: Bytes a second; 0: no limit.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate * BURST_SECONDS
        self._urgent = rate * URGENT_SECONDS
        self._at: float | None = None

    def limit(self, rate: float) -> None:
        """Change the rate, bytes a second. What was overdrawn is forgotten."""
        if rate != self._rate:
            self._rate = rate
            self._tokens, self._urgent = rate * BURST_SECONDS, rate * URGENT_SECONDS

    def wait(self, priority: Priority, now: float) -> float:
        """Return how long a batch of a priority has to wait at the monotonic time `now`, seconds; 0: it may go."""
        if self._rate <= 0:
            return 0.0
        self._refill(now)
        floor, tokens = self._rate * BURST_SECONDS * RESERVED_SHARE, self._tokens
        if priority in URGENT:
            floor, tokens = 0.0, self._urgent
        return 0.0 if tokens > floor else (floor - tokens) / self._rate + 0.001

    def took(self, priority: Priority, size: int, now: float) -> None:
        """Note that `size` bytes leave."""
        if self._rate <= 0:
            return
        self._refill(now)
        self._tokens -= size
        if priority in URGENT:
            self._urgent -= size

    def _refill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            more = (now - self._at) * self._rate
            self._tokens = min(self._tokens + more, self._rate * BURST_SECONDS)
            self._urgent = min(self._urgent + more, self._rate * URGENT_SECONDS)
        if self._at is None or now > self._at:
            self._at = now
