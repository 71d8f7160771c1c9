"""The queue ahead of the sink: bounded in bytes, more important events first. Pure.

When it is full, what is least important and oldest makes room; what cannot get room is dropped. Each drop
goes on the ledger of the worker that it came from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from garrison.ipc.messages import PRIORITIES, Priority
from garrison.supervisor.events.ledger import WorkerLedger

OVERHEAD_BYTES = 256
"""What a batch costs beside its data; keeps a flood of tiny batches inside the bound."""


@dataclass(slots=True, eq=False)
class Batch:
    """Stamped events of one worker and priority: `count` lines of NDJSON in `data`. Two are never equal.

    Attributes:
        worker: Who sent them.
        about: Whom they are about, for whoever looks on: the agent's own events tell of its workers.
        epoch: The number of the process that sent them; of the agent itself, its own.
        first: The sequence number of the first event; the others follow without a gap.
        order: Its place among all batches of its priority, given by the pipeline, and kept in the spool. 0: none yet.
        stored: Whether it is in the spool.
        done: Whether it is on its ledger as delivered or dropped.
        on_settled: Called, from any thread, as soon as somebody else than the worker answers for the events: they are
            in the spool, delivered or dropped. None: nobody asks.
    """

    worker: str
    ledger: WorkerLedger
    priority: Priority
    count: int
    data: bytes
    about: str = ""
    epoch: int = 0
    first: int = 0
    order: int = 0
    stored: bool = False
    done: bool = False
    on_settled: Callable[[Batch], None] | None = None

    @property
    def last(self) -> int:
        """The sequence number of the last event."""
        return self.first + self.count - 1

    @property
    def size(self) -> int:
        """What it takes of the queue's bound, bytes."""
        return len(self.data) + OVERHEAD_BYTES

    def delivered(self) -> None:
        """Book its events as delivered, but for those that are booked already."""
        self.done = True
        self.ledger.deliver(self.count, self.epoch, self.priority, self.first)
        self.settle()

    def drop(self, reason: str) -> None:
        """Book its events as given up, but for those that are booked already."""
        self.done = True
        self.ledger.drop(self.count, reason, self.epoch, self.priority, self.first)
        self.settle()

    def settle(self) -> None:
        """Tell whoever asks, once, that the events are not the worker's to keep any more."""
        call, self.on_settled = self.on_settled, None
        if call is not None:
            call(self)

    def lose(self, first: int, last: int, reason: str) -> None:
        """Book some of its events, by their sequence numbers, as given up. The rest may still be delivered."""
        self.ledger.drop(last - first + 1, reason, self.epoch, self.priority, first)


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

    def __iter__(self) -> Iterator[Batch]:
        for queue in self._queues.values():
            yield from queue

    def holds(self, priority: Priority) -> bool:
        """Whether anything of a priority is queued."""
        return bool(self._queues[priority])

    def put(self, batch: Batch) -> bool:
        """Queue a batch; less important ones make room, oldest first. False: dropped itself, and counted."""
        if self.bytes + batch.size > self._max_bytes:
            self._make_room(batch)
        if self.bytes + batch.size > self._max_bytes:
            batch.drop("master_queue")
            return False
        self._queues[batch.priority].append(batch)
        self.bytes += batch.size
        return True

    def put_back(self, batches: Collection[Batch]) -> None:
        """Queue batches again that were taken, ahead of what has come since, whatever the bound."""
        for batch in reversed(tuple(batches)):
            self._queues[batch.priority].appendleft(batch)
            self.bytes += batch.size

    def take(self, max_bytes: int, only: Collection[Priority] = PRIORITIES) -> list[Batch]:
        """Remove and return batches, the most important first, up to about `max_bytes`; at least one if any.

        Args:
            max_bytes: Bound of what is returned.
            only: Priorities that are taken from.
        """
        taken: list[Batch] = []
        size = 0
        for priority, queue in self._queues.items():
            if priority not in only:
                continue
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
                batch.drop(reason)
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
                victim.drop("master_queue")
                self.bytes -= victim.size
                wanted -= victim.size
