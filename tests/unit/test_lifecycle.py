"""The table of a worker's life."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from garrison.supervisor.lifecycle import ALIVE, TRANSITIONS, Event, InvalidTransitionError, State, after

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_every_state_can_be_reached_from_stopped() -> None:
    reached = {State.STOPPED}
    while True:
        more = {to for (state, _), to in TRANSITIONS.items() if state in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(State)


def test_every_event_is_used() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_the_killswitch_ends_every_state_and_only_a_release_leaves_killed() -> None:
    assert all(after(state, Event.KILL) is State.KILLED for state in State)
    ways_out = {event for (state, event), to in TRANSITIONS.items() if state is State.KILLED and to is not State.KILLED}
    assert ways_out == {Event.RELEASE}


def test_only_an_operator_or_the_killswitch_leaves_latched() -> None:
    ways_out = {
        event for (state, event), to in TRANSITIONS.items() if state is State.LATCHED and to is not State.LATCHED
    }
    assert ways_out == {Event.RESET, Event.STOP, Event.KILL}


def test_a_process_is_made_by_start_alone() -> None:
    made = {event for (state, event), to in TRANSITIONS.items() if state not in ALIVE and to in ALIVE}
    assert made == {Event.START}


def test_what_is_not_in_the_table_cannot_happen() -> None:
    with pytest.raises(InvalidTransitionError, match="'ready' cannot happen to a worker that is stopped"):
        after(State.STOPPED, Event.READY)


def test_the_documented_table_is_the_table() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| ([\w ]+) \| `(\w+)` \|$", ARCHITECTURE.read_text(), re.MULTILINE))
    assert rows == {(state.value, event.value, to.value) for (state, event), to in TRANSITIONS.items()}
