"""How fast the module may go: CPU time, bytes read, events. Pure: time comes in as an argument."""

from __future__ import annotations

from typing import Final

from garrison.workers.runtime.pace import DEGRADED_SHARE, Meter

BURST_SECONDS: Final = 5.0
"""How long an unused share collects: a few changed files are judged at once, a baseline is spread."""


class Pace:
    """Says how long to pause after what was used.

    Args:
        cpu_percent: Percent of one core.
        bytes_per_second: Reading.
        events_per_second: Events out.
    """

    def __init__(self, cpu_percent: float, bytes_per_second: float, events_per_second: float) -> None:
        self._cpu_percent = cpu_percent
        self._cpu_budget = float("inf")
        self._cpu = Meter(cpu_percent / 100, BURST_SECONDS)
        self._bytes = Meter(bytes_per_second, BURST_SECONDS)
        self._events = Meter(events_per_second, BURST_SECONDS)
        self.degraded = False
        """While set, everything but events goes at half the speed."""

    def limit(self, cpu_percent: float, bytes_per_second: float, events_per_second: float) -> None:
        """Change the rates."""
        self._cpu_percent = cpu_percent
        self._bytes.rate = bytes_per_second
        self._events.rate = events_per_second

    def budget(self, cpu_percent: float) -> None:
        """Take what the worker's budget leaves for long work, percent of one core: never more than that is used."""
        self._cpu_budget = cpu_percent

    def cpu(self, seconds: float, now: float) -> None:
        """Count CPU time."""
        self._cpu.rate = min(self._cpu_percent * self._share, self._cpu_budget) / 100
        self._cpu.use(seconds, now)

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
