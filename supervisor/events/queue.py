"""The queue ahead of the sink: bounded in bytes, more important events first. Pure.

When it is full, what is least important and oldest makes room; what cannot get room is dropped. Each drop
goes on the ledger of the worker that it came from.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from garrison.ipc.messages import PRIORITIES, Priority
from garrison.supervisor.events.ledger import WorkerLedger

OVERHEAD_BYTES = 256
"""What a batch costs beside its data; keeps a flood of tiny batches inside the bound."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Stamped events of one worker and priority: `count` lines of NDJSON in `data`.

    Attributes:
        worker: Who sent them.
        about: Whom they are about, for whoever looks on: the agent's own events tell of its workers.
    """

    worker: str
    ledger: WorkerLedger
    priority: Priority
    count: int
    data: bytes
    about: str = ""

    @property
    def size(self) -> int:
        """What it takes of the queue's bound, bytes."""
        return len(self.data) + OVERHEAD_BYTES


class EventQueue:
    """A bounded queue of batches by priority. Not thread-safe; its owner locks.

    Args:
        max_bytes: Bound of everything that is queued.
    """

    __slots__ = ("_max_bytes", "_queues", "bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._queues: dict[Priority, deque[Batch]] = {priority: deque() for priority in PRIORITIES}
        self.bytes = 0

    def __bool__(self) -> bool:
        return self.bytes > 0

    def put(self, batch: Batch) -> bool:
        """Queue a batch; less important ones make room, oldest first. False: dropped itself, and counted."""
        if self.bytes + batch.size > self._max_bytes:
            self._make_room(batch)
        if self.bytes + batch.size > self._max_bytes:
            batch.ledger.drop(batch.count, "master_queue")
            return False
        self._queues[batch.priority].append(batch)
        self.bytes += batch.size
        return True

    def take(self, max_bytes: int) -> list[Batch]:
        """Remove and return batches, the most important first, up to about `max_bytes`; at least one if any."""
        taken: list[Batch] = []
        size = 0
        for queue in self._queues.values():
            while queue and (not taken or size + queue[0].size <= max_bytes):
                batch = queue.popleft()
                size += batch.size
                taken.append(batch)
            if queue:
                break
        self.bytes -= size
        return taken

    def drop_all(self, reason: str) -> int:
        """Give up everything that is queued; returns the number of events."""
        events = 0
        for queue in self._queues.values():
            for batch in queue:
                batch.ledger.drop(batch.count, reason)
                events += batch.count
            queue.clear()
        self.bytes = 0
        return events

    def _make_room(self, batch: Batch) -> None:
        wanted = self.bytes + batch.size - self._max_bytes
        victims = [p for p in reversed(PRIORITIES) if PRIORITIES.index(p) > PRIORITIES.index(batch.priority)]
        if sum(victim.size for p in victims for victim in self._queues[p]) < wanted:
            return  # would not help; keep what is there
        for priority in victims:
            queue = self._queues[priority]
            while queue and wanted > 0:
                victim = queue.popleft()
                victim.ledger.drop(victim.count, "master_queue")
                self.bytes -= victim.size
                wanted -= victim.size
