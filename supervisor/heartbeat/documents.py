"""The documents of a heartbeat: one of the agent, one of each worker. Bounded in size; nothing here reads anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from garrison.supervisor import breaker as circuit
from garrison.supervisor.control.status import KillswitchStatus, StoreStatus
from garrison.supervisor.events.figures import Figures
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.sampler import Sample
from garrison.supervisor.worker.supervisor import WorkerSupervisor

AGENT_ACTION = "heartbeat"
WORKER_ACTION = "worker-heartbeat"
MAX_RANGES = 32
"""Most drop ranges in one document; what is left comes with the next heartbeat."""
MAX_TEXT = 300
MAX_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What is told of the agent.

    Attributes:
        interval_seconds: Time between two heartbeats: who has missed three should look.
        uptime_seconds: Of the master.
        pid: Of the master.
        version: Of the agent.
        cgroup_mode: How caps are enforced.
        cpu_percent: Of one core, master and nursery, since the last heartbeat; None: not known.
        memory_bytes: Of both, without what is shared with files; None: not known.
        rss_bytes: Resident set of the master; None: not known.
        fds: Its open files; None: not known.
        load: The host's load averages over 1, 5 and 15 minutes.
        config_hash: Of the configuration in force.
        shed_level: What the master gives up to stay in its share; 0: nothing.
        problems: What is wrong now.
    """

    interval_seconds: float
    uptime_seconds: float
    pid: int
    version: str
    cgroup_mode: str
    cpu_percent: float | None
    memory_bytes: int | None
    rss_bytes: int | None
    fds: int | None
    load: tuple[float, float, float] | None
    config_hash: str
    shed_level: int
    problems: list[str]


def agent_document(
    facts: AgentFacts,
    killswitch: KillswitchStatus,
    store: StoreStatus,
    figures: Figures,
    level: str,
    spool_level: str,
    workers: dict[str, int],
    events: dict[str, Any],
) -> dict[str, Any]:
    """Return the document of the agent.

    Args:
        facts: About the master.
        killswitch: As in the status.
        store: As in the status.
        figures: How full the way out is.
        level: The queue's phase.
        spool_level: The spool's.
        workers: How many there are in each state.
        events: As `accounting` returns it.
    """
    spool = figures.spool
    garrison: dict[str, Any] = {
        "interval_seconds": facts.interval_seconds,
        "uptime_seconds": round(facts.uptime_seconds, 1),
        "pid": facts.pid,
        "version": facts.version,
        "cgroup_mode": facts.cgroup_mode,
        "cpu_percent": facts.cpu_percent,
        "memory_bytes": facts.memory_bytes,
        "rss_bytes": facts.rss_bytes,
        "fds": facts.fds,
        "load": dict(zip(("1m", "5m", "15m"), facts.load, strict=True)) if facts.load else None,
        "config_hash": facts.config_hash,
        "killswitch": {"engaged": killswitch.engaged, "scopes": killswitch.scopes[:16]},
        "store": msgspec.to_builtins(store),
        "sink": {"backend": figures.sink, "error": figures.error[:MAX_TEXT]},
        "queue": {"bytes": figures.queue_bytes, "max_bytes": figures.queue_max_bytes, "level": level},
        "spool": None
        if spool is None
        else {
            "bytes": spool.bytes,
            "max_bytes": spool.max_bytes,
            "events": spool.events,
            "level": spool_level,
            "error": spool.error[:MAX_TEXT],
        },
        "shed_level": facts.shed_level,
        "problems": [text[:MAX_TEXT] for text in facts.problems[:MAX_PROBLEMS]],
        "problems_total": len(facts.problems),
        "workers": workers,
        "events": events,
    }
    return _document(AGENT_ACTION, garrison)


def worker_document(
    worker: WorkerSupervisor, sample: Sample | None, cpu_percent: float | None, now: float, events: dict[str, Any]
) -> dict[str, Any]:
    """Return the document of a worker.

    Args:
        worker: The worker.
        sample: The last one of its process; None: it does not run.
        cpu_percent: Of one core, since the last heartbeat or the start of the process; None: not known.
        now: Monotonic seconds.
        events: As `accounting` returns it.
    """
    process, breaker, configuration = worker.process, worker.breaker, worker.configuration
    if sample is not None and not sample.seconds:
        sample = None  # it has only just begun
    usage = sample.usage if sample is not None else None
    beat = process.last_beat if process is not None else None
    ready = process.ready_at if process is not None else None
    wait = circuit.may_start_in(breaker, now)
    garrison: dict[str, Any] = {
        "worker": worker.name,
        "state": worker.state.value,
        "desired": worker.desired.action,
        "desired_by": worker.desired.decided_by,
        "held": worker.held_reason[:MAX_TEXT] or None,
        "pid": process.pid if process is not None else None,
        "epoch": process.epoch if process is not None else None,
        "uptime_seconds": round(now - ready, 1) if ready is not None else None,
        "starts": worker.starts,
        "restarts": worker.restarts,
        "cpu_percent": cpu_percent,
        "memory_bytes": usage.memory_working_bytes if usage is not None else None,
        "processes": usage.pids if usage is not None else None,
        "throttled_seconds": round(usage.throttled_seconds, 3) if usage is not None else None,
        "fds": sample.descriptors if sample is not None else None,
        "breaker": {
            "state": breaker.phase,
            "trips": breaker.trips,
            "level": breaker.level,
            "cause": breaker.cause,
            "retry_in_seconds": round(wait, 1) if wait else None,
        },
        "config": {
            "revision": configuration.offer.revision,
            "hash": configuration.offer.hash,
            "status": configuration.status,
            "error": configuration.error[:MAX_TEXT] if configuration.error else None,
        },
        "last_error": worker.last_error[:MAX_TEXT] if worker.last_error else None,
        "queued_events": beat.queued if beat is not None else None,
        "queued_bytes": beat.queued_bytes if beat is not None else None,
        "events": events,
    }
    return _document(WORKER_ACTION, garrison)


def gone_document(name: str, events: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a worker that is no longer defined, while there is news of its events."""
    return _document(WORKER_ACTION, {"worker": name, "state": "removed", "events": events})


def accounting(ledger: WorkerLedger) -> tuple[dict[str, Any], int]:
    """Return what became of a worker's events, and up to which change of its drop ranges this tells of them.

    The counts are taken at one moment, so that ``emitted = delivered + dropped + in_flight`` holds in every document.
    """
    record = ledger.record()
    dropped = {reason: count for reason, count in record.dropped.items() if count}
    told = record.ranges[:MAX_RANGES]
    events = {
        "emitted": record.emitted,
        "delivered": record.delivered,
        "in_flight": record.emitted - record.delivered - sum(dropped.values()),
        "dropped": dropped,
        "drops": [
            {
                "epoch": known.epoch,
                "priority": known.priority,
                "first": known.first,
                "last": known.last,
                "reason": known.reason,
            }
            for known in told
        ],
        "drops_waiting": len(record.ranges) - len(told),
        "drops_forgotten": record.forgotten,
        "through": [
            {"epoch": entry.epoch, "priority": entry.priority, "last": entry.booked, "claimed": entry.claimed}
            for entry in record.processes
        ],
    }
    return events, told[-1].number if told else 0


def _document(action: str, garrison: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": {"kind": "metric", "category": ["host"], "type": ["info"], "action": action},
        "garrison": _known(garrison),
    }


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields without those that say nothing."""
    found = {key: _known(value) if isinstance(value, dict) else value for key, value in fields.items()}
    return {key: value for key, value in found.items() if value not in (None, "", [])}
