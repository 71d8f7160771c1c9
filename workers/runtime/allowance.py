"""What one module may use of the CPU, now: its share of the worker's budget, more while a task has an allowance. Pure.

The main thread writes the budget, the module's own thread the task's allowance, both read: each field is one word.
"""

from __future__ import annotations

from garrison.workers.runtime.pace import BURST_SHARE, DEGRADED_SHARE, PACED_SHARE


class Allowance:
    """CPU in percent of one core, times in monotonic seconds.

    Attributes:
        share: The module's part of the worker's ``cpu_trip_percent``.
        quota: The worker's hard cap.
        sample_seconds: Time between two looks at what it uses.
    """

    __slots__ = ("_task", "quota", "sample_seconds", "share")

    def __init__(self) -> None:
        self.share = 5.0
        self.quota = 10.0
        self.sample_seconds = 5.0
        self._task: tuple[float, float] | None = None

    def budget(self, share: float, quota: float, sample_seconds: float) -> None:
        """Take the numbers of a configuration."""
        self.share, self.quota, self.sample_seconds = share, quota, sample_seconds

    def begin_task(self, percent: float, seconds: float, now: float) -> None:
        """Let the task that begins use `percent` for so many seconds; 0 of either: no more than usual."""
        self._task = (percent, now + seconds) if percent > 0 and seconds > 0 else None

    def end_task(self) -> None:
        """The task is done, and its allowance with it."""
        self._task = None

    def of_task(self, now: float) -> float:
        """Return what the running task may use, or 0 where it may use no more than usual."""
        task = self._task
        if task is None or now >= task[1]:
            return 0.0
        percent = min(task[0], self.quota)
        return percent if percent > self.share else 0.0

    def percent(self, now: float) -> float:
        """Return what counts as above the module's share."""
        return max(self.share, self.of_task(now))

    def paced(self, now: float, *, degraded: bool) -> float:
        """Return what long work may use: 80 % of `percent`, half of that where less work is asked for."""
        return self.percent(now) * PACED_SHARE * (DEGRADED_SHARE if degraded else 1.0)

    @property
    def burst_seconds(self) -> float:
        """How long an unused share of long work collects."""
        return self.sample_seconds * BURST_SHARE
