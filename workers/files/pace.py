"""How fast the module may go: CPU time, bytes read, events. Pure: time comes in as an argument."""

from __future__ import annotations

from typing import Final

BURST_SECONDS: Final = 5.0
"""How long an unused share collects: a few changed files are judged at once, a baseline is spread."""

DEGRADED_SHARE: Final = 0.5


class _Meter:
    """A virtual schedule: what was used moves the time at which more may be used."""

    __slots__ = ("_at", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._at = float("-inf")

    def use(self, amount: float, now: float, share: float) -> None:
        self._at = max(self._at, now - BURST_SECONDS) + amount / (self.rate * share)

    def delay(self, now: float) -> float:
        return self._at - now


class Pace:
    """Says how long to pause after what was used.

    Args:
        cpu_percent: Percent of one core.
        bytes_per_second: Reading.
        events_per_second: Events out.
    """

    def __init__(self, cpu_percent: float, bytes_per_second: float, events_per_second: float) -> None:
        self._cpu = _Meter(cpu_percent / 100)
        self._bytes = _Meter(bytes_per_second)
        self._events = _Meter(events_per_second)
        self.degraded = False
        """While set, everything but events goes at half the speed."""

    def limit(self, cpu_percent: float, bytes_per_second: float, events_per_second: float) -> None:
        """Change the rates."""
        self._cpu.rate = cpu_percent / 100
        self._bytes.rate = bytes_per_second
        self._events.rate = events_per_second

    def cpu(self, seconds: float, now: float) -> None:
        """Count CPU time."""
        self._cpu.use(seconds, now, self._share)

    def read(self, count: int, now: float) -> None:
        """Count bytes read."""
        self._bytes.use(count, now, self._share)

    def event(self, now: float) -> None:
        """Count an event."""
        self._events.use(1, now, 1.0)

    def delay(self, now: float) -> float:
        """Return how long to pause, seconds; 0 or less: go on."""
        return max(self._cpu.delay(now), self._bytes.delay(now), self._events.delay(now))

    @property
    def _share(self) -> float:
        return DEGRADED_SHARE if self.degraded else 1.0
