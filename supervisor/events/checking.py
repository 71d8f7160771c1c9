"""Checks what comes from a worker's process: its sequence and its lines. What passes is booked on its ledger."""

from __future__ import annotations

from garrison.ipc.frames import ProtocolError
from garrison.ipc.messages import PRIORITIES, Beat, Events, Priority
from garrison.supervisor.events.ledger import WorkerLedger


class ProcessLedger:
    """Checks the sequence of one process and books it on its worker's ledger.

    One sequence per priority, from 1 and without a gap: each number is in a batch or in a dropped range.

    Args:
        worker: The worker's ledger.
        epoch: The number of the process; 0: it has none, and its events are only counted.
    """

    __slots__ = ("_claimed", "_epoch", "_next", "_worker")

    def __init__(self, worker: WorkerLedger, epoch: int = 0) -> None:
        self._worker = worker
        self._epoch = epoch
        self._next: dict[Priority, int] = dict.fromkeys(PRIORITIES, 1)
        self._claimed: dict[Priority, int] = {}

    def book(self, batch: Events) -> list[bytes]:
        """Check a batch and count it as emitted, and what it lists as dropped.

        Returns:
            Its events as `open_objects` gives them.

        Raises:
            ProtocolError: It does not go on where the last one ended, or its data does not hold `count`
                lines that look like JSON objects. Nothing was booked.
        """
        expected = self._next[batch.priority]
        for first, last, _reason in batch.dropped:
            if first != expected or last < first:
                raise ProtocolError(
                    f"dropped {batch.priority} events {first} to {last} were announced where {expected} comes next"
                )
            expected = last + 1
        if batch.first != expected:
            raise ProtocolError(f"a batch of {batch.priority} starts at {batch.first} where {expected} comes next")
        events = open_objects(batch.data, batch.count)
        self._worker.book(self._epoch, batch)
        self._next[batch.priority] = expected + batch.count
        return events

    def claim(self, beat: Beat) -> None:
        """Note how many events the process says it has numbered.

        Raises:
            ProtocolError: Fewer than it has handed over, or fewer than it said before.
        """
        for priority, emitted in beat.emitted.items():
            if emitted < max(self._next[priority] - 1, self._claimed.get(priority, 0)):
                raise ProtocolError(
                    f"a beat claims {emitted} {priority} events, {self._next[priority] - 1} have come already"
                )
        if beat.emitted != self._claimed:
            self._claimed.update(beat.emitted)
            self._worker.claim(self._epoch, self._claimed)

    def close(self) -> int:
        """The process is gone: book what it had numbered and not handed over as ``lost_at_exit``.

        Known from its last beat; what a killed process numbered after it is not known to anybody.
        """
        self._claimed.clear()
        return self._worker.close(self._epoch)


def open_objects(data: bytes, count: int) -> list[bytes]:
    """Return `count` lines of JSON objects, each without its last ``}`` and newline; nothing is decoded.

    The list ends with an empty element, so that joining it with what should stand at each line's end gives whole lines
    again. The data is looked through once or twice here and never again: this is what an event costs the master.

    Raises:
        ProtocolError: They are not so many lines with the outside of a JSON object.
    """
    if count == 0:
        if data:
            raise ProtocolError(f"a batch of no events carries {len(data)} bytes")
        return [b""]
    lines = data.count(b"\n")
    if lines != count:
        raise ProtocolError(f"a batch claims {count} events and holds {lines} lines")
    objects = data.split(b"}\n")
    if len(objects) != count + 1 or objects[-1]:
        raise ProtocolError("a line of a batch does not end like a JSON object")
    if b"".join([line[:1] for line in objects]) != b"{" * count:
        raise ProtocolError("a line of a batch does not start like a JSON object")
    if b"{" in objects:
        # Nothing to tell, and the stamp needs a field to stand behind.
        raise ProtocolError("a line of a batch is an empty JSON object")
    return objects
