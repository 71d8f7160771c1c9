"""The sink that can become another one at run time, without losing what the old one has not delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from garrison.supervisor.events.queue import Batch
from garrison.supervisor.sinks.base import Refused, Sink, SinkError
from garrison.supervisor.sinks.file import FileSink
from garrison.supervisor.sinks.target import Target


class SwitchSink(Sink):
    """Passes everything to the sink of the current target.

    A new target counts from the next write on. The old sink is closed first, which waits a bounded time for what it has
    under way; what is then not delivered is still the pipeline's, and goes to the new one.

    Args:
        target: The first target.
        host: Host name.
    """

    def __init__(self, target: Target, host: str) -> None:
        self._host = host
        self._wanted = self._target = target
        self._hurried = False
        self._sink = self._make(target)

    @property
    def name(self) -> str:  # type: ignore[override]  # the backend's, which changes
        """The backend's name."""
        return self._sink.name

    @property
    def linger_seconds(self) -> float:  # type: ignore[override]  # as above
        """That of the current sink. Asked by the sink's thread."""
        return self._sink.linger_seconds

    @property
    def target(self) -> Target:
        """What is wanted; from any thread."""
        return self._wanted

    def use(self, target: Target) -> None:
        """Go over to another target with the next write; from any thread. A write that waits for the old gives up."""
        self._wanted = target

    def write(self, batches: Sequence[Batch]) -> Sequence[Refused]:
        """As `Sink.write`."""
        try:
            return self._current().write(batches)
        except SinkError as error:
            if self._target == self._wanted:
                raise
            # The failure is the old target's and says nothing about the new one.
            delivered, refused = error.delivered, error.refused
        try:
            return (*refused, *self._current().write(batches[delivered:]))
        except SinkError as error:
            raise SinkError(str(error), delivered + error.delivered, (*refused, *error.refused)) from error

    def reopen(self) -> None:
        """As `Sink.reopen`."""
        self._sink.reopen()

    def close(self) -> None:
        """As `Sink.close`."""
        self._sink.close()

    def hurry(self) -> None:
        """As `Sink.hurry`; holds for every later sink too."""
        self._hurried = True
        self._sink.hurry()

    def _current(self) -> Sink:
        wanted = self._wanted
        if wanted != self._target:
            old, self._sink, self._target = self._sink, self._make(wanted), wanted
            old.close()
        return self._sink

    def _make(self, target: Target) -> Sink:
        return make_sink(target, self._host, lambda: self._hurried or self._wanted != target)


def make_sink(target: Target, host: str, leave: Callable[[], bool]) -> Sink:
    """Return the sink of a target; nothing is opened, connected or imported before it is written to.

    Args:
        target: What is wanted.
        host: Host name.
        leave: Asked while the sink waits for somebody else; true: give up soon. From the sink's thread.
    """
    if target.backend == "kafka":
        from garrison.supervisor.sinks.kafka.sink import KafkaSink

        return KafkaSink(target.kafka, host, leave)
    return FileSink(target.path, target.max_bytes)
