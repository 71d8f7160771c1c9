"""What a worker's supervisor needs from the agent around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from garrison.ipc.messages import LogLevel
from garrison.supervisor.breaker import Policy
from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.nursery.client import NurseryClient
from garrison.supervisor.sampler import Sampler
from garrison.supervisor.worker.launch import Place


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What a worker's process is held by where no cgroup does.

    Attributes:
        rlimits: (resource, soft, hard) of setrlimit(2).
        nice: Niceness, 0 to 19.
        subreaper: Whether its orphaned descendants come to it instead of the nursery, so that they stay findable below
            it. It does not reap them, so they may stay zombies while it lives.
    """

    rlimits: tuple[tuple[int, int, int], ...] = ()
    nice: int = 0
    subreaper: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """The surroundings of all workers of one agent.

    Attributes:
        host: Host name.
        state_dir: Where the workers' own folders are.
        grace: Returns the seconds a worker may take to stop in good order.
        policy: The breaker's numbers.
        place: Cgroups, their lock and the killswitch.
        nursery: Returns a living nursery, starting one where there is none.
        ledger: Returns the ledger of a worker.
        forward: Takes stamped events on.
        congested: Tells whether the sink is behind, so that workers should be read more slowly.
        emit_state: Emits an agent's own ``state`` event: action, fields.
        log: Writes a line: level, source, text.
        next_epoch: Returns the number of a worker's next process.
        changed: Called after every transition.
        process_limits: Returns what holds the child itself, beside or instead of its cgroup.
        sampler: Where usage is read.
        remember: Called when what is kept on disk of a breaker has changed.
        dry_run: Returns whether breaches are only reported.
        acks: Whether workers are told which of their events are safe.
    """

    host: str
    state_dir: str
    grace: Callable[[], float]
    policy: Policy
    place: Place
    nursery: Callable[[], Awaitable[NurseryClient]]
    ledger: Callable[[str], WorkerLedger]
    forward: Callable[[Batch], None]
    congested: Callable[[], bool]
    emit_state: Callable[[str, dict[str, Any]], None]
    log: Callable[[LogLevel, str, str], None]
    next_epoch: Callable[[str], int]
    changed: Callable[[], None]
    process_limits: Callable[[Limits], ProcessLimits]
    sampler: Sampler
    remember: Callable[[], None]
    dry_run: Callable[[], bool]
    acks: bool = False
