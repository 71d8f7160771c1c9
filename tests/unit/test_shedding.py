"""What the master gives up when it is above its own share. The policy alone, and the page that tells of it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.budget.shedding import OVER_SECONDS, UNDER_SECONDS, WHAT, Level, Share, State, judge

SHARE = Share(cpu_percent=10.0, memory_bytes=1000)
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def run(state: State, seconds: float, cpu: float = 1.0, memory: int = 10) -> State:
    at = state.at or 0.0
    for _ in range(round(seconds / 5)):
        at += 5.0
        state = judge(state, at, cpu, memory, SHARE)
    return state


def test_one_level_after_another_while_it_is_above_and_no_further_than_the_last() -> None:
    state = run(State(), 5)
    levels = []
    for _ in range(8):
        state = run(state, OVER_SECONDS, cpu=50.0)
        levels.append(int(state.level))
    assert levels == [1, 2, 3, 4, 5, 5, 5, 5]


def test_memory_counts_like_cpu() -> None:
    assert run(run(State(), 5), OVER_SECONDS, memory=2000).level is Level.TAPS


def test_back_after_a_minute_well_below_one_level_at_a_time() -> None:
    state = run(run(State(), 5), 2 * OVER_SECONDS, cpu=50.0)
    assert state.level is Level.GAUGES
    assert run(state, UNDER_SECONDS - 5).level is Level.GAUGES
    assert run(state, UNDER_SECONDS).level is Level.TAPS
    assert run(state, 2 * UNDER_SECONDS).level is Level.NOTHING
    assert run(state, 10 * UNDER_SECONDS, cpu=9.0).level is Level.GAUGES


@given(st.lists(st.tuples(st.floats(-10, 3600), st.floats(0, 100), st.integers(0, 3000)), max_size=60))
def test_the_level_moves_by_one_and_never_with_a_time_that_is_not_newer(steps: list[tuple[float, float, int]]) -> None:
    state, at = State(), 0.0
    for delta, cpu, memory in steps:
        at += delta
        old, state = state, judge(state, at, cpu, memory, SHARE)
        assert abs(state.level - old.level) <= 1
        if old.at is not None and at <= old.at:
            assert state == old
            at = old.at


def test_the_page_shows_the_same_table() -> None:
    page = PAGE.read_text()
    for level, what in WHAT.items():
        assert f"| {int(level)} | {what} |" in page
