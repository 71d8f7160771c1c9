"""The stamp: what the master says about an event, written behind what the worker says. Pure.

``host`` and ``agent`` are the master's; ``garrison`` is free for details that ECS has no field for. The body
is a claim. The master does not decode it, so it cannot take a forged field out; it writes its own
fields last, where every common JSON reader lets them win over an earlier field of the same name. Consumers
that must not trust a reader's choice use the sink's own envelope (the Kafka headers).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from garrison.ipc.messages import Priority
from garrison.supervisor.version import VERSION


class Stamp:
    """Writes host, agent, worker, epoch and priority into each line of a batch.

    Args:
        host: ``host.name``.
        worker: The worker's name.
        epoch: The number of the worker's process.
    """

    __slots__ = ("_tails",)

    def __init__(self, host: str, worker: str, epoch: int) -> None:
        self._tails: dict[Priority, bytes] = {}
        for priority in ("alert", "state", "event", "metric"):
            fields = {
                "host": {"name": host},
                "agent": {
                    "type": "garrison",
                    "version": VERSION,
                    "worker": worker,
                    "epoch": epoch,
                    "priority": priority,
                },
            }
            # Without its opening brace: it goes on where the worker's object was about to end.
            self._tails[priority] = b"," + msgspec.json.encode(fields)[1:] + b"\n"

    def write(self, objects: Sequence[bytes], priority: Priority) -> bytes:
        """Return the lines with the stamp; `objects` are those of `checking.open_objects`."""
        return self._tails[priority].join(objects)
