"""What in a status report needs an operator's attention, and what can be done about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from garrison.fleet.cli.text import duration, plural
from garrison.supervisor.control.status import (
    KILLSWITCH_FILE,
    SCOPE_FILE,
    SCOPE_LOCAL,
    StatusReport,
    WorkerStatus,
)

UNHEALTHY_STATES: Final = frozenset({"tripped", "latched", "failed", "killed"})


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong. `grave` makes ``garrison status`` end with 3."""

    what: str
    remedy: str = ""
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where this host is told things: the prefix of the store's keys, and the killswitch file."""

    prefix: str = "/hids"
    killswitch_file: str = KILLSWITCH_FILE


DEFAULT_PLACES: Final = Places()


def troubles(report: StatusReport, places: Places = DEFAULT_PLACES) -> list[Trouble]:
    """Return all that is wrong, the gravest first."""
    found = _of_agent(report, places)
    for worker in report.workers:
        found += _of_worker(worker)
    return sorted(found, key=lambda trouble: not trouble.grave)


def release_remedy(scope: str, backend: str = "", places: Places = DEFAULT_PLACES) -> str:
    """Return how the killswitch of a scope is released.

    Args:
        scope: One of `KillswitchStatus.scopes`.
        backend: The store's backend, as in the status; empty: not known.
        places: Those of this host's configuration.
    """
    if scope == SCOPE_LOCAL:
        return "`garrison release` on this host"
    if scope == SCOPE_FILE or scope.startswith("/"):
        return f"remove the file {places.killswitch_file if scope == SCOPE_FILE else scope} on this host"
    key = f"{places.prefix}/server/config/{scope}/killswitch"
    if backend == "directory":
        return f"write `off` to {key} in the directory store"
    if backend == "etcd":
        return f"`etcdctl put {key} off`"
    return f"set {key} to `off` in the store"


def _of_agent(report: StatusReport, places: Places) -> list[Trouble]:
    agent = report.agent
    found: list[Trouble] = []
    if agent.killswitch.engaged:
        scopes = agent.killswitch.scopes
        ways = "; ".join(f"{scope}: {release_remedy(scope, agent.store.backend, places)}" for scope in scopes)
        found.append(Trouble("the killswitch is engaged: no worker runs", ways, grave=True))
    store = agent.store
    if not store.connected:
        age = f", {duration(store.stale_seconds)} old" if store.stale_seconds else ""
        where = f" at {store.endpoint}" if store.endpoint else ""
        found.append(
            Trouble(
                store.error
                or f"the {store.backend or 'configuration'} store{where} is not reachable; the agent goes on with the"
                f" last good configuration{age}",
                "check the store and the way to it (`garrison doctor`); nothing has to be done here",
            )
        )
    found += [Trouble(problem) for problem in agent.problems if store.connected or problem != store.error]
    return found


def _of_worker(worker: WorkerStatus) -> list[Trouble]:
    name, breaker = worker.name, worker.breaker
    found: list[Trouble] = []
    cause = breaker.cause or "an unknown cause"
    error = f": {worker.last_error}" if worker.last_error else ""
    if worker.state == "latched":
        found.append(
            Trouble(
                f"{name} stays off after {plural(breaker.trips, 'trip')}, the last for {cause}{error}",
                f"correct the cause, then `garrison reset {name}` (a changed configuration does it too)",
                grave=True,
            )
        )
    elif worker.state == "tripped":
        retry = "" if breaker.retry_in_seconds is None else f" in {duration(breaker.retry_in_seconds)}"
        found.append(
            Trouble(
                f"{name} was stopped by its breaker for {cause} ({plural(breaker.trips, 'trip')}){error}",
                f"it tries again by itself{retry}; `garrison reset {name}` does so now",
                grave=True,
            )
        )
    elif worker.state == "failed":
        found.append(
            Trouble(
                f"{name} cannot be started{error or ', for a reason that was not reported'}",
                f"`garrison doctor` says what this host lacks; then `garrison reset {name}`",
                grave=True,
            )
        )
    elif error:
        found.append(Trouble(f"{name}, last error{error}"))
    if worker.held:
        found.append(Trouble(f"{name} gives way to the host: {worker.held}", "nothing has to be done here"))
    if breaker.state == "throttled":
        found.append(
            Trouble(
                f"{name} is throttled for {cause}: {breaker.reason or 'no reason given'}",
                "it has its quota back when it does with less, else it is tripped",
            )
        )
    if worker.config.status == "rejected":
        found.append(
            Trouble(
                f"{name} has rejected its configuration of revision {worker.config.revision}:"
                f" {worker.config.error or 'no reason given'}",
                "correct the value in the store or the file; until then the one before stays in force",
                grave=True,
            )
        )
    return found
