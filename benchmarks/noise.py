"""How quiet the machine is: the same fixed work and the same sleep, again and again between the measurements."""

from __future__ import annotations

import os
import platform
import time

from benchmarks.stats import Series, number

_WORK = range(40_000)
_SLEEP_SECONDS = 0.001


class Noise:
    """Takes control samples; a benchmark calls `sample` before each of its measurements."""

    def __init__(self) -> None:
        self.work = Series("fixed work", "ms")
        self.overshoot = Series("overshoot of a sleep of 1 ms", "ms")
        self._load = os.getloadavg()[0]

    def sample(self) -> None:
        """Do the fixed work once and sleep once: a few milliseconds."""
        begin = time.perf_counter()
        total = 0
        for item in _WORK:
            total += item
        middle = time.perf_counter()
        time.sleep(_SLEEP_SECONDS)
        self.work.add((middle - begin) * 1000)
        self.overshoot.add((time.perf_counter() - middle - _SLEEP_SECONDS) * 1000)

    def facts(self) -> list[str]:
        """Return what a reader must know to judge the table."""
        facts = [
            f"Linux {_kernel()} on {platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}",
            f"load average at the start {self._load:.2f}, at the end {os.getloadavg()[0]:.2f}",
        ]
        if self.work.values:
            facts.append(
                f"noise: fixed work p99/p50 {number(self.work.p99 / self.work.p50)}, "
                f"A/A {number(self.work.control() or 1)}; a sleep of 1 ms is late by {number(self.overshoot.p50)} ms "
                f"at the median, by {number(self.overshoot.p99)} ms at p99 (n {len(self.work.values)})"
            )
        return facts


def _kernel() -> str:
    # Version only: what a vendor appends may name the machine's owner.
    return platform.release().split("-")[0]
