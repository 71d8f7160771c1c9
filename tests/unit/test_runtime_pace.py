"""Pacing of long work: its average, its burst, and what a task may use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.workers.runtime.allowance import Allowance
from garrison.workers.runtime.pace import CpuPace, Meter
from garrison.workers.runtime.stallguard import parse
from garrison.workers.runtime.tickers import Tickers

SAMPLE = 5.0


@given(st.floats(0.5, 50), st.lists(st.floats(0.0005, 0.05), min_size=50, max_size=400), st.floats(0, SAMPLE))
def test_paced_work_stays_below_the_trip_value_in_every_sample(trip, items, offset):
    allowance = Allowance()
    allowance.budget(trip, 100.0, SAMPLE)
    pace, now, used = CpuPace(), 100.0, 0.0
    spent: list[tuple[float, float]] = []
    for item in items:
        used += item
        now += item
        spent.append((now, item))
        now += max(0.0, pace.delay(used, now, allowance.paced(now, degraded=False), allowance.burst_seconds))
    edge = 100.0 + offset
    while edge < now:
        inside = sum(item for at, item in spent if edge < at <= edge + SAMPLE)
        # Two items more than the schedule: the first is not measured, the last is begun with what is left.
        assert inside <= trip / 100 * SAMPLE + 2 * max(items)
        edge += SAMPLE


def test_an_hour_of_paced_work_uses_what_it_may_and_never_trips():
    allowance = Allowance()
    pace, now, used = CpuPace(), 0.0, 0.0
    worst, in_a_row, last = 0, 0, 0.0
    edge = SAMPLE
    while now < 3600:
        used, now = used + 0.01, now + 0.01
        now += max(0.0, pace.delay(used, now, allowance.paced(now, degraded=False), allowance.burst_seconds))
        while now >= edge:
            in_a_row = in_a_row + 1 if (used - last) / SAMPLE * 100 > 5.0 else 0
            worst, last, edge = max(worst, in_a_row), used, edge + SAMPLE
    assert worst <= 1
    assert used / now * 100 == pytest.approx(4.0, rel=0.02)


@given(st.floats(0.1, 5), st.floats(10, 1e5))
def test_what_was_used_slowly_over_a_long_time_asks_for_no_pause(percent, gap):
    pace = CpuPace()
    pace.delay(0.0, 0.0, 6.0, 1.0)
    assert pace.delay(percent / 100 * gap, gap, 6.0, 1.0) <= 0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(-50, 50)), max_size=50))
def test_a_clock_that_goes_backwards_asks_for_no_more_than_what_was_used_is_worth(steps):
    meter, now, used = Meter(1.0, 1.0), 0.0, 0.0
    latest = 0.0
    for amount, passed in steps:
        now += passed
        latest = max(latest, now)
        used += amount
        meter.use(amount, now, lasted=passed)
        assert meter.delay(latest) <= used + 1e-6


def test_degraded_long_work_takes_twice_as_long():
    allowance = Allowance()
    assert allowance.paced(0.0, degraded=True) == allowance.paced(0.0, degraded=False) / 2 == 2.0


def test_a_tasks_allowance_ends_with_its_time_or_with_the_task_and_never_exceeds_the_quota():
    allowance = Allowance()
    allowance.budget(share=2.5, quota=10.0, sample_seconds=5.0)
    allowance.begin_task(8.0, 60.0, 100.0)
    assert (allowance.of_task(159.9), allowance.percent(159.9)) == (8.0, 8.0)
    assert (allowance.of_task(160.0), allowance.percent(160.0)) == (0.0, 2.5)
    allowance.begin_task(50.0, 60.0, 100.0)
    assert allowance.percent(100.0) == 10.0
    allowance.end_task()
    assert allowance.percent(100.0) == 2.5
    for percent, seconds in ((0.0, 60.0), (8.0, 0.0), (1.0, 60.0)):
        allowance.begin_task(percent, seconds, 100.0)
        assert (allowance.of_task(100.0), allowance.percent(100.0)) == (0.0, 2.5)


def nothing() -> None:
    pass


@given(st.floats(0.05, 500), st.floats(0, 1e6), st.integers(2, 40))
def test_stretched_ticks_come_half_as_often_and_go_back_to_normal(period, start, count):
    tickers = Tickers("h", "w")
    tickers.add(period, nothing, start)
    now = tickers.next_due() or 0.0
    tickers.due(now, 2.0)
    first = now = tickers.next_due() or 0.0
    for _ in range(count):
        assert tickers.due(now, 2.0) == [nothing]
        now = tickers.next_due() or 0.0
    assert now - first == pytest.approx(2 * count * period, abs=max(1.0, period) * 1.1)
    due = tickers.next_due()
    assert tickers.due((due or 0.0) - 1.5 * period) == []  # back to normal: what is planned stays planned
    assert tickers.next_due() == due
    tickers.due(due or 0.0)
    assert (tickers.next_due() or 0.0) - (due or 0.0) <= 1.7 * period


STACKS = """module 0x7f01 quiet
module 0x7f02 holder of locks
Fatal? No: stacks
Thread 0x00007f01 (most recent call first):
  File "/a/quiet.py", line 3 in run

Current thread 0x0000000000007f02 (most recent call first):
  File "/a/holder.py", line 12 in work
  File "/a/holder.py", line 30 in run

Thread 0x00007f00 (most recent call first):
  File "/main.py", line 1 in main
"""


def test_the_stalled_module_is_found_in_the_stacks():
    assert parse(STACKS) == (
        "holder of locks",
        '"/a/holder.py", line 12 in work < "/a/holder.py", line 30 in run',
    )


@given(st.text())
def test_whatever_is_left_in_the_file_is_no_error(text):
    name, stack = parse(text)
    assert isinstance(name, str)
    assert len(stack.encode()) <= 512


def test_a_file_without_a_running_thread_names_nobody():
    assert parse("module 0x7f01 quiet\n") == ("", "")
    assert parse(STACKS.replace("module 0x7f02 holder of locks\n", ""))[0] == ""
