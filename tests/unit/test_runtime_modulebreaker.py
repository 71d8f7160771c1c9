"""The module breaker's policy, as properties of its pure functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.frames import MAX_UP_BYTES, encode
from garrison.ipc.messages import MAX_HOLD_SECONDS, Beat, Hold, ModuleBeat, holds_of, last_work_of
from garrison.workers.runtime import modulebreaker as circuit
from garrison.workers.runtime.modulebreaker import Circuit, Policy, Use, judge

POLICY = Policy()
LIMIT = POLICY.trip_percent
IDENTITY = ("web1", "watcher")
NAMES = ("a", "b", "c")
SHARE = LIMIT / len(NAMES)

percents = st.floats(0, 12)
samples = st.lists(
    st.tuples(st.tuples(percents, percents, percents), st.floats(-50, 400)),
    max_size=60,
)


def look(
    circuits: dict[str, Circuit], used: tuple[float, ...], now: float, policy: Policy = POLICY
) -> dict[str, Circuit]:
    use = {name: Use(percent, SHARE) for name, percent in zip(circuits, used, strict=True)}
    return judge(circuits, use, sum(used), LIMIT, now, policy, IDENTITY)


def fresh() -> dict[str, Circuit]:
    return {name: Circuit() for name in NAMES}


def repeat(circuits: dict[str, Circuit], used: tuple[float, ...], count: int, now: float = 0.0) -> dict[str, Circuit]:
    for number in range(count):
        circuits = look(circuits, used, now + 5.0 * number)
    return circuits


@given(samples)
def test_at_most_one_module_is_stopped_by_a_sample_and_only_a_guilty_one(run):
    circuits, now = fresh(), 1000.0
    for used, passed in run:
        now += passed
        before = circuits
        circuits = look(circuits, used, now)
        stopped = [name for name in NAMES if circuits[name].trips > before[name].trips]
        assert len(stopped) <= 1
        for name in stopped:
            percent = dict(zip(NAMES, used, strict=True))[name]
            assert sum(used) > LIMIT
            assert percent > SHARE
            bound = POLICY.degrade_after if before[name].phase == "probation" else POLICY.stop_after
            assert before[name].over + 1 >= bound
        circuits = {name: circuit.released(one, now, POLICY) for name, one in circuits.items()}


@given(samples)
def test_while_the_whole_stays_within_its_limit_nobody_is_judged(run):
    circuits, now = fresh(), 0.0
    for used, passed in run:
        now += passed
        total = sum(used)
        scaled = tuple(percent * min(1.0, LIMIT / total * 0.999) for percent in used) if total else used
        circuits = look(circuits, scaled, now)
        assert all((one.phase, one.trips) == ("closed", 0) for one in circuits.values())


@given(samples)
def test_one_within_its_share_is_never_stopped_or_asked_to_do_less(run):
    circuits, now = fresh(), 0.0
    for (_a, b, c), passed in run:
        now += passed
        circuits = look(circuits, (SHARE, b, c), now)
        assert (circuits["a"].phase, circuits["a"].trips) == ("closed", 0)


@given(samples)
def test_there_is_no_way_out_of_latched_but_a_reset(run):
    circuits, now = {**fresh(), "a": Circuit(phase="latched", level=5, trips=5)}, 0.0
    for used, passed in run:
        now += passed
        circuits = {name: circuit.released(one, now, POLICY) for name, one in look(circuits, used, now).items()}
        assert circuits["a"].phase == "latched"
        assert circuit.tripped(circuits["a"], "cpu", now, POLICY, IDENTITY) == circuits["a"]
    again = circuit.reset(circuits["a"], now)
    assert (again.phase, again.level, again.trips) == ("closed", 0, 5)


@given(st.lists(st.floats(0, 3000), max_size=10), st.floats(0, 1e6))
def test_the_cool_down_never_shrinks_and_the_last_level_latches(quiet, start):
    one, now, last = Circuit(), start, 0.0
    for number, passed in enumerate(quiet):
        one = circuit.tripped(one, "cpu", now, POLICY, IDENTITY)
        if number + 1 == POLICY.latch_level:
            assert one.phase == "latched"
            return
        wait = one.retry_at - now
        assert 0.9 * POLICY.cooldown * 2**number <= wait * (1 + 1e-6)
        assert wait <= POLICY.cooldown * 2**number * (1 + 1e-6)
        assert wait > last
        last = wait
        assert circuit.released(one, one.retry_at - 0.001, POLICY) is one
        one = circuit.released(one, one.retry_at, POLICY)
        assert one.phase == "probation"
        # Less than a quiet hour, so no level is forgiven.
        now = one.probation_until - POLICY.probation + min(passed, POLICY.quiet * 0.9)
        now += 1e-3


@given(st.floats(0, 1e6), st.floats(0, 179.99))
def test_probation_is_not_passed_early_and_watches_from_its_first_sample(start, inside):
    one = circuit.released(Circuit(phase="open", level=1, retry_at=start), start, POLICY)
    assert one.phase == "probation"
    assert circuit.settled(one, start + inside, POLICY).phase == "probation"
    assert circuit.settled(one, one.probation_until, POLICY).phase == "closed"
    circuits = {**fresh(), "a": one}
    for number in range(POLICY.degrade_after):
        assert circuits["a"].phase == "probation"
        circuits = look(circuits, (10.0, 0.0, 0.0), start + 0.1 * number)
    assert (circuits["a"].phase, circuits["a"].level) == ("open", 2)


@given(samples, st.floats(0.001, 1e6))
def test_time_that_goes_backwards_forgives_nothing(run, back):
    circuits, now = fresh(), 1e7
    for used, passed in run:
        now += max(0.0, passed)
        circuits = look(circuits, used, now)
        for one in circuits.values():
            earlier = circuit.settled(one, now - back, POLICY)
            assert earlier.level == one.level
            assert (earlier.phase, one.phase) != ("closed", "probation")
            if one.phase == "open" and now <= one.retry_at:
                assert circuit.released(one, now - back, POLICY) is one


def test_a_level_is_forgiven_per_quiet_hour():
    one = Circuit(level=3, quiet_since=100.0)
    assert circuit.settled(one, 100.0 + 3599, POLICY).level == 3
    assert circuit.settled(one, 100.0 + 2 * 3600, POLICY).level == 1
    assert circuit.settled(one, 1e9, POLICY).level == 0


def test_a_hog_is_first_asked_to_do_less_and_then_stopped_before_the_worker_would_be():
    used = (10.0, 0.5, 0.5)
    assert repeat(fresh(), used, POLICY.degrade_after - 1)["a"].phase == "closed"
    assert repeat(fresh(), used, POLICY.degrade_after)["a"].phase == "degraded"
    assert repeat(fresh(), used, POLICY.stop_after - 1)["a"].phase == "degraded"
    after = repeat(fresh(), used, POLICY.stop_after)
    assert after["a"].phase == "open"
    assert POLICY.stop_after < POLICY.samples
    assert all(after[name] == Circuit() for name in ("b", "c"))


def test_one_that_does_less_when_asked_is_back_to_normal():
    circuits = repeat(fresh(), (10.0, 0.0, 0.0), POLICY.degrade_after)
    assert repeat(circuits, (1.0, 0.0, 0.0), POLICY.degrade_after - 1)["a"].phase == "degraded"
    circuits = repeat(circuits, (1.0, 0.0, 0.0), POLICY.degrade_after)
    assert (circuits["a"].phase, circuits["a"].trips, circuits["a"].over) == ("closed", 0, 0)


@given(st.integers(1, 200))
def test_bursts_with_a_pause_before_the_bound_are_never_stopped(rounds):
    circuits = fresh()
    for _ in range(min(rounds, 20)):
        circuits = repeat(circuits, (10.0, 0.0, 0.0), POLICY.stop_after - 1)
        circuits = repeat(circuits, (0.0, 0.0, 0.0), 1)
        assert circuits["a"].trips == 0


def test_of_two_hogs_the_one_furthest_above_its_share_goes_first_and_the_sum_is_judged_anew():
    circuits = repeat(fresh(), (6.0, 9.0, 0.0), POLICY.stop_after)
    assert (circuits["a"].phase, circuits["b"].phase) == ("degraded", "open")
    assert circuits["a"].over == 0
    assert repeat(circuits, (4.0, 0.0, 0.0), 50)["a"].trips == 0  # alone it is within the worker's budget
    assert repeat(circuits, (6.0, 0.0, 0.0), POLICY.stop_after)["a"].phase == "open"


@given(st.integers(1, 1000))
def test_the_steps_keep_their_order_for_any_number_of_samples(count):
    policy = Policy(samples=count)
    assert 1 <= policy.degrade_after <= policy.stop_after <= count


def modules(*beats: ModuleBeat) -> Beat:
    return Beat(modules=list(beats))


@given(st.floats(0, 3600), st.floats(-100, 1e5))
def test_what_is_handed_on_to_the_next_process_forgives_nothing(left, ago):
    beat = modules(
        ModuleBeat(name="waits", state="tripped", level=2, trips=3, cause="cpu", retry_in_seconds=left),
        ModuleBeat(name="latched", state="latched", level=5, trips=5, retry_in_seconds=None),
        ModuleBeat(name="watched", state="running", level=1, trips=1, probation=True),
        ModuleBeat(name="known", state="running", level=1, trips=1),
        ModuleBeat(name="clean"),
    )
    holds = holds_of(beat, ago)
    assert set(holds) == {"waits", "latched", "watched", "known"}
    now = 1000.0
    circuits = {name: circuit.held(hold, now, POLICY) for name, hold in holds.items()}
    assert circuits["waits"].phase == "open"
    assert circuits["waits"].level == 2
    assert circuits["waits"].retry_at >= now + left - max(0.0, ago) - 1e-6
    assert circuits["waits"].retry_at <= now + left + 1e-6
    assert circuits["latched"].phase == "latched"
    assert circuit.released(circuits["watched"], now, POLICY).phase == "probation"
    assert (circuits["known"].phase, circuits["known"].level) == ("closed", 1)


@given(st.one_of(st.just(float("nan")), st.just(float("inf")), st.floats()), st.floats(0, 100))
def test_a_wait_that_a_worker_only_claims_stays_within_bounds(claimed, ago):
    hold = holds_of(modules(ModuleBeat(name="m", state="tripped", retry_in_seconds=claimed)), ago)["m"]
    assert 0 <= hold.retry_in_seconds <= MAX_HOLD_SECONDS


def test_a_breach_is_put_down_to_the_busiest_module_and_its_work():
    beat = modules(ModuleBeat(name="a", last_task="scan"), ModuleBeat(name="b", last_task="rest"))
    beat.last_module = "a"
    assert last_work_of(beat) == ("a", "scan")
    beat.last_module = "gone"
    assert last_work_of(beat) == ("gone", "")
    assert last_work_of(None) == ("", "")


def test_the_fullest_beat_fits_its_frame():
    full = ModuleBeat(
        name="n" * 128,
        state="starting",
        restarts=2**53,
        cpu_seconds=1.0,
        last_task="t" * 128,
        error="e" * 128,
        level=64,
        trips=2**53,
        cause="c" * 64,
    )
    encode("beat", Beat(modules=[full] * 64, dropped={f"{n:064}": 2**53 for n in range(10)}), limit=MAX_UP_BYTES)


def test_a_hold_that_is_no_number_waits_the_longest():
    assert circuit.held(Hold(phase="open", retry_in_seconds=float("nan")), 0.0, POLICY).retry_at == POLICY.cooldown_cap
