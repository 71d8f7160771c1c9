"""How full a queue is said to be, how fast bytes may leave, and which heartbeats have told what."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.events.globalrate import BURST_SECONDS, URGENT_SECONDS, GlobalRate
from garrison.supervisor.events.level import FLOOD_SECONDS, FULL_SHARE, NORMAL_SHARE, WARN_SHARE, Level, judge
from garrison.supervisor.heartbeat.telling import Telling, Told

looks = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1), st.booleans()), max_size=60)


@given(looks)
def test_the_level_follows_its_bounds(made: list[tuple[float, float, bool]]) -> None:
    level, now, full_for = Level(), 0.0, None
    for step, share, overflowed in made:
        now += step
        before, level = level, judge(level, now, share, overflowed=overflowed)
        if overflowed or share >= FULL_SHARE:
            full_for = now if full_for is None else full_for
            assert level.phase == ("flood" if now - full_for >= FLOOD_SECONDS else "full")
            continue
        full_for = None
        if share >= WARN_SHARE:
            assert level.phase == "warning"
        elif share <= NORMAL_SHARE:
            assert level.phase == "normal"
        else:
            assert level.phase == ("normal" if before.phase == "normal" else "warning")


def test_between_the_two_bounds_nothing_changes() -> None:
    level = Level()
    phases = []
    for at, share in enumerate((0.6, 0.89, 0.91, 0.8, 0.71, 0.69, 0.89)):
        level = judge(level, float(at), share)
        phases.append(level.phase)
    assert phases == ["normal", "normal", "warning", "warning", "warning", "normal", "normal"]


def test_fifteen_seconds_without_room_are_a_flood_and_a_break_begins_anew() -> None:
    level = judge(Level(), 0.0, 1.0)
    assert judge(level, 14.9, 1.0).phase == "full"
    assert judge(level, 15.0, 1.0).phase == "flood"
    again = judge(judge(level, 14.9, 0.95), 15.0, 1.0)
    assert judge(again, 29.9, 1.0).phase == "full"
    assert judge(again, 30.0, 1.0).phase == "flood"


offers = st.lists(
    st.tuples(st.sampled_from(["alert", "state", "event", "metric"]), st.integers(1, 5000), st.floats(0, 3)),
    max_size=80,
)


@given(offers, st.integers(100, 10_000))
def test_over_any_time_no_more_leaves_than_rate_and_bursts_allow(made: list[tuple[str, int, float]], rate: int) -> None:
    limit, now, left = GlobalRate(rate), 0.0, 0
    for priority, size, step in made:
        now += step
        if limit.wait(priority, now) == 0:
            limit.took(priority, size, now)
            left += size
        assert left <= rate * (now + BURST_SECONDS + URGENT_SECONDS) + 2 * 5000


@given(offers, st.integers(100, 10_000))
def test_who_waits_as_long_as_told_may_go(made: list[tuple[str, int, float]], rate: int) -> None:
    limit, now = GlobalRate(rate), 0.0
    for priority, size, step in made:
        now += step
        now += limit.wait(priority, now)
        assert limit.wait(priority, now) == 0
        limit.took(priority, size, now)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=50), st.integers(2000, 10_000))
def test_a_flood_of_events_never_makes_an_alert_wait(sizes: list[int], rate: int) -> None:
    limit, now = GlobalRate(rate), 0.0
    for size in sizes:
        # Events take all they get, as fast as they get it.
        while limit.wait("event", now) == 0:
            # One write may overdraw by any number of seconds.
            limit.took("event", size * 1000, now)
        assert limit.wait("alert", now) == 0
        limit.took("alert", 100, now)
        now += 0.1


def test_without_a_limit_nothing_waits() -> None:
    limit = GlobalRate(0)
    limit.took("event", 10**12, 0.0)
    assert limit.wait("event", 0.0) == 0
    limit.limit(100)
    assert limit.wait("event", 0.0) == 0


def test_a_heartbeat_tells_when_it_has_arrived_and_not_when_it_was_dropped() -> None:
    telling = Telling()
    telling.sent(Told(1.0, 3, {"a": 5, "b": 1}))
    telling.sent(Told(2.0, 7, {"a": 6}))
    telling.sent(Told(3.0, 9, {"a": 8}))
    assert telling.arrived(2, []) == {}
    assert telling.waiting_since == 1.0
    assert telling.arrived(3, []) == {"a": 5, "b": 1}
    assert telling.arrived(3, [(6, 8)]) == {}
    assert telling.waiting_since == 3.0
    assert telling.arrived(9, []) == {"a": 8}
    assert telling.waiting_since is None
