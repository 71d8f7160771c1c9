"""Tickers: never early, never made up for, merged within a process and staggered between them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.workers.runtime.tickers import MAX_TICKERS, Tickers, grid_of

periods = st.floats(0.01, 5000.0)
starts = st.floats(0.0, 1e7)


def nothing() -> None:
    pass


@given(periods, starts, st.lists(st.floats(0.0, 100.0), min_size=1, max_size=60))
@settings(deadline=None)
def test_calls_come_no_earlier_than_planned_and_never_twice_within_half_a_period(period, start, steps):
    tickers = Tickers("h", "w")
    tickers.add(period, nothing, start)
    now, last = start, -math.inf
    for step in steps:
        due = tickers.next_due()
        assert due is not None
        assert now < due + period or now >= due
        now += step
        called = bool(tickers.due(now))
        assert called == (now >= due)
        if called:
            assert now - last >= period / 2 * (1 - 1e-6)
            last = now
        upcoming = tickers.next_due()
        assert upcoming is not None
        assert now < upcoming <= max(now + 1.5 * period + 2 * grid_of(period) + 1e-6, due)


@given(periods, starts)
def test_the_first_call_comes_after_a_share_of_the_period(period, start):
    tickers = Tickers("h", "w")
    tickers.add(period, nothing, start)
    due = tickers.next_due()
    assert due is not None
    assert start < due <= start + period + grid_of(period) + 1e-6


@given(periods, starts, st.integers(2, 50))
@settings(deadline=None)
def test_on_time_calls_keep_the_period_on_average(period, start, count):
    tickers = Tickers("h", "w")
    tickers.add(period, nothing, start)
    first = now = tickers.next_due() or 0.0
    for _ in range(count):
        assert tickers.due(now) == [nothing]
        now = tickers.next_due() or 0.0
    assert abs((now - first) - count * period) <= grid_of(period) + 1e-5


def test_a_long_stall_is_one_late_call():
    tickers = Tickers("h", "w")
    tickers.add(1.0, nothing, 0.0)
    assert tickers.due(1000.0) == [nothing]
    assert tickers.due(1000.1) == []


def test_an_immediate_ticker_is_due_at_once():
    tickers = Tickers("h", "w")
    tickers.add(60.0, nothing, 5.0, immediately=True)
    assert tickers.due(5.0) == [nothing]
    assert tickers.due(5.0) == []


@given(periods, starts, st.floats(0.0, 1e7))
def test_a_clock_that_goes_backwards_delays_nothing_by_more_than_two_periods(period, start, back):
    tickers = Tickers("h", "w")
    tickers.add(period, nothing, start)
    tickers.due(start + 3 * period)
    now = max(0.0, start - back)
    tickers.due(now)
    due = tickers.next_due()
    assert due is not None
    assert due <= now + 2 * period + 2 * grid_of(period) + 1e-6


def test_periods_that_divide_each_other_share_their_wakeups_across_the_modules_of_a_process():
    one, other = Tickers("h", "w"), Tickers("h", "w")
    one.add(10.0, nothing, 3.0)
    other.add(60.0, nothing, 17.0)
    wakeups, of_one = set(), set()
    now = 20.0
    while now < 620.0:
        now = min(one.next_due() or 0.0, other.next_due() or 0.0)
        if one.due(now):
            of_one.add(now)
        other.due(now)
        wakeups.add(now)
    assert wakeups == of_one


def test_hosts_are_staggered():
    dues = []
    for number in range(200):
        tickers = Tickers(f"host{number}", "w")
        tickers.add(60.0, nothing, 1000.0)
        dues.append((tickers.next_due() or 0.0) - 1000.0)
    for quarter in range(4):
        assert 20 < sum(quarter * 15 <= due < quarter * 15 + 15 for due in dues) < 90


@given(periods)
def test_a_grid_is_a_power_of_two_below_a_tenth_of_the_period(period):
    grid = grid_of(period)
    assert math.log2(grid).is_integer()
    assert grid <= min(1.0, period / 10)


@pytest.mark.parametrize("period", [0.0, -1.0, math.nan, math.inf, 0.001])
def test_a_period_that_makes_no_sense_is_refused(period):
    with pytest.raises(ValueError, match="period"):
        Tickers("h", "w").add(period, nothing, 0.0)


def test_the_number_of_tickers_is_bounded():
    tickers = Tickers("h", "w")
    for _ in range(MAX_TICKERS):
        tickers.add(1.0, nothing, 0.0)
    with pytest.raises(ValueError, match="at most"):
        tickers.add(1.0, nothing, 0.0)
