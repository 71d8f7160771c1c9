"""What the master makes of what a beat says of the breakers inside a worker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import Beat, Hold, ModuleBeat, holds_of
from garrison.supervisor.worker.modules import asks_again, changes, handed

RUNNING = ModuleBeat(name="scan")
TRIPPED = ModuleBeat(
    name="scan",
    state="tripped",
    trips=1,
    level=1,
    cause="cpu",
    cpu_percent=12.3456,
    last_task="walk",
    error="too much",
    retry_in_seconds=30.0,
)

modules = st.lists(
    st.builds(
        ModuleBeat,
        name=st.sampled_from(["a", "b", "c"]),
        state=st.sampled_from(["running", "backoff", "tripped", "latched", "starting", "stopped"]),
        trips=st.integers(0, 3),
        would_trips=st.integers(0, 3),
        level=st.integers(0, 5),
        degraded=st.booleans(),
        probation=st.booleans(),
        retry_in_seconds=st.none() | st.floats(0, 100),
    ),
    unique_by=lambda module: module.name,
    max_size=3,
)
beats = st.builds(Beat, modules=modules, degraded=st.booleans())


def changed(**values: Any) -> ModuleBeat:
    return msgspec.structs.replace(RUNNING, **values)


def actions(before: ModuleBeat, now: ModuleBeat, *, all_degraded: bool = False) -> list[str]:
    beat = Beat(modules=[now], degraded=all_degraded)
    return [action for action, _ in changes({before.name: before}, beat)]


@pytest.mark.parametrize(
    ("before", "now", "action"),
    [
        (RUNNING, TRIPPED, "module-tripped"),
        (changed(trips=4), changed(state="latched", trips=5), "module-latched"),
        (RUNNING, changed(would_trips=1), "module-would-trip"),
        (TRIPPED, changed(trips=1, probation=True), "module-probation"),
        (changed(trips=1, probation=True), changed(trips=1), "module-restored"),
        (RUNNING, changed(degraded=True), "module-degraded"),
        (changed(degraded=True), RUNNING, "module-restored"),
    ],
)
def test_each_turn_of_a_modules_breaker_has_a_name(before: ModuleBeat, now: ModuleBeat, action: str) -> None:
    assert actions(before, now) == [action]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (TRIPPED, TRIPPED),
        # Fewer trips than before: a claim that forgives, and no turn of a breaker.
        (TRIPPED, RUNNING),
        (changed(degraded=True), changed(state="backoff")),
        (changed(probation=True), changed(state="backoff")),
    ],
)
def test_what_is_no_turn_is_not_told(before: ModuleBeat, now: ModuleBeat) -> None:
    assert actions(before, now) == []


def test_what_the_agent_asked_of_all_modules_is_not_told_for_each_of_them() -> None:
    assert actions(RUNNING, changed(degraded=True), all_degraded=True) == []
    # A trip is, whatever the agent asked for.
    assert actions(RUNNING, TRIPPED, all_degraded=True) == ["module-tripped"]


def test_an_event_of_a_trip_has_its_numbers() -> None:
    ((_, facts),) = changes({}, Beat(modules=[TRIPPED]))
    assert facts == {
        "module": "scan",
        "cause": "cpu",
        "cpu_percent": 12.35,
        "task": "walk",
        "trips": 1,
        "dry_run": None,
        "retry_in_seconds": 30.0,
        "reason": "too much",
    }


def test_a_dry_run_is_marked_as_one_and_only_a_wait_says_how_long() -> None:
    ((_, facts),) = changes({}, Beat(modules=[changed(would_trips=1, retry_in_seconds=5.0)]))
    assert (facts["dry_run"], facts["retry_in_seconds"]) == (True, None)


@given(beats, beats)
def test_each_module_has_one_event_a_beat_at_most_and_what_did_not_change_none(first: Beat, second: Beat) -> None:
    known = {module.name: module for module in first.modules}
    told = [facts["module"] for _, facts in changes(known, second)]
    assert len(told) == len(set(told)) <= len(second.modules)
    assert set(told) <= {module.name for module in second.modules}
    assert list(changes(known, first)) == []


@given(beats, beats)
def test_every_new_trip_is_told(first: Beat, second: Beat) -> None:
    known = {module.name: module for module in first.modules}
    told = {
        facts["module"] for action, facts in changes(known, second) if action in ("module-tripped", "module-latched")
    }
    assert told == {m.name for m in second.modules if m.trips > known.get(m.name, ModuleBeat(name=m.name)).trips}


@given(beats)
def test_a_process_that_only_repeats_what_it_was_handed_makes_no_news_of_a_trip(beat: Beat) -> None:
    told = changes(handed(holds_of(beat, 0.0)), beat)
    assert not [action for action, _ in told if action in ("module-tripped", "module-latched")]


def test_what_was_handed_over_looks_as_the_next_beat_will() -> None:
    held = {
        "a": Hold(phase="latched", level=5, trips=7, cause="cpu"),
        "b": Hold(phase="open", level=1, trips=1, cause="hang", retry_in_seconds=9.0),
        "c": Hold(level=2, trips=2),
    }
    assert {name: (module.state, module.trips, module.level) for name, module in handed(held).items()} == {
        "a": ("latched", 7, 5),
        "b": ("tripped", 1, 1),
        "c": ("running", 2, 2),
    }


def test_a_worker_asks_to_be_started_again_for_a_module_that_tripped_in_this_process() -> None:
    assert asks_again(Beat(modules=[RUNNING, TRIPPED]), {}) == TRIPPED
    # That one was held when the process began: nothing new.
    assert asks_again(Beat(modules=[TRIPPED]), {"scan": Hold(phase="open", trips=1)}) is None
    assert asks_again(Beat(modules=[RUNNING]), {}) is None
    assert asks_again(None, {}) is None


@given(beats, st.dictionaries(st.sampled_from(["a", "b", "c"]), st.builds(Hold, trips=st.integers(0, 3))))
def test_only_who_stands_and_has_more_trips_than_before_is_a_reason_to_start_again(
    beat: Beat, held: dict[str, Hold]
) -> None:
    module = asks_again(beat, held)
    reasons = [
        m.name for m in beat.modules if m.state in ("tripped", "latched") and m.trips > held.get(m.name, Hold()).trips
    ]
    assert (module.name if module is not None else None) == (reasons[0] if reasons else None)
