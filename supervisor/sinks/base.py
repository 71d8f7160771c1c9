"""What a sink is. It is used from one thread of its own and may block; the master's loop never waits for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from garrison.supervisor.events.queue import Batch


class SinkError(Exception):
    """Events could not be handed over. The text says to whom, why, and what to do.

    Attributes:
        delivered: How many batches of the call, from its start, were handed over before the failure.
    """

    def __init__(self, message: str, delivered: int = 0) -> None:
        super().__init__(message)
        self.delivered = delivered


class Sink(ABC):
    """Takes batches in order. After a `SinkError` the rest is offered again later."""

    name: str
    """What it is called in the status: the backend's name."""

    @abstractmethod
    def write(self, batches: Sequence[Batch]) -> None:
        """Hand over batches; returns when all of them are delivered. Opens what it needs by itself.

        Raises:
            SinkError: Some were not; its `delivered` says how many were.
        """

    @abstractmethod
    def reopen(self) -> None:
        """Open files anew, for SIGUSR1. Called between two writes."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; a later `write` opens again. Idempotent."""
