"""What a sink is. It is used from one thread of its own and may block; the master's loop never waits for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from garrison.supervisor.events.queue import Batch


class Refused(NamedTuple):
    """Events of a batch that a sink will never deliver.

    Attributes:
        batch: Theirs.
        first: Sequence number of the first of them.
        last: Sequence number of the last of them.
        reason: Under which they are counted as dropped: ``oversize``.
    """

    batch: Batch
    first: int
    last: int
    reason: str

    @property
    def events(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


class SinkError(Exception):
    """Events could not be handed over. The text says to whom, why, and what to do.

    Attributes:
        delivered: How many batches of the call, from its start, were handed over before the failure.
        refused: Events of those batches that were not delivered and never will be.
    """

    def __init__(self, message: str, delivered: int = 0, refused: Sequence[Refused] = ()) -> None:
        super().__init__(message)
        self.delivered = delivered
        self.refused = tuple(refused)


class Sink(ABC):
    """Takes batches in order. After a `SinkError` the rest is offered again later."""

    name: str
    """What it is called in the status: the backend's name."""
    linger_seconds: float = 0.0
    """How long few events may wait for company, counted from the end of the last write: for a sink whose every write
    costs more than the events in it. Alerts and states do not wait."""

    @abstractmethod
    def write(self, batches: Sequence[Batch]) -> Sequence[Refused]:
        """Hand over batches; returns when all of them are delivered. Opens what it needs by itself.

        Returns:
            Events among them that can never be delivered, because they are too large; mostly none.

        Raises:
            SinkError: Some were not; its `delivered` says how many were.
        """

    @abstractmethod
    def reopen(self) -> None:
        """Open files anew, for SIGUSR1. Called between two writes."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; a later `write` opens again. Idempotent."""

    def hurry(self) -> None:  # noqa: B027  most sinks never wait
        """Have a `write` that waits for somebody else give up soon: the agent is ending. From any thread."""
