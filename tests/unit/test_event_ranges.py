"""Ranges and interval sets: bounded, and nothing that was dropped goes untold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import Priority
from garrison.supervisor.events.inflight import InFlight
from garrison.supervisor.events.ranges import MIXED, DropRanges

Drop = tuple[int, Priority, int, int, str]

drops = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from(["alert", "event"]),
        st.integers(1, 60),
        st.integers(0, 9),
        st.sampled_from(["rate_limit", "master_queue"]),
    ).map(lambda drop: (drop[0], drop[1], drop[2], drop[2] + drop[3], drop[4])),
    max_size=60,
)


@given(drops, st.integers(2, 8))
def test_every_dropped_number_is_in_a_range_or_counted_as_forgotten(made: list[Drop], most: int) -> None:
    ranges = DropRanges(most=most)
    for epoch, priority, first, last, reason in made:
        ranges.add(epoch, priority, first, last, reason)
        assert len(ranges) <= most
    known = ranges.known()
    missing = {
        (epoch, priority, number)
        for epoch, priority, first, last, _reason in made
        for number in range(first, last + 1)
        if not any((k.epoch, k.priority) == (epoch, priority) and k.first <= number <= k.last for k in known)
    }
    assert len(missing) <= ranges.forgotten
    assert [k.number for k in known] == sorted(k.number for k in known)


@given(drops, drops)
def test_what_was_told_is_forgotten_and_what_came_after_it_is_not(before: list[Drop], after: list[Drop]) -> None:
    ranges = DropRanges()
    for drop in before:
        ranges.add(*drop)
    told = ranges.number
    for drop in after:
        ranges.add(*drop)
    ranges.confirm(told)
    for epoch, priority, first, last, _reason in after:
        known = [k for k in ranges.known() if (k.epoch, k.priority) == (epoch, priority)]
        assert all(any(k.first <= n <= k.last for k in known) for n in range(first, last + 1))
    assert ranges.number == len(before) + len(after)
    ranges.confirm(ranges.number)
    assert ranges.known() == []


def test_neighbours_with_the_same_reason_are_one_range() -> None:
    ranges = DropRanges()
    ranges.add(1, "event", 1, 10, "rate_limit")
    ranges.add(1, "event", 11, 20, "rate_limit")
    ranges.add(1, "event", 21, 21, "master_queue")
    assert [(k.first, k.last, k.reason) for k in ranges.known()] == [(1, 20, "rate_limit"), (21, 21, "master_queue")]


def test_too_many_are_joined_where_they_lie_closest() -> None:
    ranges = DropRanges(most=2)
    for first, reason in ((1, "rate_limit"), (100, "rate_limit"), (102, "master_queue")):
        ranges.add(1, "event", first, first, reason)
    assert {(k.first, k.last, k.reason) for k in ranges.known()} == {(1, 1, "rate_limit"), (100, 102, MIXED)}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("in"), st.sampled_from([(1, "event"), (1, "alert"), (2, "event")]), st.integers(1, 8)),
        st.tuples(
            st.just("out"),
            st.sampled_from([(1, "event"), (1, "alert"), (2, "event")]),
            st.tuples(st.integers(1, 80), st.integers(0, 12)),
        ),
    ),
    max_size=80,
)


@given(steps)
def test_what_is_in_flight_is_what_a_plain_set_says(made: list) -> None:  # type: ignore[type-arg]
    flight = InFlight()
    model: set[tuple[int, str, int]] = set()
    last = {(1, "event"): 0, (1, "alert"): 0, (2, "event"): 0}
    for what, key, size in made:
        epoch, priority = key
        if what == "in":
            flight.add(epoch, priority, last[key] + 1, last[key] + size)
            model |= {(epoch, priority, n) for n in range(last[key] + 1, last[key] + size + 1)}
            last[key] += size
        else:
            numbers = {(epoch, priority, n) for n in range(size[0], size[0] + size[1] + 1)}
            assert flight.settle(epoch, priority, size[0], size[0] + size[1]) == len(model & numbers)
            model -= numbers
    windows = flight.windows()
    assert {(w.epoch, w.priority, n) for w in windows for n in range(w.first, w.last + 1)} == model
    assert sum(len(w) for w in windows) == len(model)


@given(steps, st.integers(3, 6))
def test_bounded_it_never_counts_fewer_than_are_in_flight(made: list, most: int) -> None:  # type: ignore[type-arg]
    flight = InFlight(most=most)
    came = settled = 0
    model: set[tuple[int, str, int]] = set()
    last = {(1, "event"): 0, (1, "alert"): 0, (2, "event"): 0}
    for what, key, size in made:
        if what == "in":
            flight.add(*key, last[key] + 1, last[key] + size)
            model |= {(*key, n) for n in range(last[key] + 1, last[key] + size + 1)}
            last[key] += size
            came += size
        elif numbers := [n for n in range(size[0], size[0] + size[1] + 1) if (*key, n) in model]:
            # As the agent does it: only what is in flight is settled.
            for number in numbers:
                settled += flight.settle(*key, number, number)
                model.discard((*key, number))
        assert len(flight.windows()) <= most
    assert sum(len(w) for w in flight.windows()) + flight.untracked >= len(model)
    assert came - settled == len(model)
