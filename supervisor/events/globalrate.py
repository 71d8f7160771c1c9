"""The limit of what leaves the host, bytes a second, for all workers together. Pure: time comes in as an argument."""

from __future__ import annotations

from garrison.ipc.messages import Priority
from garrison.supervisor.events.pacing import URGENT

BURST_SECONDS = 2.0
"""The burst, in seconds of the rate."""
RESERVED_SHARE = 0.25
"""Share of the burst that only alerts and states may use: they never wait for events that came before them."""
DEBT_SECONDS = 10.0
"""How far alerts and states may run ahead of the rate, in seconds of it. Events make up for that."""


class GlobalRate:
    """A token bucket of bytes with a reserve for what is urgent.

    Events and metrics leave while more than the reserve is there. Alerts and states leave as long as the debt
    is below ten seconds of the rate, and what they take beyond their share the others go without; so a flood of
    events never delays an alert, and the average holds for all of them together. One batch may overdraw.

    Args:
        rate: Bytes a second; 0: no limit.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate * BURST_SECONDS
        self._at: float | None = None

    def limit(self, rate: float) -> None:
        """Change the rate, bytes a second; what has collected stays, up to the new burst."""
        if self._rate == 0:
            self._tokens = rate * BURST_SECONDS
        self._rate = rate
        self._tokens = max(min(self._tokens, rate * BURST_SECONDS), -rate * DEBT_SECONDS)

    def wait(self, priority: Priority, now: float) -> float:
        """Return how long a batch of a priority has to wait at the monotonic time `now`, seconds; 0: it may go."""
        if self._rate <= 0:
            return 0.0
        self._refill(now)
        floor = -self._rate * DEBT_SECONDS if priority in URGENT else self._rate * BURST_SECONDS * RESERVED_SHARE
        return 0.0 if self._tokens > floor else (floor - self._tokens) / self._rate + 0.001

    def took(self, priority: Priority, size: int, now: float) -> None:
        """Note that `size` bytes leave."""
        if self._rate > 0:
            self._refill(now)
            self._tokens -= size

    def _refill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._tokens = min(self._tokens + (now - self._at) * self._rate, self._rate * BURST_SECONDS)
        if self._at is None or now > self._at:
            self._at = now
