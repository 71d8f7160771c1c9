"""Giving way to the host: who is frozen, ended and let go, and when. The policy alone."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.budget.pressure import Member, Policy, Reading, State, holds, judge, runs_while_frozen

MIB = 1024 * 1024
POLICY = Policy()
LOW = Member(name="low", rank=(False, 10), memory_bytes=30 * MIB)
HIGH = Member(name="high", rank=(False, 90), memory_bytes=30 * MIB)
VITAL = Member(name="vital", rank=(True, 0), memory_bytes=30 * MIB)
ALL = (HIGH, VITAL, LOW)


def run(state: State, seconds: float, *, step: float = 2.0, start: float | None = None, **values: object) -> State:
    """Return the state after so many seconds of the same reading."""
    at = start if start is not None else (state.at if state.at is not None else 0.0)
    for _ in range(round(seconds / step)):
        at += step
        values.setdefault("available", 10_000 * MIB)
        state = judge(state, Reading(at=at, seconds=step, **values), ALL, POLICY)  # type: ignore[arg-type]
    return state


def test_nothing_happens_before_ten_seconds_above() -> None:
    assert holds(run(State(), 8, cpu_percent=99), ALL) == {}
    assert holds(run(State(), 10, cpu_percent=99), ALL) == {"low": "freeze"}


def test_the_lowest_priority_goes_first_and_the_essential_last() -> None:
    orders = []
    state = State()
    for _ in range(20):
        state = run(state, 2, cpu_percent=99)
        if (held := sorted(holds(state, ALL))) not in orders:
            orders.append(held)
    assert orders == [[], ["low"], ["high", "low"], ["high", "low", "vital"]]


def test_waiting_for_io_and_for_memory_counts_like_cpu() -> None:
    assert holds(run(State(), 10, cpu_percent=1, io_percent=99), ALL) == {"low": "freeze"}
    assert holds(run(State(), 10, cpu_percent=1, memory_percent=50), ALL) == {"low": "freeze"}


def test_between_half_and_the_bound_nothing_changes() -> None:
    frozen = run(State(), 10, cpu_percent=99)
    assert holds(run(frozen, 600, cpu_percent=60), ALL) == {"low": "freeze"}
    assert holds(run(State(), 600, cpu_percent=60), ALL) == {}


def test_thawed_after_thirty_seconds_below_half_the_most_important_first() -> None:
    frozen = run(State(), 30, cpu_percent=99)
    assert len(holds(frozen, ALL)) == 3
    assert len(holds(run(frozen, 28, cpu_percent=10), ALL)) == 3
    assert set(holds(run(frozen, 30, cpu_percent=10), ALL)) == {"low", "high"}
    assert holds(run(frozen, 50, cpu_percent=10), ALL) == {}


def test_a_short_peak_starts_the_time_below_anew() -> None:
    frozen = run(State(), 10, cpu_percent=99)
    state = run(run(run(frozen, 28, cpu_percent=10), 2, cpu_percent=60), 28, cpu_percent=10)
    assert holds(state, ALL) == {"low": "freeze"}


def test_one_reading_freezes_nobody_however_long_it_is() -> None:
    state = judge(State(), Reading(at=5000.0, seconds=3600.0, cpu_percent=100.0), ALL, POLICY)
    assert holds(state, ALL) == {}


def test_what_is_not_known_freezes_and_thaws_nobody() -> None:
    assert holds(run(State(), 600), ALL) == {}
    assert holds(run(run(State(), 10, cpu_percent=99), 600), ALL) == {"low": "freeze"}


def test_low_memory_ends_workers_one_priority_after_the_other() -> None:
    state = run(State(), 2, step=1, cpu_percent=1, available=50 * MIB)
    assert holds(state, ALL) == {"low": "stop"}
    assert holds(run(state, 4, step=1, cpu_percent=1, available=50 * MIB), ALL) == dict.fromkeys(
        ("low", "high", "vital"), "stop"
    )


def test_an_ended_worker_starts_again_only_when_there_is_room_for_it() -> None:
    state = run(State(), 2, step=1, cpu_percent=1, available=50 * MIB)
    assert holds(run(state, 600, cpu_percent=1, available=270 * MIB), ALL) == {"low": "stop"}
    assert holds(run(state, 30, cpu_percent=1, available=290 * MIB), ALL) == {}


def test_a_new_worker_of_a_held_rank_is_held_from_its_start() -> None:
    state = run(State(), 10, cpu_percent=99)
    newcomer = Member(name="new", rank=(False, 5))
    assert holds(state, (*ALL, newcomer)) == {"low": "freeze", "new": "freeze"}


readings = st.lists(
    st.tuples(
        st.floats(-5, 15),
        st.one_of(st.none(), st.floats(0, 100)),
        st.one_of(st.none(), st.integers(0, 1024 * MIB)),
    ),
    max_size=120,
)


@given(readings)
def test_no_flapping(values: list[tuple[float, float | None, int | None]]) -> None:
    """Between a freeze and a thaw lie at least the seconds that each needs; time going backwards changes nothing."""
    state, at = State(), 100.0
    changes: list[tuple[float, int]] = []
    for delta, cpu, _ in values:
        at += delta
        before = len([action for action in holds(state, ALL).values() if action == "freeze"])
        reading = Reading(at=at, seconds=max(0.0, delta), cpu_percent=cpu, available=None)
        old, state = state, judge(state, reading, ALL, POLICY)
        if delta <= 0 and old.at is not None and at <= old.at:
            assert state == old
            at = old.at
        after = len(holds(state, ALL))
        if after != before:
            changes.append((at, after - before))
            assert abs(after - before) == 1
    for (first, way), (second, other) in pairwise(changes):
        if way > 0 > other:
            assert second - first >= POLICY.below - 1e-6
        if way < 0 < other:
            assert second - first >= POLICY.above - 1e-6


@given(readings)
def test_an_essential_worker_is_never_held_while_another_runs(
    values: list[tuple[float, float | None, int | None]],
) -> None:
    state, at = State(), 0.0
    for delta, cpu, available in values:
        at += abs(delta)
        state = judge(state, Reading(at=at, seconds=abs(delta), cpu_percent=cpu, available=available), ALL, POLICY)
        held = holds(state, ALL)
        if "vital" in held:
            assert len(held) == 3
        if "high" in held:
            assert "low" in held


@given(st.floats(0, 1e6), st.floats(0, 0.999), st.sampled_from([0.0, 1.0, 5.0, 50.0]))
def test_the_turn_of_a_frozen_worker_ends_when_it_says(now: float, phase: float, duty: float) -> None:
    policy = Policy(duty_percent=duty)
    running, rest = runs_while_frozen(now, phase, policy)
    assert 0 <= rest <= policy.duty_period
    if duty == 0:
        assert not running
    elif rest > 0.01:
        assert runs_while_frozen(now + rest * 0.5, phase, policy)[0] == running


def test_a_frozen_worker_runs_for_its_share_of_the_time() -> None:
    ran = sum(runs_while_frozen(step * 0.0137, 0.3, POLICY)[0] for step in range(100_000))
    assert 4900 <= ran <= 5100
