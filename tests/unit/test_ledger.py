"""The ledger: the equation holds, and a worker cannot cheat it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.frames import ProtocolError
from garrison.ipc.messages import Beat, Events
from garrison.supervisor.events.checking import ProcessLedger, open_objects
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import OVERHEAD_BYTES, Batch, EventQueue
from garrison.supervisor.events.stamp import Stamp


def batch(first: int, count: int, dropped: list[tuple[int, int, str]] | None = None, priority: str = "event") -> Events:
    data = b"".join(b'{"n":%d}\n' % n for n in range(first, first + count))
    return Events(priority=priority, first=first, count=count, data=data, dropped=dropped or [])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_batches_and_drops_without_a_gap_are_booked_exactly(parts: list[tuple[int, int]]) -> None:
    worker = WorkerLedger()
    process = ProcessLedger(worker)
    number = 1
    received = dropped = 0
    for lost, count in parts:
        ranges = [(number, number + lost - 1, "queue_full")] if lost else []
        number += lost
        process.book(batch(number, count, ranges))
        number += count
        received += count
        dropped += lost
    assert worker.emitted == received + dropped
    assert worker.dropped.total() == dropped
    assert worker.in_flight == received


@pytest.mark.parametrize(
    "bad",
    [
        batch(2, 1),
        batch(1, 1, [(1, 1, "x")]),
        batch(3, 1, [(2, 2, "x")]),
        batch(3, 1, [(1, 0, "x")]),
        Events(priority="event", first=1, count=2, data=b'{"n":1}\n'),
        Events(priority="event", first=1, count=1, data=b'{"n":1}'),
        Events(priority="event", first=1, count=1, data=b"[1]\n"),
        Events(priority="event", first=1, count=1, data=b"{}\n"),
        Events(priority="event", first=1, count=0, data=b"x"),
    ],
)
def test_a_batch_that_lies_is_a_breach_and_books_nothing(bad: Events) -> None:
    worker = WorkerLedger()
    with pytest.raises(ProtocolError):
        ProcessLedger(worker).book(bad)
    assert worker.emitted == 0
    assert not worker.dropped


def test_each_priority_has_its_own_sequence() -> None:
    process = ProcessLedger(WorkerLedger())
    process.book(batch(1, 2))
    process.book(batch(1, 1, priority="alert"))
    process.book(batch(3, 1))
    with pytest.raises(ProtocolError):
        process.book(batch(1, 1, priority="alert"))


def test_what_a_killed_process_had_numbered_and_not_handed_over_is_lost_at_exit() -> None:
    worker = WorkerLedger()
    process = ProcessLedger(worker)
    process.claim(Beat(emitted={"event": 10, "alert": 2}))
    process.book(batch(1, 7))
    assert process.close() == 5
    assert worker.emitted == 12
    assert worker.dropped == {"lost_at_exit": 5}


def test_a_beat_that_takes_back_what_was_handed_over_is_a_breach() -> None:
    process = ProcessLedger(WorkerLedger())
    process.book(batch(1, 7))
    with pytest.raises(ProtocolError, match="claims"):
        process.claim(Beat(emitted={"event": 6}))


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1), min_size=1, max_size=5))
def test_a_stamped_line_is_json_in_which_the_masters_word_wins(events: list[dict[str, str]]) -> None:
    forged = [{**event, "host": {"name": "evil"}, "agent": {"worker": "evil"}} for event in events]
    data = b"".join(json.dumps(event).encode() + b"\n" for event in forged)
    objects = open_objects(data, len(forged))
    for line in Stamp("web1", "process", 7).write(objects, "alert").splitlines():
        document = json.loads(line)
        assert document["host"] == {"name": "web1"}
        stamp = document["agent"]
        assert (stamp["type"], stamp["worker"], stamp["epoch"], stamp["priority"]) == (
            "garrison",
            "process",
            7,
            "alert",
        )


@given(
    st.lists(st.sampled_from([b"{", b"}", b"\n", b'"a":1', b'{"a":{}}\n', b"{}\n", b"}{", b"x"]), max_size=8).map(
        b"".join
    ),
    st.integers(0, 4),
)
def test_what_passes_as_lines_of_objects_is_what_a_look_at_each_line_says(data: bytes, count: int) -> None:
    lines = data.split(b"\n")
    good = lines[-1] == b"" and len(lines) == count + 1
    good = good and all(line.startswith(b"{") and line.endswith(b"}") and len(line) > 2 for line in lines[:-1])
    try:
        objects = open_objects(data, count)
    except ProtocolError:
        assert not good
    else:
        assert good
        assert b"}\n".join(objects) == data


priorities = st.sampled_from(["alert", "state", "event", "metric"])


@given(st.lists(st.one_of(st.tuples(priorities, st.integers(1, 400)), st.none()), max_size=60))
def test_the_queue_keeps_its_bound_its_order_and_the_equation(steps: list[tuple[str, int] | None]) -> None:
    ledger = WorkerLedger()
    queue = EventQueue(4096)
    taken: list[Batch] = []
    for step in steps:
        if step is None:
            taken += queue.take(1000)
        else:
            priority, size = step
            ledger.emitted += 1
            queue.put(Batch("w", ledger, priority, 1, bytes(size)))
        assert queue.bytes <= 4096
    rest = queue.take(10**6)
    order = [batch.priority for batch in rest]
    assert order == sorted(order, key=["alert", "state", "event", "metric"].index)
    assert len(taken) + len(rest) + ledger.dropped.total() == ledger.emitted
    assert queue.bytes == 0


def test_an_alert_makes_room_by_dropping_the_oldest_of_the_least_important() -> None:
    ledger = WorkerLedger()
    queue = EventQueue(3 * (OVERHEAD_BYTES + 10))
    for priority in ("event", "metric", "metric"):
        queue.put(Batch("w", ledger, priority, 1, bytes(10)))
    assert queue.put(Batch("w", ledger, "alert", 1, bytes(10)))
    assert [b.priority for b in queue.take(10**6)] == ["alert", "event", "metric"]
    assert ledger.dropped == {"master_queue": 1}


def test_an_event_never_pushes_out_an_alert() -> None:
    ledger = WorkerLedger()
    queue = EventQueue(OVERHEAD_BYTES + 10)
    assert queue.put(Batch("w", ledger, "alert", 1, bytes(10)))
    assert not queue.put(Batch("w", ledger, "event", 1, bytes(10)))
    assert [b.priority for b in queue.take(10**6)] == ["alert"]
