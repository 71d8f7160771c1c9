"""What goes into the spool's file and comes out of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from garrison.ipc.messages import Priority
from garrison.supervisor.events.queue import Batch


class Held(NamedTuple):
    """Events of one process and priority that are in the spool.

    Attributes:
        events: How many.
        first: The lowest sequence number.
        last: The highest.
    """

    events: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A row that was given up: `count` events from the sequence number `first` on."""

    priority: Priority
    order: int
    worker: str
    epoch: int
    first: int
    count: int

    @property
    def last(self) -> int:
        """The sequence number of the last event."""
        return self.first + self.count - 1


@dataclass(frozen=True, slots=True)
class Restored:
    """A row as it was stored."""

    priority: Priority
    order: int
    worker: str
    about: str
    epoch: int
    first: int
    count: int
    data: bytes


@dataclass(slots=True)
class Confirmed:
    """What is done with since the last transaction, and waits for its rows to be removed.

    Attributes:
        through: By priority, the order up to which everything has left.
        events: How many events these rows have, by worker.
    """

    through: dict[Priority, int] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.through)

    def add(self, batch: Batch | Loss) -> None:
        """Take in a row that is done with."""
        self.through[batch.priority] = batch.order
        self.events[batch.worker] += batch.count

    def merge(self, later: Confirmed) -> None:
        """Take in what has come since."""
        self.through.update(later.through)
        self.events.update(later.events)


@dataclass(slots=True)
class Written:
    """What one transaction did.

    Attributes:
        stored: What is in the spool now.
        refused: What found no room: nothing there was less important.
        lost: Rows that made room.
    """

    stored: list[Batch] = field(default_factory=list)
    refused: list[Batch] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
