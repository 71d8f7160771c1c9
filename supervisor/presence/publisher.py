"""When a host's documents are written: the rule that keeps a million hosts from writing at once. Pure.

What is due depends on what differs from the document that is in etcd, and on who caused that:

| what differs | is written | and not sooner than |
|---|---|---|
| nothing | never | |
| nothing has been written yet | after 1 s | |
| desired state, killswitch, by a key of this host or a local command | after 1 s | 10 s after the last write |
| the same, by a key of ``@all`` or of a group | after 1 s + up to 60 s by host hash | 60 s after the last write |
| anything else: states, breakers, errors, problems | after 1 s + up to 30 s by host hash | 300 s after the last write |

While a worker starts or stops the write waits up to 15 s more, so that one write says how it ended. A difference that
goes again before its time is never written. Whatever is due first takes everything else along.

Cost at 1,000,000 hosts (a cluster does 10,000 to 50,000 writes a second): nothing while nothing changes; a key of
``@all``: one write a host within a minute, 17,000 a second, however often the key is flipped; every host's worker
failing at one moment: 33,000 a second for half a minute; every host's worker flapping for ever: 3,300 a second; a key
of one host flipped for ever: one write in 10 s.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from garrison.ipc.pacing import spread
from garrison.supervisor.desired import DEFAULT
from garrison.supervisor.keys import ScopedKey, UnknownKeyError, parse_key
from garrison.supervisor.presence.document import HostStatus, Registration

SOON_SECONDS = 1.0
FLEET_SPREAD_SECONDS = 60.0
ITSELF_SPREAD_SECONDS = 30.0
OPERATOR_GAP_SECONDS = 10.0
FLEET_GAP_SECONDS = 60.0
ITSELF_GAP_SECONDS = 300.0
UNSETTLED_SECONDS = 15.0
"""How long a write waits for workers that are about to start or stop."""

UNSETTLED_STATES = frozenset({"starting", "stopping"})

Cause: TypeAlias = Literal["first", "operator", "fleet", "itself"]


class Facts(msgspec.Struct, frozen=True):
    """Everything that a host says of itself in etcd; `HostStatus.written` is empty in here."""

    registration: Registration
    status: HostStatus

    @property
    def settled(self) -> bool:
        """False while a worker is on its way from one state to another."""
        return not any(worker.state in UNSETTLED_STATES for worker in self.status.workers)


def causes(old: Facts | None, new: Facts, prefix: str) -> frozenset[Cause]:
    """Return who caused the differences between what was written and what should be.

    Args:
        old: In etcd; None where nothing is.
        new: To be written.
        prefix: What all keys start with.
    """
    if old is None:
        return frozenset({"first"})
    if old == new:
        return frozenset()
    before, after = _decisions(old), _decisions(new)
    found = {
        _cause(before.get(slot, NOBODY), after.get(slot, NOBODY), prefix)
        for slot in before.keys() | after.keys()
        if before.get(slot) != after.get(slot)
    }
    if not found or _undecided(old) != _undecided(new):
        found.add("itself")
    return frozenset(found)


class Publisher:
    """Says when to write. Times are monotonic seconds.

    Args:
        host: The hostname: where in a spread it stands.
        prefix: What all keys start with.
    """

    def __init__(self, host: str, prefix: str) -> None:
        self._share = spread(host, "status")
        self._prefix = prefix
        self._written: Facts | None = None
        self._written_at: float | None = None
        self._wanted: Facts | None = None
        self._since: dict[Cause, float] = {}

    @property
    def wanted(self) -> Facts | None:
        """What should stand in etcd; None before anything was offered."""
        return self._wanted

    @property
    def written(self) -> Facts | None:
        """What stands there, as far as is known."""
        return self._written

    def offer(self, facts: Facts, now: float) -> None:
        """Take the facts as they are now."""
        self._wanted = facts
        self._look(now)

    def wrote(self, facts: Facts, now: float) -> None:
        """Note that these facts now stand in etcd."""
        self._written, self._written_at = facts, now
        self._since.clear()
        self._look(now)

    def forget(self, now: float) -> None:
        """Note that nothing of ours stands in etcd any more."""
        self._written = None
        self._since.clear()
        self._look(now)

    def due(self) -> float:
        """Return when to write; infinity where there is nothing to write. More differences never make it later."""
        if self._wanted is None or not self._since:
            return float("inf")
        at = min(self._due(cause, since) for cause, since in self._since.items())
        return at if self._wanted.settled else at + UNSETTLED_SECONDS

    def _look(self, now: float) -> None:
        found = causes(self._written, self._wanted, self._prefix) if self._wanted is not None else frozenset()
        self._since = {cause: self._since.get(cause, now) for cause in found}

    def _due(self, cause: Cause, since: float) -> float:
        soon = since + SOON_SECONDS
        last = self._written_at if self._written_at is not None else float("-inf")
        if cause == "first":
            return soon
        if cause == "operator":
            return max(soon, last + OPERATOR_GAP_SECONDS)
        if cause == "fleet":
            return max(soon + FLEET_SPREAD_SECONDS * self._share, last + FLEET_GAP_SECONDS)
        return max(soon + ITSELF_SPREAD_SECONDS * self._share, last + ITSELF_GAP_SECONDS)


Decision: TypeAlias = tuple[frozenset[str], object]
"""The keys behind something, and what they decide."""

NOBODY: Decision = (frozenset(), None)


def _decisions(facts: Facts) -> dict[str, Decision]:
    status = facts.status
    found: dict[str, Decision] = {
        "groups": (frozenset({status.groups_by}), status.groups),
        "master": (frozenset({status.master_by}), None),
    }
    for scope in status.killswitch.scopes:
        found[f"killswitch {scope}"] = (frozenset({scope}), "engaged")
    for worker in status.workers:
        found[f"{worker.name} action"] = (frozenset({worker.desired_by}), worker.desired)
        found[f"{worker.name} config"] = (frozenset(worker.config_by), worker.config.hash)
    return found


def _cause(old: Decision, new: Decision, prefix: str) -> Cause:
    """Tell whether other hosts may have the same change at the same moment.

    They do not where a key of this host, or a local command, came, went or said something else.
    """
    moved = old[0] ^ new[0]
    if moved:
        return "operator" if any(_own(by, prefix) for by in moved) else "fleet"
    return "operator" if all(_own(by, prefix) for by in new[0]) else "fleet"


def _own(by: str, prefix: str) -> bool:
    if "/" not in by:  # a scope of the killswitch, ``local``, ``file``, ``default``
        return by not in ("", DEFAULT) and not by.startswith("@")
    try:
        key = parse_key(by, prefix)
    except UnknownKeyError:
        return False
    return isinstance(key, ScopedKey) and not key.scope.shared


def _undecided(facts: Facts) -> tuple[object, ...]:
    status = facts.status
    return (
        facts.registration,
        status.version,
        status.killswitch.reason,
        status.problems,
        *(
            (worker.name, worker.state, worker.breaker, worker.config.status, worker.config.error, worker.last_error)
            for worker in status.workers
        ),
    )
