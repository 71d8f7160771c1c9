"""The life of a worker as one table: state and event in, state out. Pure.

Everything that happens to a worker is one of `Event`; a pair that stands in no row is a mistake in the
caller and raises. ``docs/architecture.md`` shows the same table; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What a worker is doing, as ``garrison status`` shows it."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    THROTTLED = "throttled"
    FROZEN = "frozen"
    STOPPING = "stopping"
    TRIPPED = "tripped"
    PROBATION = "probation"
    LATCHED = "latched"
    KILLED = "killed"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to a worker."""

    START = "start"  # it should run, and may: a process is being made
    READY = "ready"  # its modules run
    READY_ON_PROBATION = "ready on probation"  # the same, with a breaker that is half open
    PASSED = "passed"  # probation is over
    THROTTLE = "throttle"  # its quota was lowered
    RESTORE = "restore"  # its quota is whole again
    FREEZE = "freeze"  # it should stand still
    THAW = "thaw"
    THAW_ON_PROBATION = "thaw on probation"
    THAW_THROTTLED = "thaw throttled"
    STOP = "stop"  # it should not run
    ENDED = "ended"  # the process that was told to end is gone
    CRASHED = "crashed"  # the process ended by itself; it is started again after a wait
    AGAIN = "again"  # it asked to be started again without a module that would not stop
    REFUSED = "refused"  # it could not be started; tried again after a wait
    TRIP = "trip"  # the circuit opens
    LATCH = "latch"  # the circuit opens until an operator closes it
    WAIT = "wait"  # it should run, and must wait for its next try
    STILL_OPEN = "still open"  # the same, with an open circuit
    STILL_LATCHED = "still latched"  # the same, with one that only an operator closes
    RESET = "reset"  # an operator closes the circuit
    LOST = "lost"  # the nursery died and took it along: nobody's fault
    KILL = "kill"  # the killswitch is engaged
    RELEASE = "release"  # the killswitch is released


class InvalidTransitionError(Exception):
    """An event that cannot happen in this state: a programming error, never an operator's."""


ALIVE = frozenset({State.STARTING, State.RUNNING, State.THROTTLED, State.FROZEN, State.PROBATION, State.STOPPING})
"""States in which a process exists."""

WORKING = (State.RUNNING, State.THROTTLED, State.PROBATION)
_OPEN = (State.TRIPPED, State.LATCHED, State.FAILED)

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STOPPED, Event.START): State.STARTING,
    (State.FAILED, Event.START): State.STARTING,
    (State.TRIPPED, Event.START): State.STARTING,
    (State.STARTING, Event.READY): State.RUNNING,
    (State.STARTING, Event.READY_ON_PROBATION): State.PROBATION,
    (State.PROBATION, Event.PASSED): State.RUNNING,
    (State.RUNNING, Event.THROTTLE): State.THROTTLED,
    (State.THROTTLED, Event.RESTORE): State.RUNNING,
    (State.FROZEN, Event.THAW): State.RUNNING,
    (State.FROZEN, Event.THAW_ON_PROBATION): State.PROBATION,
    (State.FROZEN, Event.THAW_THROTTLED): State.THROTTLED,
    (State.STARTING, Event.REFUSED): State.FAILED,
    (State.STOPPING, Event.ENDED): State.STOPPED,
    (State.STOPPING, Event.TRIP): State.TRIPPED,
    (State.STOPPING, Event.LATCH): State.LATCHED,
    (State.FAILED, Event.TRIP): State.TRIPPED,
    (State.FAILED, Event.LATCH): State.LATCHED,
    (State.KILLED, Event.RELEASE): State.STOPPED,
    (State.STOPPED, Event.WAIT): State.FAILED,
    (State.STOPPED, Event.STILL_OPEN): State.TRIPPED,
    (State.STOPPED, Event.STILL_LATCHED): State.LATCHED,
    (State.STOPPED, Event.STOP): State.STOPPED,
    **{(state, Event.FREEZE): State.FROZEN for state in WORKING},
    **{(state, Event.STOP): State.STOPPING for state in (*WORKING, State.STARTING, State.FROZEN)},
    **{(state, Event.CRASHED): State.FAILED for state in (*WORKING, State.STARTING, State.FROZEN)},
    **{(state, Event.AGAIN): State.STOPPED for state in (*WORKING, State.STARTING, State.FROZEN)},
    **{(state, Event.TRIP): State.TRIPPED for state in (*WORKING, State.STARTING, State.FROZEN)},
    **{(state, Event.LATCH): State.LATCHED for state in (*WORKING, State.STARTING, State.FROZEN)},
    **{(state, Event.STOP): State.STOPPED for state in _OPEN},
    **{(state, Event.RESET): State.STOPPED for state in _OPEN},
    **{(state, Event.LOST): State.STOPPED for state in ALIVE},
    **{(state, Event.KILL): State.KILLED for state in State},
}
"""Every transition there is. Built by row; no pair stands twice (a test checks the count)."""


def after(state: State, event: Event) -> State:
    """Return the state that follows.

    Raises:
        InvalidTransitionError: The table has no such row.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransitionError(f"{event.value!r} cannot happen to a worker that is {state.value}") from None
