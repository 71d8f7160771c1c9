"""Fills the status document from the living parts of the agent."""

from __future__ import annotations

import msgspec

from garrison.supervisor import breaker as circuit
from garrison.supervisor.cgroups.base import Cgroups
from garrison.supervisor.control.status import (
    BreakerStatus,
    ConfigStatus,
    EventsStatus,
    KillswitchStatus,
    LimitsStatus,
    StoreStatus,
    WorkerStatus,
)
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.killswitch import KillSwitch
from garrison.supervisor.lifecycle import ALIVE, State
from garrison.supervisor.problems import MAX_TEXT
from garrison.supervisor.sampler import Sampler
from garrison.supervisor.stores import base as stores
from garrison.supervisor.worker.supervisor import WorkerSupervisor

BAD_STATES = frozenset({State.FAILED, State.TRIPPED, State.LATCHED})


def worker_status(worker: WorkerSupervisor, cgroups: Cgroups, sampler: Sampler, now: float) -> WorkerStatus:
    """Return one worker's part of the status.

    Args:
        worker: The worker.
        cgroups: Where its node is.
        sampler: Where its usage is known.
        now: Monotonic seconds.
    """
    process = worker.process
    limits = worker.limits if process is not None and worker.limits is not None else worker.caps
    cpu_percent, memory_bytes = 0.0, 0
    if process is not None and worker.state in ALIVE:
        sample = sampler.peek(worker.name, process.epoch, now)
        cpu_percent, memory_bytes = round(sample.cpu_percent, 2), sample.usage.memory_working_bytes
    configuration = worker.configuration
    return WorkerStatus(
        name=worker.name,
        desired=worker.desired.action,
        state=worker.state.value,
        pid=process.pid if process is not None else 0,
        cgroup=cgroups.path(worker.name),
        cpu_percent=cpu_percent,
        memory_bytes=memory_bytes,
        limits=LimitsStatus(
            cpu_quota_percent=limits.cpu_quota_percent,
            memory_high=limits.memory_high,
            memory_max=limits.memory_max,
            pids_max=limits.pids_max,
        ),
        breaker=breaker_status(worker, now),
        config=ConfigStatus(
            revision=configuration.offer.revision,
            hash=configuration.offer.hash,
            status=configuration.status,
            error=configuration.error,
        ),
        events=events_status(worker.ledger),
        restarts=worker.restarts,
        desired_by=worker.desired.decided_by,
        last_error=worker.last_error,
        held=worker.held_reason,
    )


def events_status(ledger: WorkerLedger) -> EventsStatus:
    """Return what became of a worker's events, all of it at one moment."""
    record = ledger.record()
    dropped = {reason: count for reason, count in record.dropped.items() if count}
    return EventsStatus(
        emitted=record.emitted,
        delivered=record.delivered,
        dropped=dropped,
        in_flight=record.emitted - record.delivered - sum(dropped.values()),
    )


def breaker_status(worker: WorkerSupervisor, now: float) -> BreakerStatus:
    """Return the breaker's part of a worker's status."""
    breaker, verdict = worker.breaker, worker.guard.verdict
    wait = circuit.may_start_in(breaker, now)
    status = BreakerStatus(
        state=breaker.phase,
        trips=breaker.trips,
        cause=breaker.cause,
        retry_in_seconds=round(wait, 1) if wait and worker.state in BAD_STATES else None,
        level=breaker.level,
        dry_run=worker.dry_run,
    )
    if verdict is not None:
        status.reason = verdict.detail
        if verdict.resource:
            status.resource, status.value, status.limit = verdict.resource, verdict.value, verdict.limit
            status.window_seconds = verdict.window_seconds
    if breaker.phase == "throttled":
        status.throttled_to_percent = breaker.cap_percent
        status.throttled_for_seconds = round(max(0.0, breaker.throttled_until - now), 1)
    elif breaker.phase == "probation":
        status.probation_for_seconds = round(max(0.0, breaker.probation_until - now), 1)
    return status


def worker_statuses(
    workers: dict[str, WorkerSupervisor], cgroups: Cgroups, sampler: Sampler, now: float
) -> list[WorkerStatus]:
    """Return every worker's part of the status, by name."""
    return [worker_status(workers[name], cgroups, sampler, now) for name in sorted(workers)]


def killswitch_status(killswitch: KillSwitch) -> KillswitchStatus:
    """Return the killswitch's part of the status."""
    return msgspec.convert(killswitch.describe(), KillswitchStatus)


def store_status(store: stores.StoreStatus, lease_id: str) -> StoreStatus:
    """Return the store's part of the status; `lease_id` is that of the registration, empty without one."""
    return StoreStatus(
        backend=store.backend,
        connected=store.connected,
        endpoint=store.endpoint,
        revision=store.revision,
        lease_id=lease_id,
        stale_seconds=int(store.stale_seconds),
        connected_seconds=int(store.connected_seconds),
        error=store.error[:MAX_TEXT],
    )


def summary(workers: dict[str, WorkerSupervisor], killed: bool) -> str:
    """Return the one line for the service manager: how many of the wanted workers run."""
    if killed:
        return "killswitch engaged: no worker runs"
    wanted = [worker for worker in workers.values() if worker.desired.action != "stop"]
    running = [worker for worker in wanted if worker.state in ALIVE]
    bad = [f"{worker.name} {worker.state.value}" for worker in workers.values() if worker.state in BAD_STATES]
    return f"{len(running)} of {len(wanted)} workers run" + (f"; {', '.join(bad)}" if bad else "")
