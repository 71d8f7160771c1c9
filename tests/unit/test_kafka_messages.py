"""From batches to messages, and what is kept about those under way."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.sinks.kafka.messages import Span, headers_of, lines_of, spans_of, value_of
from garrison.supervisor.sinks.kafka.underway import MAX_SETTLED, Underway


def made(lines: list[bytes], first: int = 1) -> Batch:
    data = b"".join(line + b"\n" for line in lines)
    return Batch("process", WorkerLedger(), "event", len(lines), data, "process", 7, first)


lines_strategy = st.lists(st.binary(max_size=40).map(lambda text: b"{" + text.replace(b"\n", b"") + b"}"), min_size=1)


@given(lines_strategy, st.integers(1, 30), st.integers(1, 200))
def test_messages_hold_every_event_once_in_order_and_within_their_bounds(
    lines: list[bytes], per_message: int, max_bytes: int
) -> None:
    batch = made(lines)
    found = lines_of(batch)
    values = [value_of(found, span) for span in spans_of(batch, per_message, max_bytes)]
    assert b"\n".join(values).split(b"\n") == lines
    for value in values:
        assert value.count(b"\n") < per_message
        assert len(value) < max_bytes + 1 or b"\n" not in value


def test_the_headers_are_what_the_master_says() -> None:
    assert headers_of(b"web1", made([b"{}"])) == [
        ("host", b"web1"),
        ("worker", b"process"),
        ("epoch", b"7"),
        ("priority", b"event"),
    ]


class Future:
    """Stands where kafka-python's future stands: it is only looked at."""

    def __init__(self) -> None:
        self.is_done = False
        self.exception: Exception | None = None

    def succeeded(self) -> bool:
        return self.is_done and self.exception is None

    def end(self, exception: Exception | None = None) -> None:
        self.is_done, self.exception = True, exception


def begun(underway: Underway, batch: Batch, count: int) -> tuple[Any, list[Future]]:
    entry = underway.begin(batch, [Span(line, line + 1) for line in range(count)])
    futures = [Future() for _ in range(count)]
    for message, future in zip(entry.messages, futures, strict=True):
        message.future = future
    return entry, futures


def test_a_batch_is_through_when_all_its_messages_are() -> None:
    underway, batch = Underway(), made([b"{1}", b"{2}"])
    _, futures = begun(underway, batch, 2)
    assert underway.waiting
    assert underway.open_bytes == len(batch.data)
    futures[1].end()
    assert underway.settle() is None
    assert underway.take(batch) is None
    futures[0].end()
    underway.settle()
    assert underway.take(made([b"{1}", b"{2}"])) is not None, "the same events, another object"
    assert underway.open_bytes == 0


def test_what_was_confirmed_stays_so_when_the_producer_is_gone() -> None:
    underway, batch, other = Underway(), made([b"{1}", b"{2}"]), made([b"{3}"], first=3)
    _, futures = begun(underway, batch, 2)
    begun(underway, other, 1)
    futures[0].end()
    futures[1].end(RuntimeError("fenced"))
    assert isinstance(underway.settle(), RuntimeError)
    underway.producer_gone()
    left = underway.get(batch)
    assert left is not None
    assert [message.span for message in left.messages] == [Span(1, 2)]
    assert underway.get(other) is None, "begun anew"
    assert underway.open_bytes == 0


def test_refused_events_become_ranges() -> None:
    underway, batch = Underway(), made([b"{%d}" % number for number in range(5)], first=11)
    entry, _ = begun(underway, batch, 5)
    for message in [entry.messages[0], entry.messages[1], entry.messages[3]]:
        entry.refuse(message, "oversize")
    assert [(each.first, each.last, each.reason, each.events) for each in entry.refusals(batch)] == [
        (11, 12, "oversize", 2),
        (14, 14, "oversize", 1),
    ]


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    underway = Underway()
    for number in range(MAX_SETTLED + 10):
        _, futures = begun(underway, made([b"{}"], first=number + 1), 1)
        futures[0].end()
        underway.settle()
    assert underway.get(made([b"{}"], first=1)) is None
    assert underway.get(made([b"{}"], first=MAX_SETTLED)) is not None


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(("ok", "bad", "lost"))), max_size=30))
def test_a_message_is_never_forgotten_before_it_is_through(steps: list[tuple[int, str]]) -> None:
    underway = Underway()
    batches = [made([b"{1}", b"{2}"], first=2 * number + 1) for number in range(4)]
    confirmed: dict[int, set[int]] = {number: set() for number in range(4)}
    for number, what in steps:
        batch = batches[number]
        entry = underway.get(batch) or underway.begin(batch, [Span(0, 1), Span(1, 2)])
        for message in entry.messages[:1]:
            future = Future()
            message.future = future
            if what == "ok":
                future.end()
                confirmed[number].add(message.span.start)
            elif what == "bad":
                future.end(RuntimeError("no"))
        underway.settle()
        if what == "lost":
            underway.producer_gone()
        again = underway.get(batch)
        left = {0, 1} if again is None else {message.span.start for message in again.messages}
        assert left == {0, 1} - confirmed[number]
