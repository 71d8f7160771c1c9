"""Samples and budgets for tests of the watch."""

from __future__ import annotations

from typing import Any

from garrison.supervisor.cgroups.base import Usage
from garrison.supervisor.sampler import Sample
from garrison.supervisor.settings import Budget

MIB = 1024 * 1024
BUDGET = Budget()


def sample(at: float, **changes: Any) -> Sample:
    """Return a sample of five seconds of a worker that does nothing but beat."""
    usage = Usage(
        memory_working_bytes=changes.pop("memory", 10 * MIB),
        pids=changes.pop("pids", 4),
        periods=changes.pop("seen", 0),
    )
    fields: dict[str, Any] = {"seconds": 5.0, "cpu_percent": 0.5, "beats": 1, "periods": 50, "descriptors": 10}
    return Sample(at=at, usage=usage, **{**fields, **changes})
