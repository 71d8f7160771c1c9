"""The breaker's policy, as properties of its pure functions."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor import breaker as circuit
from garrison.supervisor.breaker import Breaker, Policy

POLICY = Policy()
HOST, WORKER = "web1", "process"

steps = st.lists(
    st.tuples(
        st.sampled_from(["crash", "breach", "start", "settle", "refuse"]),
        st.floats(-100, 5000),
        st.floats(0, 200),
    ),
    max_size=40,
)


def walk(actions: list[tuple[str, float, float]]) -> list[tuple[float, Breaker]]:
    breaker, now = Breaker(), 1000.0
    seen = [(now, breaker)]
    for action, passed, ran in actions:
        now += passed
        if action == "crash":
            breaker = circuit.crashed(breaker, now, ran, POLICY, HOST, WORKER)
        elif action == "breach":
            breaker = circuit.breached(breaker, "oom", now, POLICY, HOST, WORKER)
        elif action == "start":
            if circuit.may_start_in(breaker, now) == 0:
                breaker = circuit.started(breaker, now, POLICY)
        elif action == "refuse" and breaker.phase != "latched":
            breaker = circuit.refused(breaker, now, POLICY, HOST, WORKER)
        else:
            breaker = circuit.settled(breaker, now, POLICY)
        seen.append((now, breaker))
    return seen


@given(steps)
def test_there_is_no_way_out_of_latched_but_a_reset(actions: list[tuple[str, float, float]]) -> None:
    latched = False
    for now, breaker in walk(actions):
        if latched:
            assert breaker.phase == "latched"
            assert circuit.may_start_in(breaker, now) is None
        latched = latched or breaker.phase == "latched"
    assert circuit.reset(breaker).phase == "closed"
    assert circuit.may_start_in(circuit.reset(breaker), now) == 0


@given(steps)
def test_trips_only_grow_and_the_level_stays_inside_its_bounds(actions: list[tuple[str, float, float]]) -> None:
    seen = [breaker for _, breaker in walk(actions)]
    assert all(a.trips <= b.trips for a, b in itertools.pairwise(seen))
    assert all(0 <= breaker.level <= POLICY.latch_level for breaker in seen)
    assert all(len(breaker.crashes) < POLICY.crash_limit for breaker in seen)


@given(st.integers(1, 4))
def test_each_trip_inside_the_quiet_hour_waits_longer_than_the_one_before(trips: int) -> None:
    breaker, now, waits = Breaker(), 0.0, []
    for _ in range(trips):
        breaker = circuit.breached(breaker, "oom", now, POLICY, HOST, WORKER)
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
        breaker = circuit.started(breaker, now, POLICY)
    assert waits == sorted(waits)
    for number, wait in enumerate(waits):
        assert 0.9 * 30 * 2**number <= wait <= 30 * 2**number


def test_the_fifth_trip_latches() -> None:
    breaker = Breaker()
    for number in range(5):
        assert breaker.phase != "latched", number
        breaker = circuit.breached(breaker, "oom", number * 100.0, POLICY, HOST, WORKER)
    assert (breaker.phase, breaker.trips) == ("latched", 5)


def test_a_worker_that_had_been_stable_starts_again_at_once() -> None:
    breaker = circuit.crashed(Breaker(), 500.0, 60.0, POLICY, HOST, WORKER)
    assert (breaker.phase, circuit.may_start_in(breaker, 500.0)) == ("closed", 0)


def test_the_third_crash_within_a_minute_trips() -> None:
    breaker = Breaker()
    for at in (0.0, 20.0, 40.0):
        assert breaker.phase == "closed"
        breaker = circuit.crashed(breaker, at, 5.0, POLICY, HOST, WORKER)
    assert (breaker.phase, breaker.cause) == ("open", "crash")


def test_three_crashes_that_are_further_apart_do_not_trip() -> None:
    breaker = Breaker()
    for at in (0.0, 31.0, 62.0, 93.0):
        breaker = circuit.crashed(breaker, at, 5.0, POLICY, HOST, WORKER)
    assert breaker.phase == "closed"


def test_one_crash_on_probation_trips_again() -> None:
    breaker = circuit.breached(Breaker(), "oom", 0.0, POLICY, HOST, WORKER)
    breaker = circuit.started(breaker, 40.0, POLICY)
    assert breaker.phase == "probation"
    assert circuit.crashed(breaker, 41.0, 1.0, POLICY, HOST, WORKER).phase == "open"


def test_probation_is_passed_after_its_whole_time_and_not_earlier() -> None:
    breaker = circuit.started(circuit.breached(Breaker(), "oom", 0.0, POLICY, HOST, WORKER), 40.0, POLICY)
    assert circuit.settled(breaker, 40.0 + 179.9, POLICY).phase == "probation"
    assert circuit.settled(breaker, 40.0 + 180.0, POLICY).phase == "closed"


def test_the_level_falls_by_one_per_quiet_hour() -> None:
    breaker = Breaker(level=3, quiet_since=0.0)
    assert circuit.settled(breaker, 3599.0, POLICY).level == 3
    assert circuit.settled(breaker, 3600.0, POLICY).level == 2
    assert circuit.settled(breaker, 3 * 3600.0, POLICY).level == 0


@given(steps, st.floats(0, 1e6))
def test_time_that_goes_backwards_changes_nothing(actions: list[tuple[str, float, float]], back: float) -> None:
    now, breaker = walk(actions)[-1]
    settled = circuit.settled(breaker, now, POLICY)
    assert circuit.settled(settled, now - back, POLICY) == settled


@given(st.floats(0.0, 1.0))
def test_a_worker_that_always_crashes_at_once_forks_at_most_twenty_times_in_its_first_hour(ran: float) -> None:
    breaker, now, forks = Breaker(), 0.0, 0
    while now < 3600:
        wait = circuit.may_start_in(breaker, now)
        if wait is None:
            break
        now += wait
        forks += 1
        breaker = circuit.started(breaker, now, POLICY)
        now += ran
        breaker = circuit.crashed(breaker, now, ran, POLICY, HOST, WORKER)
    assert forks <= 20


@given(steps)
def test_the_state_survives_being_written_and_read(actions: list[tuple[str, float, float]]) -> None:
    breaker = walk(actions)[-1][1]
    assert msgspec.json.decode(msgspec.json.encode(breaker), type=Breaker) == breaker
