"""The breaker's policy, as properties of its pure functions."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor import breaker as circuit
from garrison.supervisor.breaker import PHASES, Breaker, Policy, Turn

POLICY = Policy()
HOST, WORKER = "web1", "process"
ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"

steps = st.lists(
    st.tuples(
        st.sampled_from(["crash", "breach", "start", "settle", "refuse", "throttle", "look", "end", "frozen", "boot"]),
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
        elif action == "throttle":
            if circuit.may_throttle(breaker, now):
                breaker = circuit.throttled(breaker, "cpu", 2.5, now, POLICY)
        elif action == "look":
            breaker = circuit.unthrottled(breaker, ran / 2, now, POLICY, HOST, WORKER)
        elif action == "end":
            breaker = circuit.ended(breaker, now, POLICY)
        elif action == "frozen":
            breaker = circuit.extended(breaker, ran)
        elif action == "boot":
            breaker = circuit.carried_over(breaker, 0.0, now, POLICY)
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


@given(steps)
def test_the_cool_down_never_shrinks_while_the_level_stands(actions: list[tuple[str, float, float]]) -> None:
    for (_, before), (now, after) in itertools.pairwise(walk(actions)):
        settled = circuit.settled(before, now, POLICY)
        if after.trips > before.trips and before.phase != "latched" and settled.level:
            assert after.cooldown >= settled.cooldown


def test_the_cool_down_does_not_shrink_at_its_cap_either() -> None:
    policy = Policy(latch_level=40, cooldown_cap=100.0)
    breaker, now, waits = Breaker(), 0.0, []
    for _ in range(30):
        breaker = circuit.breached(breaker, "oom", now, policy, HOST, WORKER)
        waits.append(breaker.cooldown)
        now = breaker.retry_at
        breaker = circuit.started(breaker, now, policy)
    assert waits == sorted(waits)
    assert max(waits) <= 100


@given(steps)
def test_every_change_of_phase_is_a_row_of_the_table(actions: list[tuple[str, float, float]]) -> None:
    ways = {(before, after) for (before, _), after in PHASES.items()}
    for (_, before), (_, after) in itertools.pairwise(walk(actions)):
        # Time may pass probation, and one action ends what ran, in the same step.
        seen = {before.phase, after.phase}
        direct = (before.phase, after.phase) in ways or len(seen) == 1
        passed = before.phase == "probation" and ("closed", after.phase) in ways
        assert direct or passed, (before, after)


def test_the_only_way_out_of_latched_is_a_reset() -> None:
    assert {turn for phase, turn in PHASES if phase == "latched"} == {Turn.RESET}


def test_the_documented_table_is_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| `(\w+)` \| .+ \|$", ARCHITECTURE.read_text(), re.MULTILINE)
    assert set(rows) == {(before, turn.value, after) for (before, turn), after in PHASES.items()}
    assert len(rows) == len(PHASES)


@given(steps)
def test_probation_is_never_shorter_than_its_whole_time(actions: list[tuple[str, float, float]]) -> None:
    begun = 0.0
    for (then, before), (now, after) in itertools.pairwise(walk(actions)):
        if after.phase == "probation" and before.phase != "probation":
            begun = now
        if before.phase == "probation" and after.phase == "closed" and after.trips == before.trips:
            assert now - begun >= POLICY.probation - 1e-6, (then, before, now, after)


def test_a_probation_that_was_interrupted_starts_again() -> None:
    breaker = circuit.started(circuit.breached(Breaker(), "oom", 0.0, POLICY, HOST, WORKER), 40.0, POLICY)
    stopped = circuit.ended(breaker, 200.0, POLICY)
    assert (stopped.phase, circuit.may_start_in(stopped, 200.0)) == ("open", 0)
    assert circuit.started(stopped, 5000.0, POLICY).probation_until == 5180.0
    assert circuit.carried_over(breaker, 0.0, 200.0, POLICY).phase == "open"


def test_frozen_time_is_no_probation() -> None:
    breaker = circuit.started(circuit.breached(Breaker(), "oom", 0.0, POLICY, HOST, WORKER), 40.0, POLICY)
    breaker = circuit.extended(breaker, 100.0)
    assert circuit.settled(breaker, 319.0, POLICY).phase == "probation"
    assert circuit.settled(breaker, 320.0, POLICY).phase == "closed"


def test_a_crash_before_it_is_ready_trips_again() -> None:
    breaker = circuit.breached(Breaker(), "oom", 0.0, POLICY, HOST, WORKER)
    assert circuit.crashed(breaker, 40.0, 0.0, POLICY, HOST, WORKER).trips == 2


@pytest.mark.parametrize(("share", "phase", "trips"), [(0.0, "closed", 0), (19.9, "closed", 0), (20.0, "open", 1)])
def test_a_throttle_ends_well_or_in_a_trip(share: float, phase: str, trips: int) -> None:
    breaker = circuit.throttled(Breaker(), "cpu", 2.5, 100.0, POLICY)
    assert (breaker.phase, breaker.throttled_until, breaker.cap_percent) == ("throttled", 160.0, 2.5)
    assert circuit.unthrottled(breaker, share, 159.9, POLICY, HOST, WORKER) == breaker
    ended = circuit.unthrottled(breaker, share, 160.0, POLICY, HOST, WORKER)
    assert (ended.phase, ended.trips, ended.cap_percent) == (phase, trips, 0.0)


def test_a_relapse_soon_after_a_throttle_trips_and_a_late_one_throttles_again() -> None:
    restored = circuit.unthrottled(
        circuit.throttled(Breaker(), "cpu", 2.5, 0.0, POLICY), 5.0, 60.0, POLICY, HOST, WORKER
    )
    assert not circuit.may_throttle(restored, 239.9)
    assert circuit.may_throttle(restored, 240.0)


@pytest.mark.parametrize("phase", ["throttled", "open", "probation", "latched"])
def test_only_a_closed_breaker_throttles(phase: circuit.Phase) -> None:
    assert not circuit.may_throttle(Breaker(phase=phase), 1e9)


def test_a_process_that_ends_while_throttled_leaves_no_amnesty_behind() -> None:
    breaker = circuit.ended(circuit.throttled(Breaker(), "cpu", 2.5, 0.0, POLICY), 10.0, POLICY)
    assert (breaker.phase, breaker.cap_percent) == ("closed", 0.0)
    assert not circuit.may_throttle(breaker, 189.0)


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


@given(st.floats(0.0, 1.0), st.booleans(), st.text(max_size=12))
def test_a_worker_that_always_crashes_at_once_forks_at_most_twenty_times_in_its_first_hour(
    ran: float, ready: bool, host: str
) -> None:
    breaker, now, forks = Breaker(), 0.0, 0
    while now < 3600:
        wait = circuit.may_start_in(breaker, now)
        if wait is None:
            break
        now += wait
        forks += 1
        if ready:
            breaker = circuit.started(breaker, now, POLICY)
        now += ran
        breaker = circuit.crashed(breaker, now, ran if ready else 0.0, POLICY, host, WORKER)
    assert forks <= 20


@given(st.lists(st.sampled_from(["crash", "restart"]), min_size=40, max_size=40))
def test_restarts_of_the_master_are_no_way_to_more_forks(ends: list[str]) -> None:
    """A worker that crashes at once, under a master that is killed now and then: the breaker comes along."""
    breaker, now, forks = Breaker(), 0.0, 0
    for end in ends:
        wait = circuit.may_start_in(breaker, now)
        if wait is None or now + wait > 3600:
            break
        now += wait + 0.1
        forks += end == "crash"
        breaker = circuit.started(breaker, now, POLICY)
        if end == "crash":
            breaker = circuit.crashed(breaker, now, 0.0, POLICY, HOST, WORKER)
        else:
            breaker = circuit.carried_over(breaker, 0.0, now, POLICY)
    assert forks <= 20


@given(steps)
def test_the_state_survives_being_written_and_read(actions: list[tuple[str, float, float]]) -> None:
    breaker = walk(actions)[-1][1]
    assert msgspec.json.decode(msgspec.json.encode(breaker), type=Breaker) == breaker
