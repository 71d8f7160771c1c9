"""How fast what waits may leave. Pure: time comes in as an argument."""

from __future__ import annotations

from typing import Final, Protocol

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import spread

URGENT: Final[frozenset[Priority]] = frozenset(("alert", "state"))
"""What no backlog and no limit of it may hold up; a worker's own rate bounds it."""


class Throttle(Protocol):
    """Something that slows the way out down. Asked by the sink's thread only."""

    def wait(self, priority: Priority, now: float) -> float:
        """Return how long events of a priority have to wait at the monotonic time `now`, seconds; 0: they may go."""

    def took(self, priority: Priority, size: int, now: float) -> None:
        """Note that `size` bytes of a priority leave."""


class DrainPace:
    """The pace of what comes out of the spool.

    After an outage a fleet has the same thing to say at the same moment. So each host waits its own share of a spread
    time, at most as long as the outage was, and then sends at a limited rate; what comes in meanwhile is added to it,
    so that a backlog shrinks at the full rate. Alerts and states do not wait.

    Args:
        host: Host name, for the share.
        rate: Bytes a second.
        spread_seconds: Longest wait.
    """

    def __init__(self, host: str, rate: float, spread_seconds: float) -> None:
        self._rate = rate
        self._wait = spread(host, "drain") * spread_seconds
        self._spread = spread(host, "drain")
        self._tokens = rate
        self._at: float | None = None
        self._not_before = float("-inf")
        self._away_since: float | None = None

    def away(self, now: float) -> None:
        """Note that the sink takes nothing. Idempotent."""
        if self._away_since is None:
            self._away_since = now

    def back(self, now: float) -> None:
        """Note that it takes events again. Idempotent."""
        if self._away_since is not None:
            self._not_before = now + min(self._wait, self._spread * max(0.0, now - self._away_since))
            self._tokens, self._at, self._away_since = 0.0, now, None

    def begin(self, now: float) -> None:
        """Note that there is a backlog of an earlier master: as after a long outage."""
        self._not_before = now + self._wait

    def arrived(self, size: int, now: float) -> None:
        """Note that `size` bytes have come into the spool."""
        self._refill(now)
        if self._away_since is None:
            self._tokens = min(self._tokens + size, 4 * self._rate)

    def wait(self, priority: Priority, now: float) -> float:
        """See `Throttle`."""
        if priority in URGENT:
            return 0.0
        self._refill(now)
        if now < self._not_before:
            return self._not_before - now
        return 0.0 if self._tokens > 0 else (1.0 - self._tokens) / self._rate

    def took(self, priority: Priority, size: int, now: float) -> None:
        """See `Throttle`."""
        self._refill(now)
        if priority not in URGENT:
            self._tokens -= size

    def _refill(self, now: float) -> None:
        if self._at is not None and now > self._at and self._tokens < self._rate:
            self._tokens = min(self._tokens + (now - self._at) * self._rate, self._rate)
        if self._at is None or now > self._at:
            self._at = now
