"""What every benchmark is given: a folder, how much to measure, until when, and the noise control."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.noise import Noise


@dataclass
class Context:
    """One run of the benchmarks.

    Attributes:
        folder: Each benchmark makes folders of its own in it.
        quick: Fewer samples, for a look or a test; percentiles then mean little.
        samples: How many samples, instead of what the benchmark itself would take; 0 for that.
        noise: Takes control samples.
    """

    folder: Path
    quick: bool = False
    samples: int = 0
    noise: Noise = field(default_factory=Noise)

    def count(self, full: int, quick: int) -> int:
        """Return how many samples to take."""
        return self.samples or (quick if self.quick else full)

    def seconds(self, full: float, quick: float) -> float:
        """Return how long to do something."""
        return quick if self.quick else full


class Deadline:
    """A bound on a benchmark's time: it takes fewer samples on a slow machine instead of taking longer.

    Args:
        seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """True when no further sample should be begun."""
        return time.monotonic() > self._at
