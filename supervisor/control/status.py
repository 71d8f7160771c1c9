"""The documents that control operations answer: the contract of ``garrison status --json`` and its kin.

The master fills these structs; the command line prints them. Fields are only ever added, with a default, so
that either side can be the newer one; that is also why states are plain strings here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

WORKER_STATES: Final = (
    "stopped",
    "starting",
    "running",
    "throttled",
    "frozen",
    "stopping",
    "tripped",
    "probation",
    "latched",
    "killed",
    "failed",
)
"""The states of a worker."""

SCOPE_LOCAL: Final = "local"
"""In `KillswitchStatus.scopes`: engaged by ``garrison kill``."""

SCOPE_FILE: Final = "file"
"""In `KillswitchStatus.scopes`: engaged by the file `KILLSWITCH_FILE`."""

KILLSWITCH_FILE: Final = "/etc/garrison/killswitch"
"""The file that engages the killswitch on one host."""


class KillswitchStatus(msgspec.Struct, kw_only=True):
    """The killswitch.

    Attributes:
        scopes: What engages it: store scopes (``@all``, ``@group/<name>``, a hostname), `SCOPE_FILE`,
            `SCOPE_LOCAL`.
    """

    engaged: bool = False
    scopes: list[str] = []
    reason: str = ""


class StoreStatus(msgspec.Struct, kw_only=True):
    """The configuration store.

    Attributes:
        lease_id: Of the host's registration in etcd, in hexadecimal; empty without one.
        stale_seconds: Age of what is in force, 0 while connected.
        connected_seconds: For how long it has been connected, 0 while it is not.
        error: Why it is not connected, or works in a lesser way; one of the agent's ``problems`` too.
    """

    backend: str = ""
    connected: bool = False
    endpoint: str = ""
    revision: int = 0
    lease_id: str = ""
    stale_seconds: int = 0
    connected_seconds: int = 0
    error: str = ""


class AgentStatus(msgspec.Struct, kw_only=True):
    """The master. Each of ``problems`` says what is wrong and what to do about it."""

    pid: int = 0
    version: str = ""
    uptime_seconds: int = 0
    cgroup_mode: str = ""
    killswitch: KillswitchStatus = msgspec.field(default_factory=KillswitchStatus)
    store: StoreStatus = msgspec.field(default_factory=StoreStatus)
    problems: list[str] = []


class LimitsStatus(msgspec.Struct, kw_only=True):
    """Caps in force: percent of one core, bytes, processes and threads; None where there is none."""

    cpu_quota_percent: float | None = None
    memory_high: int | None = None
    memory_max: int | None = None
    pids_max: int | None = None


class BreakerStatus(msgspec.Struct, kw_only=True):
    """The circuit breaker of a worker; ``closed`` is the good state.

    Attributes:
        state: ``closed``, ``throttled``, ``open``, ``probation`` or ``latched``.
        trips: How often it has opened, ever.
        cause: Of the last trip or throttle.
        retry_in_seconds: When the next start is.
        level: How many trips count at present: the wait doubles with each, the fifth latches.
        reason: The last breach in words, since the master started.
        resource: What was broken, such as ``cpu_trip_percent``; the next three are its numbers.
        value: What was measured.
        limit: What was allowed.
        window_seconds: For how long.
        throttled_to_percent: CPU quota while throttled, percent of one core; None otherwise.
        throttled_for_seconds: What is left of that.
        probation_for_seconds: What is left of a probation; None where it is on none.
        dry_run: Whether breaches are only reported.
    """

    state: str = "closed"
    trips: int = 0
    cause: str | None = None
    retry_in_seconds: float | None = None
    level: int = 0
    reason: str | None = None
    resource: str | None = None
    value: float | None = None
    limit: float | None = None
    window_seconds: float | None = None
    throttled_to_percent: float | None = None
    throttled_for_seconds: float | None = None
    probation_for_seconds: float | None = None
    dry_run: bool = False


class ConfigStatus(msgspec.Struct, kw_only=True):
    """The configuration of a worker: ``pending``, ``applied`` or ``rejected``, then with the error."""

    revision: int = 0
    hash: str = ""
    status: str = "pending"
    error: str | None = None


class EventsStatus(msgspec.Struct, kw_only=True):
    """Events of a worker, over all restarts; ``dropped`` counts by reason. The first is the sum of the others."""

    emitted: int = 0
    delivered: int = 0
    dropped: dict[str, int] = {}
    in_flight: int = 0


class WorkerStatus(msgspec.Struct, kw_only=True):
    """One worker.

    Attributes:
        cpu_percent: Of one core, over the last sample.
        memory_bytes: What counts for the breaker: anonymous and unreclaimable kernel memory.
        desired_by: Who decides ``desired``: a store key, ``local``, or ``default``.
        last_error: Why it last failed to start or ended badly; None where it never did.
        held: Why it stands still or does not run although it should: what the host needs; empty where nothing does.
    """

    name: str
    desired: str = "start"
    state: str = "stopped"
    pid: int = 0
    cgroup: str = ""
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    limits: LimitsStatus = msgspec.field(default_factory=LimitsStatus)
    breaker: BreakerStatus = msgspec.field(default_factory=BreakerStatus)
    config: ConfigStatus = msgspec.field(default_factory=ConfigStatus)
    events: EventsStatus = msgspec.field(default_factory=EventsStatus)
    restarts: int = 0
    desired_by: str = ""
    last_error: str | None = None
    held: str = ""


class StatusReport(msgspec.Struct, kw_only=True):
    """What ``status`` answers."""

    host: str
    agent: AgentStatus
    workers: list[WorkerStatus]


class WorkerResult(msgspec.Struct, kw_only=True):
    """What ``start``, ``stop``, ``freeze``, ``thaw`` and ``reset`` answer: the worker right after the request.

    A ``desired`` other than what was asked for means that something else decides: ``desired_by`` names it.
    ``message`` is anything else that the operator should know.
    """

    name: str
    state: str
    desired: str
    desired_by: str = ""
    message: str = ""


class HistoryEntry(msgspec.Struct, kw_only=True):
    """One thing that has happened. ``at`` is in seconds since the epoch; an empty ``worker`` is the agent itself."""

    at: float
    number: int
    worker: str
    action: str
    facts: dict[str, Any] = {}


class HistoryReport(msgspec.Struct, kw_only=True):
    """What ``history`` answers: oldest first."""

    entries: list[HistoryEntry] = []


class KillswitchResult(msgspec.Struct, kw_only=True):
    """What ``kill`` and ``release`` answer: the killswitch right after the request.

    Attributes:
        milliseconds: From the request's arrival to the end of the last worker process (``kill``), or to the
            decision (``release``).
        processes: How many processes were killed.
        message: Anything else that the operator should know.
    """

    engaged: bool
    scopes: list[str] = []
    reason: str = ""
    milliseconds: float = 0.0
    processes: int = 0
    message: str = ""
