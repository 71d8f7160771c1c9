"""The emitter: gives events their numbers and turns them into lines. One per process, for all modules."""

from __future__ import annotations

import threading
import time
from typing import Final

from garrison.ipc.messages import PRIORITIES, Priority
from garrison.workers.runtime.encoding import UnencodableError, encode_line
from garrison.workers.runtime.outbox import EVENT_BYTES, Outbox

OVERSIZE: Final = "oversize"
UNENCODABLE: Final = "unencodable"

_NOTHING: Final[dict[str, object]] = {}
_BY_KIND: dict[object, Priority] = {priority: priority for priority in PRIORITIES}


class NotSentError(Exception):
    """An event was dropped for a reason of its own. The text is for the log."""


class Emitter:
    """Fills in, numbers, encodes and queues events. Safe for use from several threads.

    Args:
        outbox: Where lines wait for the pipe.
        worker: Default of ``event.module``.
    """

    def __init__(self, outbox: Outbox, worker: str) -> None:
        self._outbox = outbox
        self._worker = worker
        # Held from taking a number to queueing its line, so that lines are queued in order. Not the outbox's
        # own lock: the writer must never wait for a document to be encoded.
        self._turn = threading.Lock()

    def emit(self, event: object, priority: Priority | None, timestamp: str) -> bool:
        """Queue an event. False: the outbox was full; it is dropped and counted.

        Raises:
            NotSentError: It is too large or has no JSON form; dropped and counted.
            ValueError: There is no such priority; no number was used.
        """
        inner: object = event.get("event", _NOTHING) if isinstance(event, dict) else None
        if priority is None:
            kind = inner.get("kind") if isinstance(inner, dict) else None
            priority = _BY_KIND.get(kind, "event") if isinstance(kind, str) else "event"
        elif priority not in PRIORITIES:
            raise ValueError(f"no priority {priority!r}; there are {', '.join(PRIORITIES)}")
        outbox = self._outbox
        with self._turn:
            try:
                if not isinstance(event, dict) or not isinstance(inner, dict):
                    raise UnencodableError(_shape(event, inner))
                # Copies of two small dicts: a module may keep what it passed, and emit it again.
                filled = {"module": self._worker, **inner, "sequence": outbox.number(priority)}
                line = encode_line({"@timestamp": timestamp, **event, "event": filled})
            except UnencodableError as error:
                outbox.refuse(priority, UNENCODABLE, time.monotonic())
                raise NotSentError(f"event {_describe(inner)} was dropped, it cannot be encoded: {error}") from error
            if len(line) > EVENT_BYTES:
                outbox.refuse(priority, OVERSIZE, time.monotonic())
                raise NotSentError(
                    f"event {_describe(inner)} was dropped, it has {len(line)} bytes and {EVENT_BYTES} are allowed"
                )
            return outbox.put(priority, line, time.monotonic())


def _shape(event: object, inner: object) -> str:
    if not isinstance(event, dict):
        return f"an event is a dict, not {type(event).__name__}"
    return f"its field 'event' is a dict, not {type(inner).__name__}"


def _describe(inner: object) -> str:
    action = inner.get("action") if isinstance(inner, dict) else None
    return repr(action)[:128] if isinstance(action, str) else "without action"
