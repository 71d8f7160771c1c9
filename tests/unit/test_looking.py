"""When the next worker is looked at."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.lifecycle import ALIVE, State
from garrison.supervisor.looking import MIN_PAUSE_SECONDS, Looker
from garrison.supervisor.sampler import SAMPLE_SECONDS


class NoSampler:
    def keep(self, living: set[tuple[str, int]]) -> None:
        assert living == set()


def looker(*periods: float) -> Looker:
    workers: dict[str, Any] = {
        f"w{number}": SimpleNamespace(
            process=None, state=State.STOPPED, desired=SimpleNamespace(budget=SimpleNamespace(sample_seconds=period))
        )
        for number, period in enumerate(periods)
    }
    return Looker(workers, NoSampler())  # type: ignore[arg-type]


@pytest.mark.parametrize(("periods", "pause"), [((), SAMPLE_SECONDS), ((0.2, 5.0), 0.2), ((60.0,), SAMPLE_SECONDS)])
def test_a_worker_that_may_start_at_any_time_is_looked_at_in_its_own_period(
    periods: tuple[float, ...], pause: float
) -> None:
    assert looker(*periods).look(100.0) == pause


class Worker:
    """A worker that runs, and notes when it is looked at."""

    def __init__(self, name: str, period: float, *, fails: bool = False) -> None:
        self.name = name
        self.state = State.RUNNING
        self.process: Any = SimpleNamespace(epoch=1)
        self.desired = SimpleNamespace(budget=SimpleNamespace(sample_seconds=period))
        self.fails = fails
        self.planned: list[float] = []

    def observe(self, planned: float) -> None:
        self.planned.append(planned)
        if self.fails:
            raise RuntimeError("a mistake")


class Kept:
    """Notes whose samples are kept."""

    def __init__(self) -> None:
        self.living: set[tuple[str, int]] = set()

    def keep(self, living: set[tuple[str, int]]) -> None:
        self.living = living


def watch(
    *workers: Worker, factor: float = 1.0, enforced: list[float] | None = None
) -> tuple[Looker, Kept, dict[str, Any]]:
    by_name: dict[str, Any] = {worker.name: worker for worker in workers}
    kept = Kept()
    enforce = enforced.append if enforced is not None else None
    return Looker(by_name, kept, lambda: factor, enforce), kept, by_name  # type: ignore[arg-type]


def pass_time(looker: Looker, seconds: float, start: float = 0.0) -> int:
    """Look whenever the looker wants to; returns how often."""
    now, rounds = start, 0
    while now < start + seconds:
        now += looker.look(now)
        rounds += 1
    return rounds


def test_each_worker_is_looked_at_in_its_own_period_and_first_a_whole_one_after_its_start() -> None:
    fast, slow = Worker("fast", 0.5), Worker("slow", 4.0)
    looker, _, _ = watch(fast, slow)
    looker.look(100.0)
    assert (fast.planned, slow.planned) == ([], [])
    pass_time(looker, 40.4, 100.0)
    assert 79 <= len(fast.planned) <= 80
    assert len(slow.planned) == 10
    assert set(fast.planned) == {0.5}


@given(st.lists(st.floats(0.1, 60.0), max_size=8), st.floats(1.0, 3.0))
def test_whatever_the_periods_are_it_never_runs_hot_and_nobody_is_looked_at_too_early(
    periods: list[float], factor: float
) -> None:
    workers = [Worker(f"w{number}", period) for number, period in enumerate(periods)]
    looker, _, _ = watch(*workers, factor=factor)
    seconds = 30.0
    assert pass_time(looker, seconds) <= seconds / MIN_PAUSE_SECONDS + 1
    for worker, period in zip(workers, periods, strict=True):
        planned = period * factor
        # A look is late by a pause at most, and never early.
        assert (seconds - planned) / (planned + MIN_PAUSE_SECONDS) - 1 <= len(worker.planned) <= seconds / planned + 1
        assert set(worker.planned) <= {planned}


def test_a_master_that_saves_work_looks_less_often_and_says_so_to_the_watch() -> None:
    worker = Worker("w", 2.0)
    looker, _, _ = watch(worker, factor=3.0)
    pass_time(looker, 61.0)
    assert worker.planned == [6.0] * 10


def test_looks_that_were_missed_are_not_made_up_for() -> None:
    worker = Worker("w", 1.0)
    looker, _, _ = watch(worker)
    looker.look(0.0)
    assert looker.look(1000.0) == 1.0  # the machine was suspended
    assert worker.planned == [1.0]
    assert looker.look(1000.5) == 0.5
    assert worker.planned == [1.0]


def test_one_that_cannot_be_looked_at_costs_the_others_nothing() -> None:
    broken, well = Worker("broken", 1.0, fails=True), Worker("well", 1.0)
    looker, _, _ = watch(broken, well)
    pass_time(looker, 10.5)
    # It is tried again each period, not at once.
    assert len(broken.planned) == len(well.planned) == 10


def test_the_next_process_is_first_looked_at_a_whole_period_after_its_start() -> None:
    worker = Worker("w", 4.0)
    looker, kept, _ = watch(worker)
    looker.look(0.0)
    assert kept.living == {("w", 1)}
    worker.process = None
    assert looker.look(2.0) == 4.0
    assert kept.living == set()
    worker.process = SimpleNamespace(epoch=2)
    looker.look(3.0)
    looker.look(6.9)
    assert worker.planned == []
    looker.look(7.0)
    assert worker.planned == [4.0]
    assert kept.living == {("w", 2)}


@pytest.mark.parametrize("state", [state for state in State if state not in ALIVE])
def test_who_does_not_run_is_not_judged(state: State) -> None:
    worker = Worker("w", 0.1)
    worker.state = state
    looker, kept, _ = watch(worker)
    pass_time(looker, 2.0)
    assert worker.planned == []
    assert kept.living == set()


def test_a_worker_that_is_no_longer_known_is_forgotten() -> None:
    worker = Worker("w", 4.0)
    looker, kept, by_name = watch(worker)
    looker.look(0.0)
    del by_name["w"]
    assert looker.look(3.0) == SAMPLE_SECONDS
    assert kept.living == set()
    by_name["w"] = worker
    looker.look(5.0)  # another one of that name: not due because the one before was
    assert worker.planned == []


def test_caps_that_the_kernel_does_not_hold_are_held_once_a_second_whatever_is_due() -> None:
    enforced: list[float] = []
    looker, _, _ = watch(Worker("w", 60.0), Worker("v", 0.1), enforced=enforced)
    pass_time(looker, 30.0)
    assert 28 <= len(enforced) <= 34
    assert all(0.89 <= after - before <= 1.1 for before, after in pairwise(enforced))
    alone: list[float] = []
    looker, _, _ = watch(enforced=alone)
    pass_time(looker, 10.0)
    assert len(alone) == 10
