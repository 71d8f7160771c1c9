"""The circuit breaker of one worker: what follows from a crash or a breach. Pure.

Times (monotonic seconds) come in as arguments and states are values, so a schedule can be tested, printed
and computed again. Every change of phase is a row of `PHASES`; ``docs/architecture.md`` shows the same table
and a test compares the two. What is a breach is decided elsewhere (`garrison.supervisor.budget.watch`).

Source of the numbers: the project's contract for budgets and breaker (``docs/architecture.md``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

from garrison.ipc.messages import Hold
from garrison.ipc.pacing import backoff

Phase = Literal["closed", "throttled", "open", "probation", "latched"]
Cause = Literal["crash", "oom", "protocol", "memory", "cpu", "pids", "fds", "hang", "flood", "aggregate"]


class Turn(StrEnum):
    """What can change a breaker's phase."""

    THROTTLE = "throttle"  # the first breach of CPU: less of it for a while
    RESTORE = "restore"  # it did with less
    TRIP = "trip"  # a breach: the circuit opens
    LATCH = "latch"  # the same at the last level: it stays open
    READY = "ready"  # a process runs again
    PASS = "pass"  # probation is over  # noqa: S105  (no password)
    END = "end"  # the process has ended through no breach: stopped, crashed, lost
    RESET = "reset"  # an operator, or a changed configuration


PHASES: dict[tuple[Phase, Turn], Phase] = {
    ("closed", Turn.THROTTLE): "throttled",
    ("closed", Turn.TRIP): "open",
    ("closed", Turn.LATCH): "latched",
    ("closed", Turn.RESET): "closed",
    ("throttled", Turn.RESTORE): "closed",
    ("throttled", Turn.END): "closed",
    ("throttled", Turn.TRIP): "open",
    ("throttled", Turn.LATCH): "latched",
    ("throttled", Turn.RESET): "closed",
    ("open", Turn.READY): "probation",
    ("open", Turn.TRIP): "open",
    ("open", Turn.LATCH): "latched",
    ("open", Turn.RESET): "closed",
    ("probation", Turn.PASS): "closed",
    ("probation", Turn.END): "open",
    ("probation", Turn.TRIP): "open",
    ("probation", Turn.LATCH): "latched",
    ("probation", Turn.RESET): "closed",
    ("latched", Turn.RESET): "closed",
}
"""Every change of phase there is."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the breaker. Every float is a time in seconds; every int is a count, or a percentage.

    Attributes:
        throttle: How long a worker that breached its CPU budget runs with less.
        throttled_percent: It has its quota back when fewer of its periods than this were throttled meanwhile.
        relapse: A breach of CPU this soon after the end of a throttle trips instead of throttling again.
        cooldown: How long the circuit is open at level 0; doubles with each level.
        cooldown_cap: Longest that it is open.
        probation: How long a worker is on probation.
        latch_level: The level that latches.
        quiet: The level falls by one in this time without anything wrong.
        stable: A process that crashes after this time is started again at once.
        crash_window: Crashes this close together are counted.
        crash_limit: So many trip.
        restart: Wait after a crash; doubles with each one.
        restart_cap: Longest wait after a crash.
        hang_beats: A worker hangs when it has missed so many beats of runnable time.
        start_seconds: Runnable time within which a process has to be ready.
        pids_samples: Samples in a row with refused forks that trip.
        fds_percent: Share of ``nofile`` from which on descriptors are judged.
    """

    throttle: float = 60.0
    throttled_percent: int = 20
    relapse: float = 180.0
    cooldown: float = 30.0
    cooldown_cap: float = 3600.0
    probation: float = 180.0
    latch_level: int = 5
    quiet: float = 3600.0
    stable: float = 60.0
    crash_window: float = 60.0
    crash_limit: int = 3
    restart: float = 1.0
    restart_cap: float = 60.0
    hang_beats: int = 3
    start_seconds: int = 60
    pids_samples: int = 3
    fds_percent: int = 90


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one worker's breaker.

    Attributes:
        phase: ``closed``: may run. ``throttled``: runs with less. ``open``: waits until `retry_at`. ``probation``:
            may run, and the next breach trips again. ``latched``: open until `reset`.
        level: The n of the cool-down's exponent; falls by one per quiet hour.
        trips: How often it has opened, ever.
        cause: Why it opened or throttled last.
        retry_at: When a start is allowed again; also the wait after a single crash.
        cooldown: The last wait of an open circuit, seconds: the next one is no shorter while the level stands.
        probation_until: When probation is passed.
        throttled_until: When the throttle is over.
        relapse_until: Until when a breach of CPU trips at once.
        cap_percent: CPU that it may use while throttled, percent of one core.
        crashes: Times of recent crashes inside the window.
        failures: Crashes in a row of processes that had not been stable: the n of the restart wait.
        quiet_since: Since when nothing has gone wrong.
    """

    phase: Phase = "closed"
    level: int = 0
    trips: int = 0
    cause: Cause | None = None
    retry_at: float = 0.0
    cooldown: float = 0.0
    probation_until: float = 0.0
    throttled_until: float = 0.0
    relapse_until: float = 0.0
    cap_percent: float = 0.0
    crashes: tuple[float, ...] = ()
    failures: int = 0
    quiet_since: float = 0.0


def _turn(breaker: Breaker, turn: Turn, **changes: Any) -> Breaker:
    """Return the breaker in the phase that the table says.

    Raises:
        KeyError: The table has no such row: a programming error.
    """
    return msgspec.structs.replace(breaker, phase=PHASES[breaker.phase, turn], **changes)


def crashed(breaker: Breaker, now: float, ran: float, policy: Policy, host: str, worker: str) -> Breaker:
    """Return the breaker after a process that ended by itself.

    Stable for `Policy.stable` seconds: it may start at once. Else it waits ``restart * 2**n``. The third
    crash within the window, or any crash of the first process after a trip, trips.

    Args:
        breaker: The state before.
        now: Monotonic seconds.
        ran: How long the process had been ready, seconds; 0 for one that never was.
        policy: The numbers.
        host: Host name, for the jitter.
        worker: Worker's name, for the jitter.
    """
    if breaker.phase == "latched":
        return breaker
    crashes = (*(at for at in breaker.crashes if now - at < policy.crash_window), now)[-policy.crash_limit :]
    breaker = msgspec.structs.replace(settled(breaker, now, policy), crashes=crashes, quiet_since=now)
    if breaker.phase in ("open", "probation") or len(crashes) >= policy.crash_limit:
        return breached(breaker, "crash", now, policy, host, worker)
    breaker = ended(breaker, now, policy)
    if ran >= policy.stable:
        return msgspec.structs.replace(breaker, failures=0, retry_at=now)
    wait = backoff(breaker.failures, base=policy.restart, cap=policy.restart_cap, identity=(host, worker, "restart"))
    return msgspec.structs.replace(breaker, failures=breaker.failures + 1, retry_at=now + wait)


def refused(breaker: Breaker, now: float, policy: Policy, host: str, worker: str) -> Breaker:
    """Return the breaker after a start that the host refused: waits longer each time, never trips.

    Nothing ran, or it was ended through no fault of its own, so it cannot be blamed; and the reason may go away.
    """
    breaker = ended(breaker, now, policy)
    wait = backoff(breaker.failures, base=policy.restart, cap=policy.restart_cap, identity=(host, worker, "refused"))
    return msgspec.structs.replace(breaker, failures=breaker.failures + 1, retry_at=now + wait)


def breached(breaker: Breaker, cause: Cause, now: float, policy: Policy, host: str, worker: str) -> Breaker:
    """Return the breaker after a breach: open for ``cooldown * 2**level``, or latched at the last level.

    A latched breaker stays as it is. While the level stands no wait is shorter than the one before.
    """
    if breaker.phase == "latched":
        return breaker
    breaker = settled(breaker, now, policy)
    level = breaker.level + 1
    wait = backoff(
        breaker.level, base=policy.cooldown, cap=policy.cooldown_cap, identity=(host, worker, "trip"), jitter=0.1
    )
    wait = max(wait, breaker.cooldown)
    return _turn(
        breaker,
        Turn.LATCH if level >= policy.latch_level else Turn.TRIP,
        level=level,
        trips=breaker.trips + 1,
        cause=cause,
        retry_at=now + wait,
        cooldown=wait,
        probation_until=0.0,
        throttled_until=0.0,
        relapse_until=0.0,
        cap_percent=0.0,
        crashes=(),
        failures=0,
        quiet_since=now,
    )


def may_throttle(breaker: Breaker, now: float) -> bool:
    """Return whether a breach of CPU only throttles: not on probation, and not soon after the last throttle."""
    return breaker.phase == "closed" and now >= breaker.relapse_until


def throttled(breaker: Breaker, cause: Cause, cap_percent: float, now: float, policy: Policy) -> Breaker:
    """Return the breaker of a worker that goes on with less CPU for a while; ask `may_throttle` before.

    Args:
        breaker: The state before; closed.
        cause: Why.
        cap_percent: What it may use meanwhile, percent of one core.
        now: Monotonic seconds.
        policy: The numbers.
    """
    until = now + policy.throttle
    return _turn(breaker, Turn.THROTTLE, cause=cause, cap_percent=cap_percent, throttled_until=until, quiet_since=now)


def unthrottled(
    breaker: Breaker, throttled_percent: float, now: float, policy: Policy, host: str, worker: str
) -> Breaker:
    """Return the breaker at the end of a throttle: closed where the worker did with less, else tripped.

    Before its end, and where none is in force, nothing changes.

    Args:
        breaker: The state before.
        throttled_percent: Share of the periods of the throttle in which the kernel stopped the worker.
        now: Monotonic seconds.
        policy: The numbers.
        host: Host name, for the jitter.
        worker: Worker's name, for the jitter.
    """
    if breaker.phase != "throttled" or now < breaker.throttled_until:
        return breaker
    if throttled_percent >= policy.throttled_percent:
        return breached(breaker, breaker.cause or "cpu", now, policy, host, worker)
    return _turn(
        breaker, Turn.RESTORE, throttled_until=0.0, cap_percent=0.0, relapse_until=now + policy.relapse, quiet_since=now
    )


def started(breaker: Breaker, now: float, policy: Policy) -> Breaker:
    """Return the breaker when a process is ready: an open one goes on probation."""
    if breaker.phase != "open":
        return breaker
    return _turn(breaker, Turn.READY, probation_until=now + policy.probation, quiet_since=now)


def ended(breaker: Breaker, now: float, policy: Policy) -> Breaker:
    """Return the breaker after a process that ended through no breach: what was not watched to its end starts again.

    Probation has to be passed in one go, and a throttle leaves its time of relapse behind.
    """
    breaker = settled(breaker, now, policy)
    if breaker.phase == "probation":
        return _turn(breaker, Turn.END, probation_until=0.0)
    if breaker.phase == "throttled":
        return _turn(breaker, Turn.END, throttled_until=0.0, cap_percent=0.0, relapse_until=now + policy.relapse)
    return breaker


def extended(breaker: Breaker, seconds: float) -> Breaker:
    """Return the breaker of a worker that stood frozen for `seconds`, in which nothing could be learnt about it."""
    if breaker.phase == "probation":
        return msgspec.structs.replace(breaker, probation_until=breaker.probation_until + max(0.0, seconds))
    if breaker.phase == "throttled":
        return msgspec.structs.replace(breaker, throttled_until=breaker.throttled_until + max(0.0, seconds))
    return breaker


def settled(breaker: Breaker, now: float, policy: Policy) -> Breaker:
    """Return the breaker as time has made it: probation passed, one level down per quiet hour.

    Time that goes backwards changes nothing.
    """
    if breaker.phase == "probation" and now >= breaker.probation_until:
        breaker = _turn(breaker, Turn.PASS, quiet_since=breaker.probation_until)
    if breaker.phase == "closed" and breaker.level:
        hours = int(max(0.0, now - breaker.quiet_since) // policy.quiet)
        if hours:
            breaker = msgspec.structs.replace(
                breaker,
                level=max(0, breaker.level - hours),
                cooldown=0.0,
                quiet_since=breaker.quiet_since + hours * policy.quiet,
            )
    return breaker


def reset(breaker: Breaker) -> Breaker:
    """Return the breaker as an operator's reset or a changed configuration leaves it: closed, history kept."""
    assert PHASES[breaker.phase, Turn.RESET] == "closed"
    return Breaker(trips=breaker.trips, cause=breaker.cause)


def may_start_in(breaker: Breaker, now: float) -> float | None:
    """Return the seconds until a start is allowed, 0 for at once, None for never (latched)."""
    if breaker.phase == "latched":
        return None
    return max(0.0, breaker.retry_at - now)


def carried_over(breaker: Breaker, shift: float, now: float, policy: Policy) -> Breaker:
    """Return a breaker that was kept on disk as it stands for a new master; its processes are gone.

    Args:
        breaker: As it was saved.
        shift: What to take from every time in it, seconds: 0 where the same monotonic clock still runs. After a boot
            the clock has started at 0 again: with the time of the save taken away, what has passed since that boot
            counts, and nothing of the time before it. So no wall clock that jumps can shorten a wait.
        now: Monotonic seconds.
        policy: The numbers.
    """
    breaker = msgspec.structs.replace(
        breaker,
        # Nothing in the policy ever waits longer: more in the file is a mistake, and must not last for ever.
        retry_at=min(breaker.retry_at - shift, now + max(policy.cooldown_cap, policy.restart_cap)),
        probation_until=breaker.probation_until - shift,
        throttled_until=breaker.throttled_until - shift,
        relapse_until=breaker.relapse_until - shift,
        quiet_since=breaker.quiet_since - shift,
        crashes=tuple(at - shift for at in breaker.crashes),
    )
    if breaker.phase == "probation":
        return _turn(breaker, Turn.END, probation_until=0.0)
    if breaker.phase == "throttled":
        relapse = breaker.throttled_until + policy.relapse
        return _turn(breaker, Turn.END, throttled_until=0.0, cap_percent=0.0, relapse_until=relapse)
    return breaker


def suspect(now: float, policy: Policy) -> Breaker:
    """Return the breaker of a worker whose own was lost: it may run, on probation, and the next breach latches.

    Neither may a torn file forgive a worker that had been latched, nor may it leave a host without detection.
    """
    return Breaker(phase="open", level=max(0, policy.latch_level - 1), retry_at=now, quiet_since=now)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept on disk of one worker's breaker.

    Attributes:
        breaker: Its state.
        configured: Stands for the configuration that it judged; another one closes an open circuit.
        reset_token: The last reset key that was obeyed.
        held: What the worker's last process knew of its modules' own breakers.
    """

    breaker: Breaker = Breaker()
    configured: str = ""
    reset_token: str | None = None
    held: dict[str, Hold] = {}
