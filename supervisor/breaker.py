"""The circuit breaker of one worker: what follows from a crash or a breach. Pure.

Times (monotonic seconds) come in as arguments and states are values, so a schedule can be tested, printed
and computed again. The causes that are known today are crashes, out of memory and breaches of the pipe
protocol; a watch on CPU, memory and the rest adds its verdicts through `breached` without a change here.

Source of the numbers: the project's contract for budgets and breaker (``docs/architecture.md``).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from garrison.ipc.pacing import backoff

Phase = Literal["closed", "open", "probation", "latched"]
Cause = Literal["crash", "oom", "protocol", "memory", "cpu", "pids", "hang", "flood", "aggregate"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the breaker; all in seconds but for the counts."""

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


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one worker's breaker.

    Attributes:
        phase: ``closed``: may run. ``open``: waits until `retry_at`. ``probation``: may run, and the next
            breach trips again. ``latched``: open until `reset`.
        level: The n of the cool-down's exponent; falls by one per quiet hour.
        trips: How often it has opened, ever.
        cause: Why it opened last.
        retry_at: When a start is allowed again; also the wait after a single crash.
        probation_until: When probation is passed.
        crashes: Times of recent crashes inside the window.
        failures: Crashes in a row of processes that had not been stable: the n of the restart wait.
        quiet_since: Since when nothing has gone wrong.
    """

    phase: Phase = "closed"
    level: int = 0
    trips: int = 0
    cause: Cause | None = None
    retry_at: float = 0.0
    probation_until: float = 0.0
    crashes: tuple[float, ...] = ()
    failures: int = 0
    quiet_since: float = 0.0


def crashed(breaker: Breaker, now: float, ran: float, policy: Policy, host: str, worker: str) -> Breaker:
    """Return the breaker after a process that ended by itself.

    Stable for `Policy.stable` seconds: it may start at once. Else it waits ``restart * 2**n``. The third
    crash within the window, or any crash on probation, trips.

    Args:
        breaker: The state before.
        now: Monotonic seconds.
        ran: How long the process had been ready, seconds; 0 for one that never was.
        policy: The numbers.
        host: Host name, for the jitter.
        worker: Worker's name, for the jitter.
    """
    crashes = (*(at for at in breaker.crashes if now - at < policy.crash_window), now)[-policy.crash_limit :]
    breaker = msgspec.structs.replace(settled(breaker, now, policy), crashes=crashes, quiet_since=now)
    if breaker.phase == "probation" or len(crashes) >= policy.crash_limit:
        return breached(breaker, "crash", now, policy, host, worker)
    if ran >= policy.stable:
        return msgspec.structs.replace(breaker, failures=0, retry_at=now)
    wait = backoff(breaker.failures, base=policy.restart, cap=policy.restart_cap, identity=(host, worker, "restart"))
    return msgspec.structs.replace(breaker, failures=breaker.failures + 1, retry_at=now + wait)


def refused(breaker: Breaker, now: float, policy: Policy, host: str, worker: str) -> Breaker:
    """Return the breaker after a start that the host refused: waits longer each time, never trips.

    Nothing ran, so nothing can have harmed the host; and the reason may go away by itself.
    """
    wait = backoff(breaker.failures, base=policy.restart, cap=policy.restart_cap, identity=(host, worker, "refused"))
    return msgspec.structs.replace(breaker, failures=breaker.failures + 1, retry_at=now + wait)


def breached(breaker: Breaker, cause: Cause, now: float, policy: Policy, host: str, worker: str) -> Breaker:
    """Return the breaker after a breach: open for ``cooldown * 2**level``, or latched at the last level.

    A latched breaker stays as it is.
    """
    if breaker.phase == "latched":
        return breaker
    breaker = settled(breaker, now, policy)
    level = breaker.level + 1
    wait = backoff(
        breaker.level, base=policy.cooldown, cap=policy.cooldown_cap, identity=(host, worker, "trip"), jitter=0.1
    )
    return msgspec.structs.replace(
        breaker,
        phase="latched" if level >= policy.latch_level else "open",
        level=level,
        trips=breaker.trips + 1,
        cause=cause,
        retry_at=now + wait,
        probation_until=0.0,
        crashes=(),
        failures=0,
        quiet_since=now,
    )


def started(breaker: Breaker, now: float, policy: Policy) -> Breaker:
    """Return the breaker when a process is ready: an open one goes on probation."""
    if breaker.phase != "open":
        return breaker
    return msgspec.structs.replace(breaker, phase="probation", probation_until=now + policy.probation, quiet_since=now)


def settled(breaker: Breaker, now: float, policy: Policy) -> Breaker:
    """Return the breaker as time has made it: probation passed, one level down per quiet hour.

    Time that goes backwards changes nothing.
    """
    if breaker.phase == "probation" and now >= breaker.probation_until:
        breaker = msgspec.structs.replace(breaker, phase="closed", quiet_since=breaker.probation_until)
    if breaker.phase == "closed" and breaker.level:
        hours = int(max(0.0, now - breaker.quiet_since) // policy.quiet)
        if hours:
            breaker = msgspec.structs.replace(
                breaker,
                level=max(0, breaker.level - hours),
                quiet_since=breaker.quiet_since + hours * policy.quiet,
            )
    return breaker


def reset(breaker: Breaker) -> Breaker:
    """Return the breaker as an operator's reset or a changed configuration leaves it: closed, history kept."""
    return Breaker(trips=breaker.trips, cause=breaker.cause)


def may_start_in(breaker: Breaker, now: float) -> float | None:
    """Return the seconds until a start is allowed, 0 for at once, None for never (latched)."""
    if breaker.phase == "latched":
        return None
    return max(0.0, breaker.retry_at - now)
