"""The outbox: bounded, ordered, and every number in data or in a drop range."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.ipc.frames import MAX_UP_BYTES, encode
from garrison.ipc.messages import MAX_DROPPED_RANGES, PRIORITIES, Events, Priority
from garrison.workers.runtime.outbox import (
    BATCH_BYTES,
    ENTRY_BYTES,
    EVENT_BYTES,
    FLUSH_BYTES,
    FLUSH_SECONDS,
    QUEUE_FULL,
    Outbox,
)


class Book:
    """Checks batches as the master would."""

    def __init__(self) -> None:
        self.next = dict.fromkeys(PRIORITIES, 1)
        self.lines: dict[Priority, list[int]] = {priority: [] for priority in PRIORITIES}
        self.dropped: dict[str, int] = {}

    def take(self, batch: Events) -> None:
        assert len(encode("events", batch, limit=MAX_UP_BYTES)) <= MAX_UP_BYTES + 4
        assert len(batch.dropped) <= MAX_DROPPED_RANGES
        assert batch.count or batch.dropped
        expected = self.next[batch.priority]
        for first, last, reason in batch.dropped:
            assert first == expected
            assert first <= last
            expected = last + 1
            self.dropped[reason] = self.dropped.get(reason, 0) + last - first + 1
        assert batch.first == expected
        assert batch.data.count(b"\n") == batch.count
        for line in batch.data.splitlines():
            assert int(line.split()[0]) == expected
            self.lines[batch.priority].append(expected)
            expected += 1
        self.next[batch.priority] = expected


def line(number: int, size: int) -> bytes:
    return b"%d %s\n" % (number, b"x" * max(0, size - 2 - len(str(number))))


def put(box: Outbox, priority: Priority, size: int, now: float = 0.0) -> bool:
    return box.put(priority, line(box.number(priority), size), now)


def outbox(limit: int = 100_000) -> Outbox:
    return Outbox(limit, lambda: None)


def drain(box: Outbox, book: Book) -> None:
    while (batch := box.take(0.0, force=True)) is not None:
        book.take(batch)
    assert box.empty


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(PRIORITIES), st.integers(4, EVENT_BYTES)),
        st.tuples(st.just("put"), st.sampled_from(PRIORITIES), st.integers(4, 400)),
        st.tuples(st.just("refuse"), st.sampled_from(PRIORITIES), st.sampled_from(["oversize", "unencodable"])),
        st.tuples(st.just("take"), st.just("event"), st.integers(1, 4)),
    ),
    max_size=120,
)


@given(operations, st.sampled_from([0, 2_000, 60_000, 1_000_000]))
@settings(max_examples=300, deadline=None)
def test_every_number_leaves_once_and_in_order_as_data_or_as_dropped(steps, limit):
    box, book = outbox(limit), Book()
    numbered = dict.fromkeys(PRIORITIES, 0)
    for what, priority, argument in steps:
        if what == "put":
            put(box, priority, argument)
            numbered[priority] += 1
        elif what == "refuse":
            box.refuse(priority, argument, 0.0)
            numbered[priority] += 1
        else:
            for _ in range(argument):
                if (batch := box.take(0.0, force=True)) is not None:
                    book.take(batch)
        assert box.memory_bytes() <= limit
    dropped = sum(box.dropped().values())
    drain(box, book)
    assert {priority: number - 1 for priority, number in book.next.items()} == numbered
    assert box.emitted() == {priority: count for priority, count in numbered.items() if count}
    assert sum(numbered.values()) == sum(len(lines) for lines in book.lines.values()) + dropped
    assert sum(book.dropped.values()) == dropped


@given(st.lists(st.tuples(st.sampled_from(PRIORITIES), st.integers(50, 3000)), max_size=150))
@settings(deadline=None)
def test_nothing_is_dropped_while_something_less_important_waits(events):
    box = outbox(20_000)
    for priority, size in events:
        lower = PRIORITIES[PRIORITIES.index(priority) + 1 :]
        room = box.limit - box.memory_bytes() + sum(box._queues[name].cost() for name in lower)
        assert put(box, priority, size) == (max(size, 3) + ENTRY_BYTES <= room)


def test_a_full_outbox_gives_up_the_newest_of_the_lowest_priority_first():
    box, book = outbox(3 * (100 + ENTRY_BYTES)), Book()
    assert put(box, "metric", 100)
    assert put(box, "metric", 100)
    assert put(box, "event", 100)
    assert put(box, "alert", 100)
    assert put(box, "state", 100)
    assert put(box, "state", 100)
    assert not put(box, "event", 100)
    drain(box, book)
    assert book.lines == {"alert": [1], "state": [1, 2], "event": [], "metric": []}
    assert book.dropped == {QUEUE_FULL: 4}


def test_nothing_is_given_up_for_an_event_that_would_not_fit_even_then():
    box = outbox(2000)
    assert put(box, "alert", 1200)
    assert put(box, "metric", 100)
    assert not put(box, "event", 1500)
    assert box.queued()[0] == 2


def test_drops_of_one_reason_are_one_range_and_stand_in_their_place():
    box = outbox()
    put(box, "event", 50)
    for _ in range(1000):
        box.refuse("event", "oversize", 0.0)
    put(box, "event", 50)
    first, second = box.take(0.0, force=True), box.take(0.0, force=True)
    assert first is not None
    assert second is not None
    assert (first.first, first.count, first.dropped) == (1, 1, [])
    assert (second.first, second.count, second.dropped) == (1002, 1, [(2, 1001, "oversize")])


def test_markers_are_merged_as_mixed_when_reasons_alternate_without_end():
    box, book = outbox(), Book()
    for number in range(100_000):
        box.refuse("event", ("oversize", "unencodable")[number % 2], 0.0)
    assert len(box._queues["event"].gaps) <= MAX_DROPPED_RANGES
    drain(box, book)
    assert sum(book.dropped.values()) == 100_000
    assert "mixed" in book.dropped


def test_an_event_longer_than_the_limit_is_the_callers_error_and_uses_no_number():
    box = outbox()
    with pytest.raises(ValueError, match="over the limit"):
        box.put("event", b"x" * EVENT_BYTES + b"\n", 0.0)
    assert box.number("event") == 1


def test_batches_are_as_full_as_a_frame_allows():
    box = outbox(1_000_000)
    for _ in range(1000):
        put(box, "event", 400)
    batch = box.take(0.0)
    assert batch is not None
    assert BATCH_BYTES - 400 < len(batch.data) <= BATCH_BYTES


def test_alerts_leave_before_states_and_those_before_events():
    box = outbox()
    for priority in reversed(PRIORITIES):
        put(box, priority, 50)
    order = [batch.priority for _ in range(4) if (batch := box.take(0.0, force=True)) is not None]
    assert order == list(PRIORITIES)


def test_an_event_after_another_waits_for_company_and_an_alert_does_not():
    box = outbox()
    put(box, "event", 50, 10.0)
    assert box.take(10.0) is not None
    put(box, "event", 50, 10.01)
    assert box.take(10.1) is None
    put(box, "alert", 50, 10.1)
    batch = box.take(10.1)
    assert batch is not None
    assert batch.priority == "alert"
    assert box.take(10.1) is None
    assert box.take(10.0 + FLUSH_SECONDS) is not None


def test_enough_bytes_go_without_waiting():
    box = outbox()
    put(box, "event", 50, 10.0)
    box.take(10.0)
    while box.queued()[1] < FLUSH_BYTES:
        assert box.take(10.01) is None
        put(box, "event", 500, 10.01)
    assert box.take(10.01) is not None


def test_the_writer_is_woken_once_for_a_burst_and_not_at_all_while_it_comes_in_time_anyway():
    wakes = []
    box = Outbox(100_000, lambda: wakes.append(1))
    assert box.next_flush(10.0) is None
    for _ in range(10):
        put(box, "event", 50, 10.0)
    assert len(wakes) == 1
    assert box.take(10.0) is not None
    assert box.next_flush(10.0) == 10.0 + FLUSH_SECONDS
    for _ in range(10):
        put(box, "event", 50, 10.1)
    assert len(wakes) == 1
    for _ in range(10):
        put(box, "alert", 50, 10.1)
    assert len(wakes) == 2
    box.writer_waits_for_pipe()
    put(box, "alert", 50, 10.1)
    assert len(wakes) == 2


def test_an_idle_outbox_asks_for_no_wakeups():
    box = outbox()
    put(box, "event", 50, 10.0)
    box.take(10.0)
    assert box.next_flush(10.0 + FLUSH_SECONDS) is None
