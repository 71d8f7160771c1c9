"""What the master gives up, and in which order, when it uses more than its own share. Pure.

The master is the one process that nobody else supervises: the kernel's cap of the workers does not hold it, and a
unit's cap would throttle the killswitch with it. So it measures itself, and does less: first what only people at a
terminal miss, last what is counted as dropped. It never sheds alerts, states, the killswitch, the store, or the watch
on workers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec


class Level(IntEnum):
    """How much is shed; each level includes those before it."""

    NOTHING = 0
    TAPS = 1
    GAUGES = 2
    LOGS = 3
    METRICS = 4
    EVENTS = 5


WHAT: Final[dict[Level, str]] = {
    Level.TAPS: "live views (`garrison events -f`) end, and the last events are not kept in memory",
    Level.GAUGES: "the host and all workers together are looked at a third as often",
    Level.LOGS: "only lines of the level `warning` and above are logged",
    Level.METRICS: "events of the priority `metric` are dropped (counted as `shed`)",
    Level.EVENTS: "events of the priority `event` are dropped (counted as `shed`); alerts and states still go out",
}
"""What each level gives up. ``docs/architecture.md`` shows the same table; a test compares the two."""

OVER_SECONDS = 15.0
"""How long the master must be above its share for the next level, seconds."""
UNDER_SECONDS = 60.0
"""How long it must be below `UNDER` of its share for the level before, seconds."""
UNDER = 0.75
MAX_STEP_SECONDS = 7.5
"""Most that one sample counts for: one is no proof, however long the time that it covers."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What the master may use: percent of one core, and bytes."""

    cpu_percent: float
    memory_bytes: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The level, and how long things have been above or below, seconds."""

    at: float | None = None
    level: Level = Level.NOTHING
    over_for: float = 0.0
    under_for: float = 0.0
    reason: str = ""


def judge(state: State, at: float, cpu_percent: float, memory_bytes: int, share: Share) -> State:
    """Return the state after a sample; the level moves by one at most.

    Args:
        state: What was remembered.
        at: Monotonic seconds. A sample that is not newer than the last one changes nothing.
        cpu_percent: What the master uses, percent of one core.
        memory_bytes: What it uses, bytes.
        share: What it may.
    """
    if state.at is not None and at <= state.at:
        return state
    seconds = 0.0 if state.at is None else min(at - state.at, MAX_STEP_SECONDS)
    state = msgspec.structs.replace(state, at=at)
    over = []
    if cpu_percent > share.cpu_percent:
        over.append(f"CPU {cpu_percent:.1f} % of one core (share {share.cpu_percent:g} %)")
    if memory_bytes > share.memory_bytes:
        over.append(f"memory {memory_bytes} bytes (share {share.memory_bytes})")
    if over:
        over_for = state.over_for + seconds
        state = msgspec.structs.replace(state, over_for=over_for, under_for=0.0, reason=", ".join(over))
        if over_for >= OVER_SECONDS and state.level < max(Level):
            return msgspec.structs.replace(state, level=Level(state.level + 1), over_for=0.0)
        return state
    if cpu_percent > UNDER * share.cpu_percent or memory_bytes > UNDER * share.memory_bytes:
        return msgspec.structs.replace(state, over_for=0.0, under_for=0.0)
    under_for = state.under_for + seconds
    if under_for >= UNDER_SECONDS and state.level > Level.NOTHING:
        return msgspec.structs.replace(state, level=Level(state.level - 1), over_for=0.0, under_for=0.0)
    return msgspec.structs.replace(state, over_for=0.0, under_for=under_for)
