"""The agent's own events: every transition and decision, as ECS documents of kind ``state``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from garrison.supervisor.events.ledger import WorkerLedger, open_objects
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
    """

    def __init__(self, host: str, put: Callable[[Batch], None], epoch: int) -> None:
        self.ledger = WorkerLedger()
        self._put = put
        self._stamp = Stamp(host, MODULE, epoch)

    def emit(self, action: str, fields: dict[str, Any]) -> None:
        """Emit one event; `fields` go below ``garrison``, empty ones are left out."""
        sequence = self.ledger.emitted + 1
        document = {
            "@timestamp": timestamp(time.time()),
            "event": {
                "kind": "state",
                "category": ["host"],
                "type": ["change"],
                "action": action,
                "module": MODULE,
                "sequence": sequence,
            },
            "garrison": {key: value for key, value in fields.items() if value not in (None, "", [])},
        }
        line = _line(document)
        self.ledger.emitted = sequence
        about = str(fields.get("worker", MODULE))
        self._put(Batch(MODULE, self.ledger, "state", 1, self._stamp.write(open_objects(line, 1), "state"), about))


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
