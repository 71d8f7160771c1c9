"""Caps without cgroups: what the master can do by looking and signalling, for ``cgroup_mode = "unprivileged"``.

It looks once a second, so a worker may be above its caps for that long: less than the kernel would hold,
and better than nothing. That is why the mode has to be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from garrison.supervisor.budget.watch import Verdict
from garrison.supervisor.cgroups.base import Cgroups, Usage
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.lifecycle import State
from garrison.supervisor.worker.supervisor import WorkerSupervisor

MAX_PAUSE_SECONDS = 30.0
"""Longest a worker stands still to pay back CPU time."""


@dataclass(slots=True)
class _Pauses:
    """How a process was held to its quota: looks, those that found it standing, and how long it stood."""

    looks: int = 0
    standing: int = 0
    seconds: float = 0.0
    at: float | None = None


class UserspaceCaps:
    """Holds workers to their memory cap by ending them and to their CPU quota by stopping them for a while.

    Args:
        cgroups: The unprivileged implementation: usage by polling, freezing by SIGSTOP.
    """

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._seen: dict[tuple[str, int], tuple[float, float]] = {}
        self._until: dict[tuple[str, int], float] = {}
        self._pauses: dict[tuple[str, int], _Pauses] = {}

    def enforce(self, workers: Mapping[str, WorkerSupervisor], now: float) -> None:
        """Look at every living worker and act.

        Args:
            workers: By name.
            now: Monotonic seconds.
        """
        living = set()
        for name, worker in workers.items():
            if worker.process is None or worker.limits is None or worker.state is State.FROZEN:
                continue
            key = (name, worker.process.epoch)
            if worker.state is State.STOPPING:
                if key in self._until:
                    # It cannot stop in good order while it stands still.
                    self._freeze(name, frozen=False)
                continue
            living.add(key)
            usage = self._cgroups.usage(name)
            limit = worker.limits.memory_max
            if limit is not None and usage.memory_working_bytes > limit:
                used = usage.memory_working_bytes
                # A cap, not a judgement: it holds with `dry_run` too, as the kernel's would.
                worker.condemn(
                    Verdict(
                        cause="memory",
                        detail=f"{used} bytes in use are over its memory_max of {limit} bytes (polled)",
                        resource="memory_max",
                        value=used,
                        limit=limit,
                    )
                )
                continue
            self._count(key, now)
            self._pace(key, usage.cpu_seconds, worker.limits.cpu_quota_percent, now)
        for gone in (self._seen.keys() | self._until.keys() | self._pauses.keys()) - living:
            self._seen.pop(gone, None)
            self._until.pop(gone, None)
            self._pauses.pop(gone, None)

    def throttling(self, worker: str, epoch: int, usage: Usage) -> Usage:
        """Return a process's counters with the pauses: a look stands for a period, a pause for throttling."""
        pauses = self._pauses.get((worker, epoch))
        if pauses is None:
            return usage
        return replace(usage, periods=pauses.looks, throttled_periods=pauses.standing, throttled_seconds=pauses.seconds)

    def _count(self, key: tuple[str, int], now: float) -> None:
        pauses = self._pauses.setdefault(key, _Pauses())
        pauses.looks += 1
        if key in self._until and pauses.at is not None:
            pauses.standing += 1
            pauses.seconds += max(0.0, now - pauses.at)
        pauses.at = now

    def _pace(self, key: tuple[str, int], cpu_seconds: float, quota_percent: float | None, now: float) -> None:
        if key in self._until:
            if now < self._until[key]:
                return
            del self._until[key]
            self._freeze(key[0], frozen=False)
            # The pause has paid for what was used before it.
            self._seen[key] = (now, cpu_seconds)
            return
        before = self._seen.get(key)
        self._seen[key] = (now, cpu_seconds)
        if before is None or quota_percent is None:
            return
        owed = (cpu_seconds - before[1]) * 100.0 / quota_percent - (now - before[0])
        if owed > 0 and self._freeze(key[0], frozen=True):
            self._until[key] = now + min(owed, MAX_PAUSE_SECONDS)

    def _freeze(self, worker: str, *, frozen: bool) -> bool:
        try:
            self._cgroups.freeze(worker, frozen)
        except CgroupError:
            # It ended meanwhile; its death is noticed elsewhere.
            return False
        return True
