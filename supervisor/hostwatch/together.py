"""Carries out what `budget.aggregate` decides about master, nursery and workers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from garrison.supervisor import logs
from garrison.supervisor.budget import aggregate, sharing, watch
from garrison.supervisor.budget.aggregate import Budget, Member, Own, State, Verdict, cpu_room
from garrison.supervisor.lifecycle import State as Life
from garrison.supervisor.sampler import Sample
from garrison.supervisor.settings import AggregateBudget
from garrison.supervisor.worker.supervisor import WorkerSupervisor

STOPPED_SHARE = 0.2
"""Share of the periods in which the kernel stopped all workers at their common quota that means it is used up."""
REPORT_SECONDS = 60.0
"""With `dry_run` nothing changes, so the same verdict is reported again after this time only."""

_log = logs.get("aggregate")


class Together:
    """Holds all of the agent together to its budget.

    Args:
        emit_state: Emits the agent's own events.
    """

    def __init__(self, emit_state: Callable[[str, dict[str, Any]], None]) -> None:
        self.state = State()
        self.sharing = sharing.State()
        self._emit_state = emit_state
        self._reported: dict[tuple[str, str], float] = {}

    def take(
        self,
        at: float,
        own: Own,
        samples: Mapping[str, Sample],
        workers: Mapping[str, WorkerSupervisor],
        budget: AggregateBudget,
        *,
        all_workers: Sample,
    ) -> tuple[Verdict, ...]:
        """Judge a look at everything and act on it; returns what was decided.

        Args:
            at: Monotonic seconds.
            own: Master and nursery.
            samples: Of each worker that runs.
            workers: By name.
            budget: What all may use.
            all_workers: Of the node above the workers.
        """
        members = [_member(workers[name], sample) for name, sample in samples.items() if name in workers]
        allowed = Budget(cpu_percent=budget.cpu_quota_percent, memory_max=budget.memory_max)
        stopped = all_workers.throttled_share >= STOPPED_SHARE and all_workers.periods > 1
        self._share(samples, workers, cpu_room(own, allowed), stopped_by_quota=stopped)
        # Where it is shared out nobody meets the common quota any more, though it is used up as before.
        stopped = stopped or self.sharing.active
        self.state, verdicts = aggregate.judge(self.state, at, own, members, allowed, stopped_by_quota=stopped)
        for verdict in verdicts:
            self._act(verdict, workers[verdict.worker], at)
        return verdicts

    def _share(
        self,
        samples: Mapping[str, Sample],
        workers: Mapping[str, WorkerSupervisor],
        room: float,
        *,
        stopped_by_quota: bool,
    ) -> None:
        """Share the common CPU budget out while it is used up, and tell when that begins and ends."""
        before = self.sharing
        members = [
            _sharer(workers[name], sample)
            for name, sample in samples.items()
            if name in workers and not workers[name].dry_run
        ]
        self.sharing = sharing.share(before, members, room, stopped_by_quota=stopped_by_quota)
        for name, worker in workers.items():
            worker.share(self.sharing.caps.get(name))
        if self.sharing.active != before.active:
            used = round(sum(member.cpu_percent for member in members), 2)
            facts = {"resource": "cpu", "value": used, "limit": round(room, 2), "workers": len(members)}
            action = "aggregate-shared" if self.sharing.active else "aggregate-unshared"
            text = f"the workers use {used:g} % of the {room:.1f} % of one core that they may together: " + (
                "each gets a share of that" if self.sharing.active else "each has its own budget again"
            )
            _log.info("%s: %s", action, text)
            self._emit_state(action, {**facts, "reason": text})

    def _act(self, verdict: Verdict, worker: WorkerSupervisor, at: float) -> None:
        key = verdict.worker, verdict.action
        if worker.dry_run:
            self._reported = {known: when for known, when in self._reported.items() if at - when < REPORT_SECONDS}
            if key in self._reported:
                return
            self._reported[key] = at
        _log.warning("%s %s: %s", verdict.action, verdict.worker, verdict.detail)
        facts = {key: value for key, value in msgspec.structs.asdict(verdict).items() if key != "detail"}
        self._emit_state("aggregate-breach", {**facts, "reason": verdict.detail, "dry_run": worker.dry_run or None})
        throttled = verdict.action == "throttle"
        act = worker.throttle if throttled else worker.trip
        act(
            watch.Verdict(
                cause="aggregate",
                detail=verdict.detail,
                resource=verdict.resource,
                value=float(verdict.value),
                limit=float(verdict.limit),
                window_seconds=aggregate.CPU_SECONDS if throttled else 0.0,
            )
        )


def _member(worker: WorkerSupervisor, sample: Sample) -> Member:
    budget = worker.desired.budget
    return Member(
        name=worker.name,
        cpu_percent=sample.cpu_percent,
        cpu_share=budget.cpu_trip_percent,
        memory_bytes=sample.usage.memory_working_bytes,
        memory_high=budget.memory_high,
        throttled=worker.state is Life.THROTTLED,
    )


def _sharer(worker: WorkerSupervisor, sample: Sample) -> sharing.Member:
    return sharing.Member(
        name=worker.name,
        cpu_percent=sample.cpu_percent,
        stopped_share=sample.throttled_share,
        quota_percent=worker.guard.quota_percent(worker.desired.budget),
        weight=worker.caps.cpu_weight or 1,
    )
