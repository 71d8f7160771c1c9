"""What the keys of a fleet say about one host: gone, killed, not confirmed, desired beside actual. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from garrison.supervisor.desired import LOCAL
from garrison.supervisor.keys import KeyGrammarError, check_component
from garrison.supervisor.presence.document import HostStatus, Registration
from garrison.supervisor.stores.values import Action, ValueRefusedError, action_of, killswitch_of

Mark: TypeAlias = Literal["gone", "duplicate", "killed", "unconfirmed", "differs", "problem", "online"]

MARKS: Final[dict[Mark, str]] = {
    "gone": "expected, and not registered: it has keys of its own, or is in the list of expected hosts",
    "duplicate": "registered under this name by a machine that is registered under another name too",
    "killed": "its status says that the killswitch is engaged",
    "unconfirmed": "a key wants something of it that its status does not say yet; within a minute that is no fault",
    "differs": "a worker is not in the state that the host itself wants it in",
    "problem": "the agent reports a problem, a rejected configuration or an open breaker",
    "online": "registered, on a lease that lives",
}
"""What is said of hosts, the gravest first; a host's state is the first that holds."""

ATTENTION: Final[frozenset[Mark]] = frozenset({"gone", "duplicate", "killed", "unconfirmed", "differs"})
"""With one of these in a listing the command ends with 3."""

_AS_WANTED: Final[dict[str, frozenset[str]]] = {
    "start": frozenset({"running", "throttled", "probation", "starting"}),
    "stop": frozenset({"stopped", "stopping"}),
    "freeze": frozenset({"frozen"}),
}
MAX_NOTES: Final = 8


@dataclass(slots=True)
class FleetKeys:
    """What the keys below ``/server/config/`` want, by scope; only what can be confirmed by a status.

    Attributes:
        killed: Whether the killswitch of a scope is engaged.
        actions: What is wanted of workers; None: a value that cannot be read, which leaves the old one in force.
        hosts: Hosts with a key of their own.
        unknown: Keys that are none of the contract.
    """

    killed: dict[str, bool] = field(default_factory=dict)
    actions: dict[str, dict[str, Action | None]] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)
    unknown: int = 0

    def take(self, rest: str, value: bytes) -> None:
        """Take one key; `rest` is what stands behind ``/server/config/``."""
        scope, tail = split_scope(rest)
        if not scope or not tail:
            self.unknown += 1
            return
        if not scope.startswith("@"):
            self.hosts.add(scope)
        match tail:
            case ["killswitch"]:
                try:
                    self.killed[scope] = killswitch_of(value).engaged
                except ValueRefusedError:
                    self.killed[scope] = True  # as the agents have it
            case ["worker", worker]:
                try:
                    self.actions.setdefault(scope, {})[worker] = action_of(value)
                except ValueRefusedError:
                    self.actions.setdefault(scope, {})[worker] = None

    def killed_by(self, scopes: Iterable[str]) -> list[str]:
        """Return those scopes whose killswitch is engaged."""
        return [scope for scope in scopes if self.killed.get(scope)]

    def wanted(self, scopes: Iterable[str], worker: str) -> tuple[Action | None, str]:
        """Return what is wanted of a worker, and by which scope; no scope: no key says anything."""
        for scope in scopes:
            actions = self.actions.get(scope)
            if actions is not None and worker in actions:
                return actions[worker], scope
        return None, ""


def split_scope(rest: str) -> tuple[str, list[str]]:
    """Return the scope and the components behind it, of a key without what stands before the scope."""
    parts = rest.split("/")
    taken = 2 if parts[0] == "@group" else 1
    scope = "/".join(parts[:taken])
    if scope.startswith("@") and not (scope == "@all" or (taken == 2 and len(parts) > 1 and parts[1])):
        return "", []
    return scope, parts[taken:]


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """One worker of a host.

    Attributes:
        name: Its name.
        desired: What the host itself says that it wants.
        desired_by: Who decides that, as the host says.
        state: What it is doing.
        wanted: What the keys want; empty: nothing.
    """

    name: str
    desired: str
    desired_by: str
    state: str
    wanted: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What is known of one host.

    Attributes:
        host: Its name.
        marks: All that holds of it, the gravest first.
        groups: As the host says.
        version: Of the agent.
        ip_addresses: Of the host.
        started: When the agent started.
        killswitch: The scopes that engage it, as the host says.
        workers: Its workers.
        notes: Why the marks, for people; at most `MAX_NOTES`.
    """

    host: str
    marks: tuple[Mark, ...]
    groups: tuple[str, ...] = ()
    version: str = ""
    ip_addresses: tuple[str, ...] = ()
    started: str = ""
    killswitch: tuple[str, ...] = ()
    workers: tuple[WorkerLine, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> Mark:
        """The gravest of its marks."""
        return self.marks[0]


def gone(host: str, why: str) -> Host:
    """Return a host that should be there and is not."""
    return Host(host, ("gone",), notes=(why,))


def judge(
    host: str,
    registration: Registration | None,
    status: HostStatus | None,
    keys: FleetKeys,
    *,
    leased: bool = True,
    twin: str = "",
) -> Host:
    """Return what holds of a host whose registration is there.

    Args:
        host: Its name.
        registration: What the key says; None: it cannot be read.
        status: What it says of itself; None: nothing that can be read.
        keys: What operations want.
        leased: The registration is on a lease, so that it goes when the agent does.
        twin: Another name under which this machine is registered.
    """
    marks: set[Mark] = {"online" if leased else "gone"}
    notes: list[str] = []
    if not leased:
        notes.append("its registration is on no lease: no agent keeps it; delete the key")
    if registration is None:
        marks.add("problem")
        notes.append("its registration cannot be read")
        registration = Registration()
    if twin:
        marks.add("duplicate")
        notes.append(f"the machine is registered as {twin} too (machine-id {registration.machine_id})")
    workers: tuple[WorkerLine, ...] = ()
    if status is None:
        marks.add("unconfirmed")
        notes.append("it has no status")
    else:
        scopes = (host, *(f"@group/{name}" for name in status.groups), "@all")
        _judge_killswitch(status, keys.killed_by(scopes), marks, notes)
        workers = tuple(_judge_workers(status, keys, scopes, marks, notes))
        if status.problems:
            marks.add("problem")
            notes += status.problems
    return Host(
        host,
        tuple(mark for mark in MARKS if mark in marks),
        status.groups if status is not None else registration.groups,
        registration.version,
        registration.ip_addresses,
        registration.started,
        tuple(status.killswitch.scopes) if status is not None and status.killswitch.engaged else (),
        workers,
        tuple(notes[:MAX_NOTES]),
    )


def _judge_killswitch(status: HostStatus, engaged: Sequence[str], marks: set[Mark], notes: list[str]) -> None:
    if status.killswitch.engaged:
        marks.add("killed")
        reason = f": {status.killswitch.reason}" if status.killswitch.reason else ""
        notes.append(f"killed by {', '.join(status.killswitch.scopes) or 'itself'}{reason}")
    missing = set(engaged) - set(status.killswitch.scopes)
    if missing:
        marks.add("unconfirmed")
        notes.append(f"does not confirm the killswitch of {', '.join(sorted(missing))}")


def _judge_workers(
    status: HostStatus, keys: FleetKeys, scopes: Sequence[str], marks: set[Mark], notes: list[str]
) -> Iterable[WorkerLine]:
    for worker in status.workers:
        wanted, scope = keys.wanted(scopes, worker.name)
        if wanted is not None and wanted != worker.desired and worker.desired_by != LOCAL:
            marks.add("unconfirmed")
            notes.append(f"{worker.name}: {scope} wants {wanted}, the host still says {worker.desired}")
        fine = _AS_WANTED.get(worker.desired, frozenset())
        if worker.state not in fine and not (status.killswitch.engaged and worker.state in ("killed", "stopped")):
            marks.add("differs")
            error = f" ({worker.last_error})" if worker.last_error else ""
            notes.append(f"{worker.name}: desired {worker.desired}, is {worker.state}{error}")
        if worker.config.status == "rejected":
            marks.add("problem")
            notes.append(f"{worker.name}: configuration rejected: {worker.config.error or 'no reason given'}")
        if worker.breaker.state != "closed":
            marks.add("problem")
            notes.append(f"{worker.name}: breaker {worker.breaker.state} ({worker.breaker.cause or 'no cause given'})")
        yield WorkerLine(worker.name, worker.desired, worker.desired_by, worker.state, wanted or "")


def is_host(text: str) -> bool:
    """Tell whether a text can be the name of a host."""
    try:
        check_component(text, "the hostname")
    except KeyGrammarError:
        return False
    return True
