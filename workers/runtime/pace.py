"""How fast long legitimate work may go, so that it never looks like a breach. Pure: time comes in as an argument."""

from __future__ import annotations

from typing import Final

PACED_SHARE: Final = 0.8
"""Long work goes at this share of what would be a breach if it lasted."""
DEGRADED_SHARE: Final = 0.5
"""While the agent asks for less work it goes at this share of that."""
BURST_SHARE: Final = 0.2
"""How long an unused allowance collects, as a share of a sample: with it even a single sample of paced work stays
below the trip value (0.8 * 1.2 < 1)."""


class Meter:
    """A virtual schedule: what was used moves the time at which more may be used.

    Args:
        rate: Units a second.
        burst_seconds: How long an unused rate collects.
    """

    __slots__ = ("_at", "burst_seconds", "rate")

    def __init__(self, rate: float, burst_seconds: float) -> None:
        self.rate = rate
        self.burst_seconds = burst_seconds
        self._at = float("-inf")

    def use(self, amount: float, now: float, share: float = 1.0, lasted: float = 0.0) -> None:
        """Count what was used in the last `lasted` seconds, at a share of the rate."""
        earliest = now - self.burst_seconds
        self._at = max(max(self._at, earliest - max(lasted, 0.0)) + amount / (self.rate * share), earliest)

    def delay(self, now: float) -> float:
        """Return how long to pause, seconds; 0 or less: go on."""
        return self._at - now


class CpuPace:
    """Paces one thread by its own CPU time."""

    __slots__ = ("_meter", "_seen_at", "_used")

    def __init__(self) -> None:
        self._meter = Meter(1.0, 0.0)
        self._used: float | None = None
        self._seen_at = 0.0

    def delay(self, used: float, now: float, percent: float, burst_seconds: float) -> float:
        """Return how long to pause, seconds; 0 or less: go on.

        Args:
            used: CPU time of the thread so far, seconds.
            now: Monotonic seconds.
            percent: What it may use, percent of one core; above 0.
            burst_seconds: How long an unused share collects.
        """
        meter = self._meter
        meter.rate, meter.burst_seconds = percent / 100, burst_seconds
        if self._used is not None:
            meter.use(max(0.0, used - self._used), now, lasted=now - self._seen_at)
        self._used, self._seen_at = used, now
        return meter.delay(now)
