"""When the agent gives way to its host: freeze workers while others want it, end them while memory is low. Pure.

Everything that comes in is measured *without ourselves*, so nothing that the agent does moves it: a policy that looked
at the whole host would freeze a worker, see the load fall, thaw it, and begin again. Freezing goes by rank: the lowest
priority first, essential workers last; workers of one rank go together. Source of the numbers: the project's contract
for host pressure (``docs/architecture.md``, "Giving way to the host").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

Rank = tuple[bool, int]
"""Essential, priority: what sorts first is held first."""

Action = Literal["freeze", "stop"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers.

    Attributes:
        cpu_percent: Bound of the CPU time that others use, percent of all CPUs.
        io_percent: Bound of the time in which all that has work to do waits for block I/O of others, percent.
        memory_percent: Bound of the time in which others wait for memory, percent.
        available: Bound below which available memory is low, bytes.
        above: How long one of the first three must be above its bound, seconds.
        below: How long all must be below half of it for a thaw, and memory ample for a new start, seconds.
        low: How long memory must be low, seconds.
        step: Time between two ranks once it has begun, seconds; both ways.
        duty_percent: Share of the time in which a frozen worker runs all the same.
        duty_period: The time that share refers to, seconds.
    """

    cpu_percent: float = 90.0
    io_percent: float = 60.0
    memory_percent: float = 20.0
    available: int = 128 * 1024 * 1024
    above: float = 10.0
    below: float = 30.0
    low: float = 2.0
    step: float = 5.0
    duty_percent: float = 5.0
    duty_period: float = 20.0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What the host is doing without us. None: not known, or not to be told from what we do ourselves.

    Attributes:
        at: Monotonic seconds.
        seconds: The time before it that it covers; 0 makes it a mere beginning.
        cpu_percent: CPU time of others, percent of all CPUs.
        io_percent: Time in which all that had work to do waited for block I/O, and not for ours, percent.
        memory_percent: Time in which some task of others waited for memory, percent.
        available: Memory that can be had without swapping, bytes.
    """

    at: float
    seconds: float = 0.0
    cpu_percent: float | None = None
    io_percent: float | None = None
    memory_percent: float | None = None
    available: int | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that runs, or would if it were not held.

    Attributes:
        name: Its name.
        rank: When its turn is.
        memory_bytes: What it uses now, bytes: what ending it would give back.
    """

    name: str
    rank: Rank
    memory_bytes: int = 0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy remembers.

    Attributes:
        at: Time of the last reading.
        frozen: Everything up to this rank stands still; None: nothing.
        stopped: Ranks that were ended, in their order, each with the bytes it gave back.
        above_for: How long it has been above, seconds; each thing below likewise.
        below_for: How long it has been below half.
        low_for: How long memory has been low.
        ample_for: How long there has been room for a rank that was ended.
        reason: What is or was above its bound last, for people.
    """

    at: float | None = None
    frozen: Rank | None = None
    stopped: tuple[tuple[Rank, int], ...] = ()
    above_for: float = 0.0
    below_for: float = 0.0
    low_for: float = 0.0
    ample_for: float = 0.0
    reason: str = ""


def judge(state: State, reading: Reading, members: Iterable[Member], policy: Policy) -> State:
    """Return the state after a reading. At most one rank is frozen or thawed, and one ended or let start, at a time.

    A reading that is not newer than the last one changes nothing.
    """
    if state.at is not None and reading.at <= state.at:
        return state
    members = tuple(members)
    state = msgspec.structs.replace(state, at=reading.at)
    if reading.seconds <= 0:
        return state
    return _judge_memory(_judge_load(state, reading, members, policy), reading, members, policy)


def holds(state: State, members: Iterable[Member]) -> dict[str, Action]:
    """Return what is held and how; who is in no entry may run."""
    top = max((rank for rank, _ in state.stopped), default=None)
    held: dict[str, Action] = {}
    for member in members:
        if top is not None and member.rank <= top:
            held[member.name] = "stop"
        elif state.frozen is not None and member.rank <= state.frozen:
            held[member.name] = "freeze"
    return held


def runs_while_frozen(now: float, phase: float, policy: Policy) -> tuple[bool, float]:
    """Return whether a frozen worker has its minimum of running time now, and for how long that stays so, seconds.

    Args:
        now: Monotonic seconds.
        phase: 0 to 1, another for each worker, so that they do not all run at once.
        policy: The numbers.
    """
    share = policy.duty_percent / 100.0
    if share <= 0:
        return False, policy.duty_period
    position = (now / policy.duty_period + phase) % 1.0
    if position >= 1.0 - share:
        return True, (1.0 - position) * policy.duty_period
    return False, (1.0 - share - position) * policy.duty_period


def describe(reading: Reading, policy: Policy) -> str:
    """Return what is above its bound, for people; empty where nothing is."""
    return ", ".join(text for text, value, bound in _loads(reading, policy) if value > bound)


def _judge_load(state: State, reading: Reading, members: tuple[Member, ...], policy: Policy) -> State:
    loads = _loads(reading, policy)
    # One reading is no proof, however long the time that it covers: the agent itself may have stood still.
    seconds = min(reading.seconds, policy.above / 2)
    if any(value > bound for _, value, bound in loads):
        above = state.above_for + seconds
        state = msgspec.structs.replace(state, above_for=above, below_for=0.0, reason=describe(reading, policy))
        following = _next_rank(state.frozen, members)
        if above >= policy.above and following is not None:
            return msgspec.structs.replace(state, frozen=following, above_for=policy.above - policy.step)
        return state
    if not loads or any(value > bound / 2 for _, value, bound in loads):
        return msgspec.structs.replace(state, above_for=0.0, below_for=0.0)
    below = state.below_for + seconds
    state = msgspec.structs.replace(state, above_for=0.0, below_for=below)
    if below >= policy.below and state.frozen is not None:
        frozen = _rank_before(state.frozen, members)
        return msgspec.structs.replace(state, frozen=frozen, below_for=policy.below - policy.step)
    return state


def _judge_memory(state: State, reading: Reading, members: tuple[Member, ...], policy: Policy) -> State:
    available = reading.available
    if available is None:
        return msgspec.structs.replace(state, low_for=0.0, ample_for=0.0)
    if available < policy.available:
        low = state.low_for + min(reading.seconds, policy.low / 2)
        top = state.stopped[-1][0] if state.stopped else None
        following = _next_rank(top, members)
        state = msgspec.structs.replace(state, low_for=low, ample_for=0.0)
        if low >= policy.low and following is not None:
            freed = sum(member.memory_bytes for member in members if member.rank == following)
            return msgspec.structs.replace(state, stopped=(*state.stopped, (following, freed)), low_for=0.0)
        return state
    # Room for what would start again, beside twice the bound: its start must not be the next reason to end it.
    needed = 2 * policy.available + (state.stopped[-1][1] if state.stopped else 0)
    ample = state.ample_for + min(reading.seconds, policy.above / 2) if available >= needed else 0.0
    if state.stopped and ample >= policy.below:
        return msgspec.structs.replace(state, stopped=state.stopped[:-1], low_for=0.0, ample_for=0.0)
    return msgspec.structs.replace(state, low_for=0.0, ample_for=ample)


def _loads(reading: Reading, policy: Policy) -> list[tuple[str, float, float]]:
    """Return what is known, as (text, value, bound)."""
    named: Mapping[str, tuple[float | None, float]] = {
        "CPU used by others": (reading.cpu_percent, policy.cpu_percent),
        "others waiting for I/O": (reading.io_percent, policy.io_percent),
        "others waiting for memory": (reading.memory_percent, policy.memory_percent),
    }
    return [
        (f"{what} {value:.0f} % (bound {bound:g} %)", value, bound)
        for what, (value, bound) in named.items()
        if value is not None
    ]


def _next_rank(rank: Rank | None, members: tuple[Member, ...]) -> Rank | None:
    return min((member.rank for member in members if rank is None or member.rank > rank), default=None)


def _rank_before(rank: Rank, members: tuple[Member, ...]) -> Rank | None:
    return max((member.rank for member in members if member.rank < rank), default=None)
