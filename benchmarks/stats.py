"""Samples and what is said about them. Pure.

Medians and nearest-rank percentiles, because a mean of latencies hides exactly what a benchmark is for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest value that at least `percent` of all are not above.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass
class Series:
    """Measurements of one thing, in the order in which they were taken.

    Attributes:
        name: What was measured.
        unit: Of every value.
    """

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Take one measurement."""
        self.values.append(value)

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The 99th percentile; with fewer than 100 values the largest one."""
        return percentile(self.values, 99)

    def control(self) -> float | None:
        """Return the A/A control: the median of every second value over the median of the others.

        Both halves measure the same thing, alternated. How far this is from 1 is how far a ratio of the table
        may be off by chance. None with fewer than four values.
        """
        if len(self.values) < 4:
            return None
        other = statistics.median(self.values[1::2])
        return statistics.median(self.values[::2]) / other if other else None

    def text(self) -> str:
        """Return the series as a table cell: median (p99; range; n)."""
        if not self.values:
            return "not measured"
        low, high = number(min(self.values)), number(max(self.values))
        if len(self.values) == 1:
            return f"**{low} {self.unit}** (n 1)"
        return f"**{number(self.p50)} {self.unit}** (p99 {number(self.p99)}; {low}–{high}; n {len(self.values)})"

    def document(self) -> dict[str, Any]:
        """Return everything about it, for the JSON file."""
        return {
            "name": self.name,
            "unit": self.unit,
            "p50": self.p50 if self.values else None,
            "p99": self.p99 if self.values else None,
            "min": min(self.values, default=None),
            "max": max(self.values, default=None),
            "n": len(self.values),
            "control": self.control(),
            "values": self.values,
        }


def number(value: float) -> str:
    """Return a number with three significant digits, thousands separated, never in scientific notation."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"
