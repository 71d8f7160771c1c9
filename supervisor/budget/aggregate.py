"""Who answers for it when master, nursery and workers together break their budget. Pure.

The kernel caps the workers' common node, and at that cap it picks its victim by size: with three leaking workers it
killed the healthy, larger fourth (measured). So this policy acts before that, and by who is above *its own share*:

- Memory: a worker above its own ``memory_high`` comes first, the one furthest above it. Where nobody is (the budgets
  add up to more than there is), it is the one that has grown most since all was last well: what has been at its size
  since then did not break the budget, however large it is. Where the others grow so fast that the next look would come
  too late, the fastest of them go with it: at its cap the kernel looks for memory on the CPU's time, and from Linux
  6.18 on no quota stops that work before it is done.
- CPU: the one furthest above its fair share, which is the room divided by the workers' ``cpu_trip_percent``. Since the
  shares add up to the room, there is always one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

ACT_AT = 0.9
"""Share of the memory budget at which this policy acts: kernel memory that v1 does not show comes on top."""
WELL_BELOW = 0.75
"""Share of the memory budget up to which all is well, and everybody's size is taken for granted."""
CPU_NEAR = 0.98
"""Share of the CPU budget that counts as all of it: at the kernel's quota usage stays a little below."""
CPU_SECONDS = 15.0
"""How long the CPU budget must be used up before somebody is throttled, seconds: longer than most bursts."""
MAX_STEP_SECONDS = 7.5
"""Most that one sample counts for: one is no proof, however long the time that it covers."""
SOON_SECONDS = 0.5
"""How far ahead growth is reckoned where somebody has to go: two looks of an alerted watch, and the time to die."""
PENDING_SECONDS = 5.0
"""How long a worker that was told to go is taken to be going, before another one is looked for."""
WORKERS_LEAST = 0.5
"""Share of the budget that is the workers' in any case: no worker is ended for what the master uses above that."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What all may use together: percent of one core, and bytes."""

    cpu_percent: float
    memory_max: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that runs.

    Attributes:
        name: Its name.
        cpu_percent: CPU use, percent of one core.
        cpu_share: Its ``cpu_trip_percent``.
        memory_bytes: Working memory (no page cache), bytes.
        memory_high: Its own bound, bytes.
        throttled: Its quota is lowered already.
    """

    name: str
    cpu_percent: float = 0.0
    cpu_share: float = 5.0
    memory_bytes: int = 0
    memory_high: int = 1
    throttled: bool = False


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """What master and nursery use: percent of one core, and bytes."""

    cpu_percent: float = 0.0
    memory_bytes: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen to whom.

    Attributes:
        worker: The worker.
        action: ``throttle`` (CPU) or ``trip`` (memory).
        resource: ``cpu`` (percent of one core) or ``memory`` (bytes).
        value: What all use together.
        limit: What they may.
        mine: What the worker uses.
        share: What it is measured by: its fair share, its ``memory_high``, or its size when all was last well.
        detail: All of it in words.
    """

    worker: str
    action: Literal["throttle", "trip"]
    resource: Literal["cpu", "memory"]
    value: float
    limit: float
    mine: float
    share: float
    detail: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy remembers.

    Attributes:
        at: Time of the last sample.
        sizes: Everybody's memory when all was last well, bytes; who is not in it had none.
        last: Everybody's memory at the last sample, bytes.
        pending: Who was told to go, and when.
        cpu_for: How long the CPU budget has been used up, seconds.
    """

    at: float | None = None
    sizes: Mapping[str, int] = {}
    last: Mapping[str, int] = {}
    pending: Mapping[str, float] = {}
    cpu_for: float = 0.0


def judge(
    state: State, at: float, own: Own, members: Iterable[Member], budget: Budget, *, stopped_by_quota: bool = False
) -> tuple[State, tuple[Verdict, ...]]:
    """Return the state after a sample, and what is to be done: to one worker for its CPU, or to some for their memory.

    Args:
        state: What was remembered.
        at: Monotonic seconds. A sample that is not newer than the last one changes nothing.
        own: Master and nursery.
        members: The workers that run.
        budget: What all may use.
        stopped_by_quota: The kernel has stopped all of them at their common quota in a fifth of the periods or more.
    """
    if state.at is not None and at <= state.at:
        return state, ()
    seconds = 0.0 if state.at is None else min(at - state.at, MAX_STEP_SECONDS)
    members = tuple(members)
    names = {member.name for member in members}
    pending = {name: when for name, when in state.pending.items() if name in names and at - when < PENDING_SECONDS}
    growth = {
        member.name: (member.memory_bytes - state.last[member.name]) * SOON_SECONDS / seconds
        for member in members
        if seconds and member.memory_bytes > state.last.get(member.name, member.memory_bytes)
    }
    last = {member.name: member.memory_bytes for member in members}
    state = msgspec.structs.replace(state, at=at, last=last, pending=pending)
    left = tuple(member for member in members if member.name not in pending)
    state, verdicts = _judge_memory(state, own, left, growth, budget)
    if verdicts:
        gone = {verdict.worker: at for verdict in verdicts}
        return msgspec.structs.replace(state, pending={**pending, **gone}), verdicts
    return _judge_cpu(state, seconds, own, left, budget, stopped_by_quota)


def memory_room(own: Own, budget: Budget) -> float:
    """Return the working memory at which the workers have used up the budget, bytes."""
    return max(ACT_AT * budget.memory_max - own.memory_bytes, WORKERS_LEAST * budget.memory_max)


def cpu_room(own: Own, budget: Budget) -> float:
    """Return the CPU at which the workers have used up the budget, percent of one core."""
    return max(CPU_NEAR * budget.cpu_percent - own.cpu_percent, WORKERS_LEAST * budget.cpu_percent)


def _judge_memory(
    state: State, own: Own, members: tuple[Member, ...], growth: Mapping[str, float], budget: Budget
) -> tuple[State, tuple[Verdict, ...]]:
    room = memory_room(own, budget)
    used = sum(member.memory_bytes for member in members)
    if used <= room * WELL_BELOW / ACT_AT:
        return msgspec.structs.replace(state, sizes={member.name: member.memory_bytes for member in members}), ()
    verdicts: list[Verdict] = []
    left = members
    while left and (candidates := _answerable(left, growth, room, first=not verdicts)):
        guilty, share, what = _guilty(state, candidates)
        together = sum(member.memory_bytes for member in left) + own.memory_bytes
        more = round(sum(growth.get(member.name, 0.0) for member in left))
        verdicts.append(
            Verdict(
                worker=guilty.name,
                action="trip",
                resource="memory",
                value=together,
                limit=budget.memory_max,
                mine=guilty.memory_bytes,
                share=share,
                detail=f"all together use {together} of {budget.memory_max} bytes"
                + (f" and {more} more within {SOON_SECONDS:g} s" if verdicts and more else "")
                + f", and this worker is furthest above its share: {guilty.memory_bytes} bytes, {what} is {share}",
            )
        )
        left = tuple(member for member in left if member is not guilty)
    return state, tuple(verdicts)


def _answerable(
    members: tuple[Member, ...], growth: Mapping[str, float], room: float, *, first: bool
) -> tuple[Member, ...]:
    """Return among whom the next one to go is looked for: nobody while there is room, now and soon."""
    used = sum(member.memory_bytes for member in members)
    if used > room:
        return members
    growing = tuple(member for member in members if growth.get(member.name))
    # Growth alone is no breach, only a reason to be quick once there is one.
    return growing if not first and used + sum(growth[member.name] for member in growing) > room else ()


def _guilty(state: State, members: tuple[Member, ...]) -> tuple[Member, int, str]:
    """Return who is furthest above its share, the share in bytes, and what it is."""
    above = [member for member in members if member.memory_bytes > member.memory_high]
    if above:
        guilty = max(above, key=lambda member: (member.memory_bytes / member.memory_high, member.name))
        return guilty, guilty.memory_high, "its own memory_high"
    guilty = max(members, key=lambda member: (member.memory_bytes - state.sizes.get(member.name, 0), member.name))
    return guilty, state.sizes.get(guilty.name, 0), "its size when all was last well"


def _judge_cpu(
    state: State, seconds: float, own: Own, members: tuple[Member, ...], budget: Budget, stopped_by_quota: bool
) -> tuple[State, tuple[Verdict, ...]]:
    used = sum(member.cpu_percent for member in members)
    room = cpu_room(own, budget)
    if not members or (used <= room and not stopped_by_quota):
        return msgspec.structs.replace(state, cpu_for=0.0), ()
    state = msgspec.structs.replace(state, cpu_for=state.cpu_for + seconds)
    if state.cpu_for < CPU_SECONDS:
        return state, ()
    shares = sum(member.cpu_share for member in members)
    fair = {member.name: room * member.cpu_share / shares for member in members}
    greedy = [member for member in members if not member.throttled and member.cpu_percent > fair[member.name]]
    if not greedy:
        return state, ()
    guilty = max(greedy, key=lambda member: (member.cpu_percent / fair[member.name], member.name))
    share = round(fair[guilty.name], 2)
    verdict = Verdict(
        worker=guilty.name,
        action="throttle",
        resource="cpu",
        value=round(used + own.cpu_percent, 2),
        limit=budget.cpu_percent,
        mine=round(guilty.cpu_percent, 2),
        share=share,
        detail=f"all together use {used + own.cpu_percent:.1f} % of the {budget.cpu_percent:g} % of one core that they "
        f"may, for {state.cpu_for:.0f} s, and this worker is furthest above its share: {guilty.cpu_percent:.1f} %, "
        f"its fair share is {share:g} %",
    )
    return msgspec.structs.replace(state, cpu_for=0.0), (verdict,)
