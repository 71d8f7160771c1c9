"""The breaker of one worker as its supervisor uses it: kept, told, and never forgiven by mistake."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import Beat, Hold, ModuleBeat
from garrison.supervisor.breaker import Policy, Record
from garrison.supervisor.budget.watch import Look, Verdict
from garrison.supervisor.cgroups.base import Usage
from garrison.supervisor.settings import Budget
from garrison.supervisor.worker.guard import Guard
from garrison.supervisor.worker.node import limits_of
from tests.unit._breaker_samples import BUDGET, sample

POLICY = Policy()
LOOK = Look(planned=5.0)
CPU = Verdict(
    cause="cpu", detail="9 % of a core", resource="cpu_trip_percent", value=9.0, limit=5.0, window_seconds=60.0
)
CRASH = Verdict(cause="crash", detail="exit status 1")


class Kept:
    """Counts how often something is to be kept on disk."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def guard(record: Record | None = None) -> tuple[Guard, Kept]:
    kept = Kept()
    services: Any = SimpleNamespace(policy=POLICY, host="web1", remember=kept)
    return Guard("process", services, record), kept


def latched() -> Guard:
    made, _ = guard()
    for number in range(POLICY.latch_level):
        made.breached(CPU, float(number))
    assert made.breaker.phase == "latched"
    return made


# What is kept


def test_a_record_brings_back_all_that_was_known() -> None:
    before, _ = guard()
    before.configure("abc", "token")
    before.heard({"scan": Hold(phase="open", trips=1, retry_in_seconds=30.0)}, 5.0)
    before.breached(CPU, 10.0)
    after, _ = guard(before.record)
    assert after.record == before.record
    assert after.start_in(10.0) == before.start_in(10.0)
    # And through the file format, too.
    assert msgspec.json.decode(msgspec.json.encode(before.record), type=Record) == before.record


def test_every_change_is_kept_and_what_changes_nothing_is_not_written_again() -> None:
    made, kept = guard()
    made.configure("abc", "")
    times = kept.times
    for at in range(10):
        made.settle(float(at))
        made.settle_level(float(at))
        assert made.start_in(float(at)) == 0
        made.configure("abc", "")
        made.heard({}, float(at))
        made.ready(float(at))
    assert kept.times == times
    made.breached(CPU, 10.0)
    assert kept.times == times + 1


# What is wanted


def test_the_first_configuration_and_the_first_reset_key_are_no_reason_to_forgive() -> None:
    made = latched()
    # What a master reads at its start is not news: nobody has asked for anything since.
    assert made.configure("abc", "token") is False
    assert made.configure("abc", "token") is False


@pytest.mark.parametrize("wanted", [("new", "token"), ("abc", "again")])
def test_a_changed_configuration_and_a_new_reset_key_close_an_open_circuit_once(wanted: tuple[str, str]) -> None:
    made = latched()
    made.configure("abc", "token")
    assert made.configure(*wanted) is True
    assert made.configure(*wanted) is False


def test_a_changed_configuration_asks_for_nothing_where_the_circuit_is_closed() -> None:
    made, _ = guard()
    made.configure("abc", "")
    assert made.configure("new", "") is False


def test_a_changed_configuration_forgives_the_modules_and_an_old_one_does_not() -> None:
    made, _ = guard()
    made.configure("abc", "")
    made.heard({"scan": Hold(phase="latched", trips=5)}, 1.0)
    made.configure("abc", "")
    assert made.held
    made.configure("new", "")
    assert made.held == {}


def test_a_reset_closes_the_circuit_forgives_the_modules_and_remembers_the_trips() -> None:
    made = latched()
    made.heard({"scan": Hold(phase="latched", trips=5)}, 1.0)
    assert made.start_in(1e9) is None
    made.reset()
    assert (made.start_in(5.0), made.held, made.breaker.trips) == (0, {}, POLICY.latch_level)


@given(st.lists(st.sampled_from(["breach", "crash", "refused", "ended", "ready", "settle", "throttle"]), max_size=40))
def test_no_path_leads_out_of_latched_but_a_reset(steps: list[str]) -> None:
    made = latched()
    for now, step in enumerate(steps, start=10):
        at = now * 10_000.0
        match step:
            case "breach":
                made.breached(CPU, at)
            case "crash":
                made.crashed(at, 1.0, CRASH)
            case "refused":
                made.refused(at)
            case "ended":
                made.ended(at)
            case "ready":
                made.ready(at)
            case "settle":
                made.settle(at)
            case _:
                assert made.may_throttle(at) is False
        assert (made.breaker.phase, made.start_in(at), made.retry_in(at)) == ("latched", None, None)


# What happens


def test_a_throttle_lowers_the_quota_alone_and_ends_where_the_worker_does_with_less() -> None:
    made, _ = guard()
    assert made.limits(BUDGET) == limits_of(BUDGET)
    assert made.may_throttle(0.0)
    made.throttle(CPU, BUDGET, 0.0)
    assert made.throttled
    assert made.degraded
    lowered = made.limits(BUDGET)
    assert lowered.cpu_quota_percent == 2.5
    assert (lowered.memory_high, lowered.memory_max, lowered.pids_max) == (
        BUDGET.memory_high,
        BUDGET.memory_max,
        BUDGET.pids_max,
    )
    for number in range(1, 12):
        assert made.look(sample(number * 5.0, throttled_periods=5), LOOK, BUDGET, number * 5.0) is None
        assert made.end_throttle(number * 5.0) is None
    assert made.throttled
    assert made.end_throttle(POLICY.throttle) is None
    assert not made.throttled
    assert made.limits(BUDGET) == limits_of(BUDGET)
    # Soon after that the next breach of CPU is no reason for another one.
    assert not made.may_throttle(POLICY.throttle + 1.0)


def test_who_does_not_do_with_less_is_tripped_at_the_end_of_the_throttle_and_not_before() -> None:
    made, _ = guard()
    made.throttle(CPU, BUDGET, 0.0)
    for number in range(1, 12):
        made.look(sample(number * 5.0, cpu_percent=2.5, throttled_periods=50), LOOK, BUDGET, number * 5.0)
        assert made.end_throttle(number * 5.0) is None
    verdict = made.end_throttle(POLICY.throttle)
    assert verdict is not None
    assert (verdict.cause, verdict.resource, verdict.value) == ("cpu", "throttled_periods_percent", 100.0)
    assert (made.verdict, made.breaker.phase) == (verdict, "open")
    assert made.limits(BUDGET) == limits_of(BUDGET)


@given(st.floats(1, 400), st.floats(1, 400))
def test_a_throttled_worker_never_has_more_than_its_budget(quota: float, trip: float) -> None:
    budget = Budget(cpu_quota_percent=quota, cpu_trip_percent=min(quota, trip))
    made, _ = guard()
    made.throttle(CPU, budget, 0.0)
    cap = made.limits(budget).cpu_quota_percent
    assert cap is not None
    assert cap <= quota
    # Nor has it, when its budget shrinks meanwhile.
    smaller = msgspec.structs.replace(budget, cpu_quota_percent=1.0, cpu_trip_percent=1.0)
    assert made.limits(smaller).cpu_quota_percent == 1.0


def test_a_new_process_is_not_judged_by_the_samples_of_the_one_before() -> None:
    made, _ = guard()
    for number in range(1, 12):
        made.look(sample(number * 5.0, cpu_percent=9.0), LOOK, BUDGET, number * 5.0)
    made.begin()
    assert made.look(sample(60.0, cpu_percent=9.0), LOOK, BUDGET, 60.0) is None


def test_a_task_may_use_more_while_it_may_and_no_process_after_it() -> None:
    made, _ = guard()

    def breaches(start: int) -> int:
        looks = [(number * 5.0) for number in range(start, start + 12)]
        return sum(made.look(sample(at, cpu_percent=8.0), LOOK, BUDGET, at) is not None for at in looks)

    made.allow(9.0, 60.5)
    assert breaches(1) == 0  # up to 60 s
    assert breaches(13) == 1
    made.allow(9.0, 1e9)
    assert breaches(25) == 0
    made.begin()
    assert breaches(37) == 1


def test_a_crash_tells_whether_it_opened_the_circuit_and_only_then_is_it_the_verdict() -> None:
    made, _ = guard()
    opened = [made.crashed(at, 1.0, CRASH) for at in (0.0, 5.0)]
    assert (opened, made.verdict) == ([False, False], None)
    assert made.crashed(10.0, 1.0, CRASH) is True
    assert made.verdict == CRASH
    assert made.retry_in(10.0) == pytest.approx(POLICY.cooldown, rel=0.11)


def test_time_that_a_worker_stood_frozen_is_not_part_of_its_probation() -> None:
    made, _ = guard()
    made.breached(CPU, 0.0)
    made.ready(100.0)
    made.stood(50.0)
    made.settle(100.0 + POLICY.probation + 49.0)
    assert made.breaker.phase == "probation"
    made.settle(100.0 + POLICY.probation + 50.0)
    assert made.breaker.phase == "closed"


def test_a_level_falls_in_a_quiet_hour_of_a_closed_circuit_alone() -> None:
    made, _ = guard()
    made.breached(CPU, 0.0)
    made.settle_level(1e6)
    assert (made.breaker.phase, made.breaker.level) == ("open", 1)
    made.ready(100.0)
    made.settle(100.0 + POLICY.probation)
    made.settle_level(100.0 + POLICY.probation + POLICY.quiet)
    assert (made.breaker.phase, made.breaker.level) == ("closed", 0)


# The modules


@given(st.floats(0, 1e4), st.floats(-1e4, 1e4))
def test_a_module_waits_no_longer_and_never_less_than_what_is_left(left: float, passed: float) -> None:
    made, _ = guard()
    made.heard({"scan": Hold(phase="open", trips=1, retry_in_seconds=left)}, 1000.0)
    held = made.held_at(1000.0 + passed)["scan"]
    # A clock that goes backwards adds nothing to a wait.
    assert held.retry_in_seconds == pytest.approx(max(0.0, left - max(0.0, passed)))
    assert (held.phase, held.trips) == ("open", 1)
    # What is known does not shrink by being asked for.
    assert made.held["scan"].retry_in_seconds == left


def test_what_came_from_the_disk_has_its_whole_wait_again() -> None:
    made, _ = guard(Record(held={"scan": Hold(phase="open", trips=1, retry_in_seconds=30.0)}))
    assert made.held_at(1e6)["scan"].retry_in_seconds == 30.0


# What is told


def test_the_facts_of_a_trip_name_its_numbers_the_last_work_and_the_next_start() -> None:
    made, _ = guard()
    made.breached(CPU, 100.0)
    beat = Beat(modules=[ModuleBeat(name="scan", last_task="walk")], last_module="scan")
    usage = Usage(periods=50, throttled_periods=40, throttled_seconds=1.23456, oom_kills=2, pids_refused=3)
    facts = made.facts(CPU, 100.0, usage, beat)
    wait = facts.pop("retry_in_seconds")
    assert wait == pytest.approx(POLICY.cooldown, rel=0.11)
    assert facts == {
        "cause": "cpu",
        "reason": "9 % of a core",
        "resource": "cpu_trip_percent",
        "value": 9.0,
        "limit": 5.0,
        "window_seconds": 60.0,
        "module": "scan",
        "task": "walk",
        "trips": 1,
        "level": 1,
        "periods": 50,
        "throttled_periods": 40,
        "throttled_seconds": 1.235,
        "oom_kills": 2,
        "pids_refused": 3,
    }


def test_the_facts_of_a_throttle_say_how_much_is_left_and_for_how_long() -> None:
    made, _ = guard()
    made.throttle(CPU, BUDGET, 0.0)
    facts = made.facts(CPU, 20.0, None, None)
    assert (facts["cap_percent"], facts["until_seconds"]) == (2.5, 40.0)
    assert "retry_in_seconds" not in facts
    assert "periods" not in facts


def test_a_verdict_without_a_resource_tells_no_value_and_a_dry_run_no_next_start() -> None:
    made, _ = guard()
    facts = made.facts(CRASH, 0.0, None, None, retry=False)
    assert (facts["value"], facts["limit"], facts["window_seconds"]) == (None, None, None)
    assert "retry_in_seconds" not in facts


def test_a_latched_worker_has_no_next_start() -> None:
    assert latched().facts(CPU, 1.0, None, None)["retry_in_seconds"] is None


def test_an_essential_worker_goes_first_among_the_workers_up_to_the_kernels_bound() -> None:
    assert limits_of(BUDGET, essential=True).cpu_weight == 10 * BUDGET.cpu_weight
    heavy = msgspec.structs.replace(BUDGET, cpu_weight=5000)
    assert limits_of(heavy, essential=True).cpu_weight == 10_000
    assert replace(limits_of(BUDGET, essential=True), cpu_weight=BUDGET.cpu_weight) == limits_of(BUDGET)
