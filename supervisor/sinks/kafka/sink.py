"""The Kafka sink: batches become messages of one topic each, acknowledged by all replicas in sync."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from garrison.supervisor.events.queue import Batch
from garrison.supervisor.settings.schema import KafkaSink as Settings
from garrison.supervisor.sinks.base import Refused, Sink, SinkError
from garrison.supervisor.sinks.kafka.messages import headers_of, lines_of, numbers_of, spans_of, value_of
from garrison.supervisor.sinks.kafka.trouble import explain
from garrison.supervisor.sinks.kafka.underway import Entry, Message, Underway

MAX_OPEN_BYTES = 2 * 1024 * 1024
"""Bound of what a producer holds: as long as so much waits for a broker, nothing more is handed over."""
MESSAGE_BYTES = 512 * 1024
"""Size above which no further event is put into a message."""
REQUEST_BYTES = 1024 * 1024
EVENT_BYTES = REQUEST_BYTES - 16 * 1024
"""Size from which an event is not even tried: key, headers and the frame around it go into the request as well."""
CONNECT_SECONDS = 10.0
SLICE_SECONDS = 0.5
CLOSE_SECONDS = 2.0
"""How long closing waits for what is under way, and again for the producer's thread."""
MAX_TRIALS = 20
"""Most producers that one write uses up while it looks for messages that the broker calls too large."""
TOO_LARGE_SECONDS = 600.0
"""How long the size that a broker has refused is remembered, so that a limit that was raised is found."""

_TOO_LARGE = ("MessageSizeTooLargeError", "RecordListTooLargeError")


_Piece = tuple[Batch, Entry, Message, int]


class KafkaSink(Sink):
    """Sends to Kafka from the sink's thread. Nothing is connected before the first write.

    Args:
        settings: Checked, with servers and topic.
        host: The key of every message, so that the events of a host stay in order.
        leave: Asked while it waits for Kafka; true: give up soon.
    """

    name = "kafka"

    def __init__(self, settings: Settings, host: str, leave: Callable[[], bool] = lambda: False) -> None:
        self.linger_seconds = settings.linger_seconds
        self._settings = settings
        self._host = host.encode()
        self._leave = leave
        self._hurried = threading.Event()
        self._session: Any = None
        self._underway = Underway()
        self._careful = False
        # Sizes that the broker has refused, of messages and of single events, and until when they are remembered.
        self._message_bytes = (MESSAGE_BYTES, float("-inf"))
        self._too_large = (EVENT_BYTES, float("-inf"))
        names = settings.topics
        self._topics = {
            "alert": names.alert or settings.topic,
            "state": names.state or settings.topic,
            "event": names.event or settings.topic,
            "metric": names.metric or settings.topic,
        }

    def write(self, batches: Sequence[Batch]) -> Sequence[Refused]:
        """Send what is not on its way yet, and wait for the acknowledgements; see `Sink.write`.

        Raises:
            SinkError: Kafka has not acknowledged all within `timeout_seconds`, or has refused some. What it was handed
                over stays on its way, and is waited for when it is offered again.
        """
        deadline = time.monotonic() + self._settings.timeout_seconds
        failure: BaseException | None = None
        try:
            session = self._open()
            session.begin()
            failure = self._send_apart(batches, deadline) if self._careful else self._send(session, batches, deadline)
        except Exception as error:  # noqa: BLE001  kafka-python raises its own, OSError, ValueError, and more
            failure = error
        failure = self._settle() or failure
        if failure is not None or self._underway.waiting:
            # kafka-python leaves the sockets of connections that failed to the collector, which runs seldom in a quiet
            # agent: an outage of a day would use up the descriptors. The young generations are enough, and quick.
            gc.collect(1)
        return self._answer(batches, failure)

    def reopen(self) -> None:
        """Nothing to do: there are no files."""

    def close(self) -> None:
        """Wait a little for what is on its way, then end the producer. What is not acknowledged counts as not sent."""
        if self._session is not None and self._underway.waiting:
            self._session.flush(SLICE_SECONDS if self._impatient() else CLOSE_SECONDS)
            self._settle()
        self._end_session()
        self._hurried.clear()

    def hurry(self) -> None:
        """As `Sink.hurry`, until it is closed."""
        self._hurried.set()

    # Sending

    def _send(self, session: Any, batches: Sequence[Batch], deadline: float) -> BaseException | None:
        """Hand over what is not on its way, and wait; return what went wrong."""
        try:
            for batch in batches:
                entry = self._entry(batch)
                if any(message.future is None for message in entry.messages):
                    if self._underway.open_bytes + entry.size > MAX_OPEN_BYTES and not self._wait(session, deadline):
                        break
                    self._hand_over(session, batch, entry, entry.messages)
        except Exception as error:  # noqa: BLE001  what was handed over before is waited for all the same
            self._wait(session, deadline)
            return error
        self._wait(session, deadline)
        return None

    def _send_apart(self, batches: Sequence[Batch], deadline: float) -> BaseException | None:
        """Send with large messages alone, to find those that are too large; return what else went wrong.

        A message that Kafka refuses costs the producer its session, and fails whatever else it had under way: only of a
        message that was alone is it known that it was the culprit.
        """
        alone_from = max((size for *_, size in self._left(batches)), default=0) / 2
        for _ in range(MAX_TRIALS):
            failure, culprit = self._try_apart(batches, alone_from, deadline)
            if type(failure).__name__ not in _TOO_LARGE:
                self._careful = failure is not None or self._underway.waiting
                return failure
            if culprit is None:
                alone_from /= 2
            else:
                self._cannot_be_sent(*culprit)
            if self._out_of_time(deadline):
                break
        return None

    def _try_apart(
        self, batches: Sequence[Batch], alone_from: float, deadline: float
    ) -> tuple[BaseException | None, _Piece | None]:
        """Send what is left, the large ones alone; return the first failure, and who caused it, if known."""
        session = self._open()
        for batch, entry, message, size in self._left(batches):
            alone = size >= alone_from
            if alone and not (self._wait(session, deadline) and session.broken is None):
                return self._settle(), None
            if alone and (failure := self._settle()) is not None:
                return failure, None
            self._hand_over(session, batch, entry, [message])
            if alone:
                self._wait(session, deadline)
                if (failure := self._settle()) is not None:
                    return failure, (batch, entry, message, size)
        self._wait(session, deadline)
        return self._settle(), None

    def _left(self, batches: Sequence[Batch]) -> list[_Piece]:
        """Return the messages that are not through, with their sizes."""
        left: list[_Piece] = []
        for batch in batches:
            entry, lines = self._entry(batch), lines_of(batch)
            left += [(batch, entry, each, len(value_of(lines, each.span))) for each in entry.messages]
        return left

    def _cannot_be_sent(self, batch: Batch, entry: Entry, message: Message, size: int) -> None:
        """A message was refused for its size, alone: divide it, or give it up."""
        self._underway.keep(batch, entry)
        until = time.monotonic() + TOO_LARGE_SECONDS
        if message.span.end - message.span.start > 1:
            self._message_bytes = (max(1024, size // 2), until)
            entry.divide(message)
        else:
            self._too_large = (size, until)
            entry.refuse(message, "oversize")

    def _entry(self, batch: Batch) -> Entry:
        found = self._underway.get(batch)
        if found is not None:
            return found
        now = time.monotonic()
        together = self._message_bytes[0] if now < self._message_bytes[1] else MESSAGE_BYTES
        limit = self._too_large[0] if now < self._too_large[1] else EVENT_BYTES
        entry = self._underway.begin(batch, spans_of(batch, self._settings.records_per_message, together))
        if len(batch.data) > limit:
            self._refuse_known(batch, entry, limit)
        return entry

    def _refuse_known(self, batch: Batch, entry: Entry, limit: int) -> None:
        lines = lines_of(batch)
        for message in list(entry.messages):
            if len(value_of(lines, message.span)) >= limit and message.span.end - message.span.start > 1:
                entry.divide(message)
        for message in list(entry.messages):
            if len(value_of(lines, message.span)) >= limit:
                entry.refuse(message, "oversize")

    def _hand_over(self, session: Any, batch: Batch, entry: Entry, messages: Sequence[Message]) -> None:
        topic, headers = self._topics[batch.priority], headers_of(self._host, batch)
        lines = lines_of(batch)
        for message in messages:
            if message.future is None and not message.through:
                own = headers + numbers_of(batch, message.span)
                message.future = session.send(topic, value_of(lines, message.span), self._host, own)

    # Waiting

    def _wait(self, session: Any, deadline: float) -> bool:
        """Wait until all is settled, time is up, or the session is broken; return whether all is settled."""
        while not session.flush(min(SLICE_SECONDS, max(0.0, deadline - time.monotonic()))):
            if self._out_of_time(deadline) or session.broken is not None:
                return False
        return True

    def _out_of_time(self, deadline: float) -> bool:
        return self._impatient() or time.monotonic() >= deadline

    def _impatient(self) -> bool:
        return self._hurried.is_set() or self._leave()

    # The session

    def _open(self) -> Any:
        if self._session is None:
            from garrison.supervisor.sinks.kafka.session import Session

            self._session = Session(self._settings, REQUEST_BYTES, 1.0 if self._impatient() else CONNECT_SECONDS)
        return self._session

    def _settle(self) -> BaseException | None:
        """Note what was acknowledged; end a session that has failed. Returns what went wrong."""
        failure: BaseException | None = self._underway.settle()
        if failure is None and self._session is not None:
            failure = self._session.broken
        if failure is not None:
            # kafka-python fails everything else with it: what is known to be through stays through, the rest goes to
            # the next producer.
            self._careful = self._careful or type(failure).__name__ in _TOO_LARGE
            self._end_session()
        return failure

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close(CLOSE_SECONDS)
        self._underway.settle()
        self._underway.producer_gone()

    # The answer

    def _answer(self, batches: Sequence[Batch], failure: BaseException | None) -> Sequence[Refused]:
        refused: list[Refused] = []
        for number, batch in enumerate(batches):
            entry = self._underway.take(batch)
            if entry is None:
                raise SinkError(self._text(failure), number, refused) from failure
            refused += entry.refusals(batch)
        return refused

    def _text(self, failure: BaseException | None) -> str:
        settings = self._settings
        if failure is not None:
            return explain(failure, settings)
        servers = ", ".join(settings.bootstrap_servers)
        if self._careful:
            return f"Kafka at {servers} has called some events too large; they are being looked for"
        said = f"Kafka at {servers} has not acknowledged events within {settings.timeout_seconds:g} s; they are kept"
        reason = self._session.unreachable if self._session is not None else None
        return said if reason is None else f"{said} ({str(reason)[:200]})"
