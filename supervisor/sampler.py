"""What the workers use, read from their nodes every few seconds."""

from __future__ import annotations

from dataclasses import dataclass

from garrison.supervisor.cgroups.base import Cgroups, Usage
from garrison.supervisor.cgroups.errors import CgroupError

SAMPLE_SECONDS = 5.0
"""Time between two samples."""
FRESH_SECONDS = 1.0
"""A sample this young is shown as it is; an older one is taken again for whoever asks."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Usage at a time (monotonic seconds), and the CPU use since the sample before, percent of one core."""

    at: float
    usage: Usage
    cpu_percent: float


class Sampler:
    """Keeps the last sample of each worker's process.

    Args:
        cgroups: Where usage is read.
    """

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._last: dict[tuple[str, int], Sample] = {}

    def sample(self, worker: str, epoch: int, now: float, max_age: float = FRESH_SECONDS) -> Sample:
        """Return a sample of a worker's process that is at most `max_age` seconds old."""
        last = self._last.get((worker, epoch))
        if last is not None and now - last.at < max_age:
            return last
        try:
            usage = self._cgroups.usage(worker)
        except CgroupError:
            # Out of descriptors, most likely. What the others use is still worth being shown.
            return last if last is not None else Sample(now, Usage(), 0.0)
        percent = 0.0
        if last is not None:
            percent = max(0.0, 100.0 * (usage.cpu_seconds - last.usage.cpu_seconds) / (now - last.at))
        sample = self._last[worker, epoch] = Sample(now, usage, percent)
        return sample

    def keep(self, living: set[tuple[str, int]]) -> None:
        """Forget every process that is not among the living."""
        for key in self._last.keys() - living:
            del self._last[key]
