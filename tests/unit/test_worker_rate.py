"""A worker's rate: the average holds whatever comes, and alerts never wait for events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import PRIORITIES, Priority
from garrison.supervisor.worker.rate import WorkerRate

RATE, BURST_SECONDS = 100.0, 2.0
LARGEST = 300


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(PRIORITIES), st.integers(1, LARGEST)), max_size=80))
def test_the_average_holds_for_all_priorities_together(steps: list[tuple[float, Priority, int]]) -> None:
    rate, now, urgent, ordinary = WorkerRate(RATE, BURST_SECONDS), 0.0, 0, 0
    for wait, priority, count in steps:
        now += wait
        if rate.admit(priority, count, now):
            if priority in ("alert", "state"):
                urgent += count
            else:
                ordinary += count
    burst = RATE * BURST_SECONDS
    assert urgent <= RATE * now + burst + LARGEST + 1e-6
    assert ordinary <= RATE * now + burst + LARGEST + 1e-6
    assert urgent + ordinary <= RATE * now + 2 * (burst + LARGEST) + 1e-6


@given(st.lists(st.integers(1, 65536), min_size=1, max_size=50), st.floats(0.01, 10))
def test_a_flood_of_events_costs_no_alert(flood: list[int], wait: float) -> None:
    rate, now = WorkerRate(RATE, BURST_SECONDS), 0.0
    for count in flood:
        now += wait
        rate.admit("event", count, now)
        rate.admit("metric", count, now)
        assert rate.admit("alert", 1, now)


def test_events_make_up_for_what_alerts_took() -> None:
    rate = WorkerRate(RATE, BURST_SECONDS)
    assert rate.admit("alert", 200, 0.0)
    assert not rate.admit("event", 1, 0.0)
    assert not rate.admit("alert", 1, 0.0)
    assert rate.admit("alert", 100, 0.5)
    assert not rate.admit("event", 1, 0.4)
    assert rate.admit("event", 1, 1.1)


def test_a_new_rate_holds_for_both() -> None:
    rate = WorkerRate(RATE, BURST_SECONDS)
    rate.limit(1, 1)
    assert rate.admit("alert", 1, 0.0)
    assert not rate.admit("alert", 1, 0.0)
    assert not rate.admit("event", 1, 0.0)
