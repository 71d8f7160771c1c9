"""Carries out what `budget.shedding` decides: the master does less when it is above its own share."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

from garrison.ipc.messages import Priority
from garrison.supervisor import logs
from garrison.supervisor.budget import shedding
from garrison.supervisor.budget.shedding import WHAT, Level, Share, State
from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.problems import Problems

GAUGE_FACTOR = 3.0
"""How much longer the time between two looks at the host is where gauges are shed."""

_SHED: dict[Level, frozenset[Priority]] = {
    Level.METRICS: frozenset({"metric"}),
    Level.EVENTS: frozenset({"metric", "event"}),
}

_log = logs.get("agent")


class Shedding:
    """Turns the knobs.

    Args:
        pipeline: Where events and live views go.
        problems: Where it is said that something is shed.
        emit_state: Emits the agent's own events.
    """

    def __init__(
        self, pipeline: Pipeline, problems: Problems, emit_state: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self.state = State()
        self._pipeline = pipeline
        self._problems = problems
        self._emit_state = emit_state

    def take(self, at: float, cpu_percent: float, memory_bytes: int, share: Share, *, dry_run: bool) -> None:
        """Judge what the master uses and act on it.

        Args:
            at: Monotonic seconds.
            cpu_percent: Percent of one core.
            memory_bytes: Bytes.
            share: What it may use.
            dry_run: Say what would be done and do nothing.
        """
        before = self.state.level
        self.state = shedding.judge(self.state, at, cpu_percent, memory_bytes, share)
        level = self.state.level
        if level == before:
            return
        if not dry_run:
            self._apply(level)
            if level > before and memory_bytes > share.memory_bytes:
                _give_back()
        self._tell(before, level, cpu_percent, memory_bytes, share, dry_run=dry_run)

    def factor(self) -> float:
        """Return what the time between two looks at the host is to be multiplied by."""
        return GAUGE_FACTOR if self.state.level >= Level.GAUGES else 1.0

    def _apply(self, level: Level) -> None:
        self._pipeline.tap.close(level >= Level.TAPS)
        logs.set_floor("warning" if level >= Level.LOGS else "debug")
        self._pipeline.shed = _SHED.get(level, frozenset())

    def _tell(
        self, before: Level, level: Level, cpu_percent: float, memory_bytes: int, share: Share, *, dry_run: bool
    ) -> None:
        step = max(before, level)
        verb = ("would give up" if dry_run else "gives up") if level > before else "takes up again"
        _log.warning("the master %s: %s (%s)", verb, WHAT[step], self.state.reason)
        self._emit_state(
            "master-sheds" if level > before else "master-recovers",
            {
                "level": int(level),
                "what": WHAT[step],
                "reason": self.state.reason,
                "cpu_percent": round(cpu_percent, 1),
                "cpu_limit": share.cpu_percent,
                "memory_bytes": memory_bytes,
                "memory_limit": share.memory_bytes,
                "dry_run": dry_run or None,
            },
        )
        would = "would be given up" if dry_run else "given up"
        texts = [
            f"the master is above its own share ({self.state.reason}): {would}: {WHAT[Level(n)]}"
            for n in range(1, level + 1)
        ]
        self._problems.replace("own share", texts)


def _give_back() -> None:
    """Return what is free in the heap to the kernel: Python and malloc keep it otherwise."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
