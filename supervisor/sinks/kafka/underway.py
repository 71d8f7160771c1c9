"""What has been handed to a producer and is not settled yet, by batch, so that nothing is sent twice.

A producer goes on trying in the background after a write has given up, with the same producer id and sequence numbers,
so that the broker recognises what it has already. A batch that is offered again is therefore waited for, and sent anew
only by a new producer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from garrison.supervisor.events.queue import Batch
from garrison.supervisor.sinks.base import Refused
from garrison.supervisor.sinks.kafka.messages import Span, singles

MAX_SETTLED = 8192
"""Batches that are through, but were not asked for since, whose keys are remembered."""

Key = tuple[str, int, str, int]


def key_of(batch: Batch) -> Key:
    """Return what identifies a batch, also when it comes back from the spool as another object."""
    return batch.worker, batch.epoch, batch.priority, batch.first


class Message:
    """One message: its lines, and what became of it.

    Attributes:
        span: Its lines of the batch.
        future: The producer's, while it is on the way; else None.
        through: Whether it has been acknowledged.
    """

    __slots__ = ("future", "span", "through")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.future: Any = None
        self.through = False


class Entry:
    """A batch that was begun.

    Attributes:
        size: Bytes of the batch.
        messages: Those not yet acknowledged or refused, in order.
        refused: Lines that were refused, with the reason.
    """

    __slots__ = ("_whole", "messages", "refused", "size")

    def __init__(self, batch: Batch, spans: list[Span]) -> None:
        self.size = len(batch.data)
        self.messages = [Message(span) for span in spans]
        self.refused: list[tuple[Span, str]] = []
        self._whole = len(spans)

    @property
    def waiting(self) -> bool:
        """Whether any of it is on the way."""
        return any(message.future is not None for message in self.messages)

    @property
    def untouched(self) -> bool:
        """Whether nothing of it is through, refused or divided: it can be begun anew."""
        return len(self.messages) == self._whole and not self.refused

    def settle(self) -> Exception | None:
        """Note what has been acknowledged since; return the first failure. What failed is no longer on the way."""
        failure: Exception | None = None
        for message in self.messages:
            future = message.future
            if future is None or not future.is_done:
                continue
            message.future = None
            if future.succeeded():
                message.through = True
            else:
                failure = failure or future.exception
        self.messages = [message for message in self.messages if not message.through]
        return failure

    def divide(self, message: Message) -> None:
        """Make each event of a message a message of its own."""
        number = self.messages.index(message)
        self.messages[number : number + 1] = [Message(span) for span in singles(message.span)]

    def refuse(self, message: Message, reason: str) -> None:
        """Give a message up."""
        self.messages.remove(message)
        self.refused.append((message.span, reason))

    def refusals(self, batch: Batch) -> list[Refused]:
        """Return what was given up, neighbours together."""
        found: list[Refused] = []
        for span, reason in sorted(self.refused):
            first, last = batch.first + span.start, batch.first + span.end - 1
            if found and found[-1].last == first - 1 and found[-1].reason == reason:
                found[-1] = found[-1]._replace(last=last)
            else:
                found.append(Refused(batch, first, last, reason))
        return found


class Underway:
    """All entries. What is on the way is bounded by who sends (`open_bytes`); of the rest the oldest are forgotten."""

    def __init__(self) -> None:
        self._open: OrderedDict[Key, Entry] = OrderedDict()
        self._settled: OrderedDict[Key, Entry] = OrderedDict()

    @property
    def open_bytes(self) -> int:
        """Bytes of the batches that are on the way."""
        return sum(entry.size for entry in self._open.values() if entry.waiting)

    @property
    def waiting(self) -> bool:
        """Whether anything is on the way."""
        return any(entry.waiting for entry in self._open.values())

    def get(self, batch: Batch) -> Entry | None:
        """Return the entry of a batch that was begun, through or not."""
        key = key_of(batch)
        return self._open.get(key) or self._settled.get(key)

    def begin(self, batch: Batch, spans: list[Span]) -> Entry:
        """Make an entry for a batch."""
        entry = self._open[key_of(batch)] = Entry(batch, spans)
        return entry

    def keep(self, batch: Batch, entry: Entry) -> None:
        """Take an entry back whose producer has gone, because it is no longer as it was begun."""
        self._open[key_of(batch)] = entry

    def settle(self) -> Exception | None:
        """Look at everything that is on the way; return the first failure."""
        failure: Exception | None = None
        for key, entry in list(self._open.items()):
            failure = entry.settle() or failure
            if not entry.messages:
                del self._open[key]
                self._settled[key] = entry
        while len(self._settled) > MAX_SETTLED:
            self._settled.popitem(last=False)
        return failure

    def producer_gone(self) -> None:
        """What the producer has not confirmed counts as not sent; what it has confirmed stays so."""
        for key, entry in list(self._open.items()):
            for message in entry.messages:
                message.future = None
            if entry.untouched:
                del self._open[key]
        while len(self._open) > MAX_SETTLED:
            self._open.popitem(last=False)

    def take(self, batch: Batch) -> Entry | None:
        """Return the entry of a batch that is through, and forget it; None where it is not."""
        return self._settled.pop(key_of(batch), None)
