"""The agent's own events: every transition and decision, as ECS documents of kind ``state``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from garrison.ipc.messages import Priority
from garrison.supervisor.events.checking import open_objects
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.events.stamp import Stamp

MODULE = "agent"


def timestamp(seconds: float) -> str:
    """Return a time since the epoch in ISO 8601, UTC, with milliseconds."""
    whole = int(seconds)
    milliseconds = int((seconds - whole) * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


class OwnEvents:
    """Numbers, stamps and queues the agent's own events.

    Args:
        host: Host name.
        put: Takes a batch on its way to the sink.
        epoch: The number of this agent process.
        ledger: Where they are booked; None: one of their own.

    Attributes:
        epoch: As given.
    """

    def __init__(self, host: str, put: Callable[[Batch], None], epoch: int, ledger: WorkerLedger | None = None) -> None:
        self.ledger = ledger or WorkerLedger(MODULE)
        self._put = put
        self.epoch = epoch
        self._sequences: Counter[Priority] = Counter()
        self._stamp = Stamp(host, MODULE, epoch)

    def emit(self, action: str, fields: dict[str, Any]) -> None:
        """Emit one event of kind ``state``; `fields` go below ``garrison``, empty ones are left out."""
        document = {
            "event": {"kind": "state", "category": ["host"], "type": ["change"], "action": action},
            "garrison": {key: value for key, value in fields.items() if value not in (None, "", [])},
        }
        self.put("state", [document], str(fields.get("worker", MODULE)))

    def put(self, priority: Priority, documents: Sequence[dict[str, Any]], about: str = MODULE) -> int:
        """Emit documents as one batch. Time, module and sequence number are filled in.

        Args:
            priority: Of the queue, which need not be the documents' own kind.
            documents: Each with a table ``event``.
            about: Whom they are about.

        Returns:
            The sequence number of the last one.
        """
        first = self._sequences[priority] + 1
        now = timestamp(time.time())
        lines = []
        for sequence, document in enumerate(documents, first):
            event = {**document["event"], "module": MODULE, "sequence": sequence}
            lines.append(_line({"@timestamp": now, **document, "event": event}))
        self._sequences[priority] += len(lines)
        self.ledger.emit(self.epoch, priority, first, len(lines))
        data = self._stamp.write(open_objects(b"".join(lines), len(lines)), priority)
        self._put(Batch(MODULE, self.ledger, priority, len(lines), data, about, self.epoch, first))
        return first + len(lines) - 1


def _line(document: dict[str, Any]) -> bytes:
    """Return a document as one line. Names of files, above all, may hold bytes that are no text."""
    try:
        return msgspec.json.encode(document, enc_hook=str) + b"\n"
    except UnicodeEncodeError:
        return msgspec.json.encode(_printable(document), enc_hook=str) + b"\n"


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value
