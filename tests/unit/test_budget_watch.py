"""What is a breach of a budget, and what is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.breaker import Policy
from garrison.supervisor.budget.watch import (
    MAX_STEP_SECONDS,
    Look,
    Verdict,
    Watch,
    cpu_limit,
    judge,
    strained,
    throttle_begins,
    throttle_cap,
)
from garrison.supervisor.settings import Budget
from tests.unit._breaker_samples import BUDGET, MIB, sample

POLICY = Policy()
LOOK = Look(planned=5.0)


def run(*changes: dict[str, Any], look: Look = LOOK, budget: Budget = BUDGET) -> tuple[Watch, list[Verdict | None]]:
    """Judge one sample after the other, five seconds apart."""
    watch, verdicts = Watch(), []
    for number, change in enumerate(changes, start=1):
        watch, verdict = judge(watch, sample(number * 5.0, **change), look, budget, POLICY)
        verdicts.append(verdict)
    return watch, verdicts


def first(verdicts: list[Verdict | None]) -> tuple[int, str]:
    """Return after how many samples the first breach came, and its cause."""
    return next((number, verdict.cause) for number, verdict in enumerate(verdicts, start=1) if verdict is not None)


@pytest.mark.parametrize(
    ("change", "cause", "after"),
    [
        ({"cpu_percent": 5.1}, "cpu", 12),
        ({"memory": 64 * MIB + 1}, "memory", 12),
        ({"descriptors": 231}, "fds", 12),
        ({"rate_limited": 5001, "events_per_second": 2000.0}, "flood", 12),
        ({"pids_refused": 1}, "pids", 3),
        ({"beats": 0}, "hang", 3),
    ],
)
def test_each_cause_trips_after_its_samples_and_not_earlier(change: dict[str, Any], cause: str, after: int) -> None:
    assert first(run(*[change] * 20)[1]) == (after, cause)


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_percent": 5.0},
        {"memory": 64 * MIB},
        {"descriptors": 230},
        {"descriptors": None},
        {"rate_limited": 5000},
        {"pids": 32},
    ],
)
def test_at_its_limit_nobody_breaks_it(change: dict[str, Any]) -> None:
    assert run(*[change] * 100)[1] == [None] * 100


@pytest.mark.parametrize(
    "change",
    [{"cpu_percent": 400.0}, {"memory": 90 * MIB}, {"descriptors": 256}, {"rate_limited": 10**6}, {"beats": 0}],
)
def test_one_good_sample_in_between_begins_the_count_anew(change: dict[str, Any]) -> None:
    row = [change] * (2 if "beats" in change else 11)
    assert run(*[*row, {}] * 5)[1] == [None] * (5 * len(row) + 5)


def test_a_fork_refused_once_counts_on_while_the_cap_is_reached() -> None:
    assert first(run({"pids_refused": 1, "pids": 32}, {"pids": 32}, {"pids": 32})[1]) == (3, "pids")
    assert run({"pids_refused": 1, "pids": 32}, {"pids": 31}, {"pids": 32}, {"pids": 32})[1] == [None] * 4


def test_a_verdict_carries_its_numbers() -> None:
    verdict = run(*[{"cpu_percent": 9.87}] * 12)[1][-1]
    assert verdict is not None
    assert (verdict.resource, verdict.value, verdict.limit, verdict.window_seconds) == ("cpu_trip_percent", 9.87, 5, 60)
    assert "9.9 % of a core" in verdict.detail


def test_a_breach_is_told_once_per_window() -> None:
    told = [verdict is not None for verdict in run(*[{"cpu_percent": 9.0}] * 36)[1]]
    assert [number for number, one in enumerate(told, start=1) if one] == [12, 24, 36]


def test_a_task_may_use_what_it_is_allowed_and_never_more_than_the_quota() -> None:
    assert cpu_limit(BUDGET, 0) == 5
    assert cpu_limit(BUDGET, 8) == 8
    assert cpu_limit(BUDGET, 80) == 10
    look = msgspec.structs.replace(LOOK, allowance_percent=8)
    assert run(*[{"cpu_percent": 7.9}] * 50, look=look)[1] == [None] * 50
    assert first(run(*[{"cpu_percent": 8.1}] * 50, look=look)[1]) == (12, "cpu")


def test_a_throttled_worker_is_not_judged_for_its_cpu_but_for_the_rest() -> None:
    look = msgspec.structs.replace(LOOK, throttled=True)
    assert run(*[{"cpu_percent": 50.0}] * 30, look=look)[1] == [None] * 30
    assert first(run(*[{"memory": 80 * MIB}] * 30, look=look)[1]) == (12, "memory")


def test_a_throttle_has_half_of_the_trip_value_and_at_least_what_the_kernel_can_enforce() -> None:
    assert throttle_cap(BUDGET) == 2.5
    assert throttle_cap(Budget(cpu_trip_percent=0.5)) == 1.0
    assert throttle_cap(Budget(cpu_trip_percent=300, cpu_quota_percent=100)) == 100


def test_the_periods_of_a_throttle_are_counted_from_its_begin() -> None:
    watch, _ = run({"periods": 50, "throttled_periods": 50})
    watch = throttle_begins(watch)
    assert watch.throttled_percent == 0
    watch, _ = judge(watch, sample(10.0, periods=40, throttled_periods=10), LOOK, BUDGET, POLICY)
    assert watch.throttled_percent == 25


def test_where_the_kernel_counts_no_periods_each_look_stands_for_one() -> None:
    watch = Watch()
    for number, percent in enumerate([2.5, 2.4, 0.5, 2.3], start=1):
        watch, _ = judge(watch, sample(number * 5.0, periods=0, cpu_percent=percent), LOOK, BUDGET, POLICY)
    assert (watch.periods, watch.throttled_periods) == (4, 3)


def test_time_that_it_was_throttled_frozen_or_waiting_for_the_cpu_is_no_silence() -> None:
    for look, change in [
        (LOOK, {"throttled_seconds": 5.0}),
        (msgspec.structs.replace(LOOK, frozen_seconds=5.0), {}),
        (msgspec.structs.replace(LOOK, waited_seconds=5.0), {}),
    ]:
        assert run(*[{"beats": 0, **change}] * 100, look=look)[1] == [None] * 100
    # It could run in a tenth of the time: it takes ten times as long.
    assert first(run(*[{"beats": 0, "throttled_seconds": 4.5}] * 100)[1]) == (30, "hang")


def test_a_suspended_agent_or_a_late_master_takes_nobody_for_hung() -> None:
    watch, verdict = judge(Watch(), sample(3600.0, seconds=3600.0, beats=0), LOOK, BUDGET, POLICY)
    assert verdict is None
    assert watch.silent_seconds == 5.0


def test_a_step_never_counts_more_than_a_beat() -> None:
    look = msgspec.structs.replace(LOOK, planned=300.0)
    watch, _ = judge(Watch(), sample(300.0, seconds=300.0, beats=0), look, BUDGET, POLICY)
    assert watch.silent_seconds == 5.0
    slow = Budget(beat_seconds=60)
    watch, _ = judge(Watch(), sample(300.0, seconds=300.0, beats=0), look, slow, POLICY)
    assert watch.silent_seconds == MAX_STEP_SECONDS


def test_a_worker_that_never_gets_ready_hangs_after_a_minute_in_which_it_could_run() -> None:
    look = msgspec.structs.replace(LOOK, ready=False)
    assert first(run(*[{"beats": 0}] * 20, look=look)[1]) == (12, "hang")
    assert first(run(*[{"beats": 1}] * 20, look=look)[1]) == (12, "hang")
    assert run(*[{"beats": 0, "throttled_seconds": 4.9}] * 20, look=look)[1] == [None] * 20


def test_it_is_told_to_do_less_soon_after_its_memory_is_above_the_soft_cap() -> None:
    assert not strained(run({"memory": 70 * MIB})[0])
    assert strained(run({"memory": 70 * MIB}, {"memory": 70 * MIB})[0])
    assert not strained(run({"memory": 70 * MIB}, {"memory": 70 * MIB}, {})[0])


samples = st.lists(
    st.fixed_dictionaries(
        {
            "cpu_percent": st.floats(0, 400),
            "memory": st.integers(0, 100 * MIB),
            "descriptors": st.none() | st.integers(0, 300),
            "pids_refused": st.integers(0, 3),
            "pids": st.integers(0, 40),
            "rate_limited": st.integers(0, 20_000),
            "beats": st.integers(0, 2),
            "throttled_seconds": st.floats(0, 5),
        }
    ),
    max_size=60,
)


@given(samples)
def test_no_breach_comes_before_its_window_is_full(changes: list[dict[str, Any]]) -> None:
    _, verdicts = run(*changes)
    for number, verdict in enumerate(verdicts, start=1):
        if verdict is not None:
            assert number >= {"pids": 3, "hang": 3}.get(verdict.cause, 12)


@given(samples, st.floats(-1e6, 0), st.booleans())
def test_a_sample_that_is_stale_or_not_newer_changes_nothing(
    changes: list[dict[str, Any]], back: float, stale: bool
) -> None:
    watch, _ = run(*changes)
    at = watch.at + (5.0 if stale else back)
    assert judge(watch, sample(at, cpu_percent=400.0, beats=0, stale=stale), LOOK, BUDGET, POLICY) == (watch, None)


@given(samples)
def test_what_is_remembered_stays_bounded(changes: list[dict[str, Any]]) -> None:
    watch, _ = run(*changes)
    # What is complete in the same sample is told one after the other, the gravest first: each waits for five others at
    # most, and for the one that comes round again each third sample.
    late = 9
    assert max(watch.cpu, watch.memory, watch.fds, watch.flood) < BUDGET.cpu_trip_samples + late
    assert watch.pids < POLICY.pids_samples + late
    assert watch.silent_seconds < (POLICY.hang_beats + late) * BUDGET.beat_seconds


def test_an_hour_of_long_work_at_its_pace_never_trips() -> None:
    """The runtime paces long work to 80 % of `cpu_trip_percent`; measured, that jitters by some percent of itself."""
    changes = [{"cpu_percent": 4.0 + 0.9 * (-1) ** number} for number in range(720)]
    assert run(*changes)[1] == [None] * 720


def test_bursts_at_the_quota_that_are_shorter_than_the_window_never_trip() -> None:
    changes = ([{"cpu_percent": 10.0}] * 11 + [{"cpu_percent": 1.0}]) * 60
    assert run(*changes)[1] == [None] * 720
