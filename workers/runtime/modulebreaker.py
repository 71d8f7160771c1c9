"""The breaker of one module among several in a process: who is guilty, and what follows. Pure.

A module has an equal share of the worker's ``cpu_trip_percent``. It may use more while the worker as a whole stays
within that: nobody is harmed. While the worker is above it, every module above its own share counts, and the one
furthest above is stopped first; what that does to the sum is looked at before another one is. The worker's own
breaker, in the master, acts after ``cpu_trip_samples`` samples in a row. So that the neighbours are not ended with
the guilty one, this one asks it to do less after a third of them and stops it after two thirds.

What follows a stop is the worker's own policy, with the same numbers: open for ``cooldown * 2**level``, then on
probation, latched at the last level, one level less per quiet hour. Source: the contract in ``docs/architecture.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from garrison.ipc.messages import Hold
from garrison.ipc.pacing import backoff

Phase = Literal["closed", "degraded", "open", "probation", "latched"]

CPU = "cpu"
HELD_INTERPRETER = "hang"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers; seconds but for the counts and the percent.

    Attributes:
        trip_percent: The worker's ``cpu_trip_percent``, percent of one core.
        samples: The worker's ``cpu_trip_samples``.
    """

    trip_percent: float = 5.0
    samples: int = 12
    cooldown: float = 30.0
    cooldown_cap: float = 3600.0
    probation: float = 180.0
    latch_level: int = 5
    quiet: float = 3600.0

    @property
    def degrade_after(self) -> int:
        """Samples in a row after which a module is asked to do less; on probation it is stopped then."""
        return max(1, self.samples // 3)

    @property
    def stop_after(self) -> int:
        """Samples in a row after which a module is stopped."""
        return max(1, 2 * self.samples // 3)


class Use(msgspec.Struct, frozen=True):
    """What one module used in a sample, and what it may use; both percent of one core."""

    percent: float
    share: float


class Circuit(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one module's breaker.

    Attributes:
        phase: ``closed``: runs. ``degraded``: runs and was asked to do less. ``open``: stopped until `retry_at`.
            ``probation``: runs, and the next breach stops it. ``latched``: stopped until `reset`.
        level: The n of the cool-down's exponent.
        trips: How often it was stopped, ever.
        cause: Why it was stopped last.
        retry_at: When it may start again, monotonic seconds.
        probation_until: When probation is passed.
        quiet_since: Since when nothing has gone wrong.
        over: Samples in a row in which it was above its share and the worker above its limit.
        under: Samples in a row in which that was not so.
    """

    phase: Phase = "closed"
    level: int = 0
    trips: int = 0
    cause: str = ""
    retry_at: float = 0.0
    probation_until: float = 0.0
    quiet_since: float = 0.0
    over: int = 0
    under: int = 0

    @property
    def stopped(self) -> bool:
        """True while the module must not run."""
        return self.phase in ("open", "latched")


def judge(
    circuits: Mapping[str, Circuit],
    use: Mapping[str, Use],
    total: float,
    limit: float,
    now: float,
    policy: Policy,
    identity: tuple[str, ...],
) -> dict[str, Circuit]:
    """Return the circuits after one sample. At most one module is stopped by it.

    Args:
        circuits: The state before, by module.
        use: What each module used; one without an entry used nothing.
        total: What the whole process used, percent of one core.
        limit: What the whole process may use before anybody is judged.
        now: Monotonic seconds.
        policy: The numbers.
        identity: Host and worker, for the jitter.
    """
    after: dict[str, Circuit] = {}
    guilty: dict[str, float] = {}
    for name, before in circuits.items():
        circuit = settled(before, now, policy)
        after[name] = circuit
        if circuit.stopped:
            continue
        used = use.get(name)
        if used is None or total <= limit or used.percent <= used.share:
            after[name] = _within(circuit, policy)
            continue
        circuit = msgspec.structs.replace(circuit, over=circuit.over + 1, under=0, quiet_since=now)
        bound = policy.degrade_after if circuit.phase == "probation" else policy.stop_after
        if circuit.over >= bound:
            guilty[name] = used.percent - used.share
        elif circuit.phase == "closed" and circuit.over >= policy.degrade_after:
            circuit = msgspec.structs.replace(circuit, phase="degraded")
        after[name] = circuit
    if guilty:
        worst = max(guilty, key=guilty.__getitem__)
        for name, circuit in after.items():
            # Without the worst one it is another sum: who is above it then has to be above it anew.
            after[name] = msgspec.structs.replace(circuit, over=0, under=0)
        after[worst] = tripped(after[worst], CPU, now, policy, (*identity, worst))
    return after


def _within(circuit: Circuit, policy: Policy) -> Circuit:
    circuit = msgspec.structs.replace(circuit, over=0, under=min(circuit.under + 1, policy.degrade_after))
    if circuit.phase == "degraded" and circuit.under >= policy.degrade_after:
        return msgspec.structs.replace(circuit, phase="closed")
    return circuit


def tripped(circuit: Circuit, cause: str, now: float, policy: Policy, identity: tuple[str, ...]) -> Circuit:
    """Return the circuit of a module that is stopped: open for ``cooldown * 2**level``, or latched at the last level.

    One that is latched stays as it is.
    """
    if circuit.phase == "latched":
        return circuit
    circuit = settled(circuit, now, policy)
    level = circuit.level + 1
    wait = backoff(
        circuit.level, base=policy.cooldown, cap=policy.cooldown_cap, identity=(*identity, "trip"), jitter=0.1
    )
    return Circuit(
        phase="latched" if level >= policy.latch_level else "open",
        level=level,
        trips=circuit.trips + 1,
        cause=cause,
        retry_at=now + wait,
        quiet_since=now,
    )


def settled(circuit: Circuit, now: float, policy: Policy) -> Circuit:
    """Return the circuit as time has made it: probation passed, one level less per quiet hour.

    Time that goes backwards changes nothing.
    """
    if circuit.phase == "probation" and now >= circuit.probation_until:
        circuit = msgspec.structs.replace(
            circuit, phase="closed", quiet_since=max(circuit.quiet_since, circuit.probation_until)
        )
    if circuit.phase == "closed" and circuit.level:
        hours = int(max(0.0, now - circuit.quiet_since) // policy.quiet)
        if hours:
            circuit = msgspec.structs.replace(
                circuit, level=max(0, circuit.level - hours), quiet_since=circuit.quiet_since + hours * policy.quiet
            )
    return circuit


def released(circuit: Circuit, now: float, policy: Policy) -> Circuit:
    """Return the circuit of a stopped module when its wait is over: on probation. Before that it stays as it is."""
    if circuit.phase != "open" or now < circuit.retry_at:
        return circuit
    return msgspec.structs.replace(
        circuit, phase="probation", probation_until=now + policy.probation, quiet_since=now, over=0, under=0
    )


def reset(circuit: Circuit, now: float) -> Circuit:
    """Return the circuit as an operator's reset or changed settings leave it: closed, history kept."""
    return Circuit(trips=circuit.trips, cause=circuit.cause, quiet_since=now)


def held(hold: Hold, now: float, policy: Policy) -> Circuit:
    """Return the circuit that an earlier process left: it waits on, and is not forgiven."""
    wait = min(max(hold.retry_in_seconds, 0.0), policy.cooldown_cap)
    if wait != wait:  # not a number
        wait = policy.cooldown_cap
    return Circuit(
        phase=hold.phase, level=hold.level, trips=hold.trips, cause=hold.cause, retry_at=now + wait, quiet_since=now
    )
