"""From a batch to messages: which events go together, and what stands in the headers. Pure."""

from __future__ import annotations

from typing import NamedTuple

from garrison.supervisor.events.queue import Batch

Headers = list[tuple[str, bytes]]


class Span(NamedTuple):
    """Lines of a batch that are one message: from `start` up to and without `end`, counted from 0."""

    start: int
    end: int


def spans_of(batch: Batch, per_message: int, max_bytes: int) -> list[Span]:
    """Return the messages of a batch.

    Args:
        batch: What is to be sent.
        per_message: Most events in a message.
        max_bytes: Size above which no further event is added to a message; one event alone may be larger.
    """
    if per_message == 1:
        return [Span(line, line + 1) for line in range(batch.count)]
    if batch.count <= per_message and len(batch.data) <= max_bytes:
        return [Span(0, batch.count)]
    spans: list[Span] = []
    start = size = 0
    for number, line in enumerate(lines_of(batch)):
        if number > start and (number - start == per_message or size + len(line) + 1 > max_bytes):
            spans.append(Span(start, number))
            start, size = number, 0
        size += len(line) + 1
    spans.append(Span(start, batch.count))
    return spans


def singles(span: Span) -> list[Span]:
    """Return a message's events as messages of their own."""
    return [Span(line, line + 1) for line in range(span.start, span.end)]


def lines_of(batch: Batch) -> list[bytes]:
    """Return the events, without newlines."""
    return batch.data.split(b"\n")[: batch.count]


def value_of(lines: list[bytes], span: Span) -> bytes:
    """Return what the message holds: one JSON document, or several with newlines between them."""
    return lines[span.start] if span.end - span.start == 1 else b"\n".join(lines[span.start : span.end])


def headers_of(host: bytes, batch: Batch) -> Headers:
    """Return the headers of all messages of a batch: what the master says, whatever the events say."""
    return [
        ("host", host),
        ("worker", batch.worker.encode()),
        ("epoch", b"%d" % batch.epoch),
        ("priority", batch.priority.encode()),
    ]


def numbers_of(batch: Batch, span: Span) -> Headers:
    """Return the headers of one message: the sequence number of its first event, and how many it holds."""
    return [("sequence", b"%d" % (batch.first + span.start)), ("count", b"%d" % (span.end - span.start))]
