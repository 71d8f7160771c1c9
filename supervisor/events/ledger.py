"""The ledger: what each worker emitted, what was delivered, what was dropped and why. Pure.

For every worker ``emitted = delivered + dropped + in flight`` at any moment. `ProcessLedger` checks one
process's claims against its own sequence; `WorkerLedger` sums up all processes of one worker.
"""

from __future__ import annotations

from collections import Counter

from garrison.ipc.frames import ProtocolError
from garrison.ipc.messages import PRIORITIES, Beat, Events, Priority


class WorkerLedger:
    """The totals of one worker, over all its processes. Counts only grow."""

    __slots__ = ("delivered", "dropped", "emitted")

    def __init__(self) -> None:
        self.emitted = 0
        self.delivered = 0
        self.dropped: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        """Events that the master holds: received, and neither delivered nor dropped yet."""
        return self.emitted - self.delivered - self.dropped.total()

    def drop(self, count: int, reason: str) -> None:
        """Count events that the master gave up."""
        if count:
            self.dropped[reason] += count


class ProcessLedger:
    """Checks the sequence of one process and books it on its worker's ledger.

    One sequence per priority, from 1 and without a gap: each number is in a batch or in a dropped range.
    """

    __slots__ = ("_claimed", "_next", "_worker")

    def __init__(self, worker: WorkerLedger) -> None:
        self._worker = worker
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
        dropped: Counter[str] = Counter()
        for first, last, reason in batch.dropped:
            if first != expected or last < first:
                raise ProtocolError(
                    f"dropped {batch.priority} events {first} to {last} were announced where {expected} comes next"
                )
            dropped[reason] += last - first + 1
            expected = last + 1
        if batch.first != expected:
            raise ProtocolError(f"a batch of {batch.priority} starts at {batch.first} where {expected} comes next")
        events = open_objects(batch.data, batch.count)
        expected += batch.count
        self._worker.emitted += expected - self._next[batch.priority]
        self._worker.dropped.update({f"worker_{reason}": count for reason, count in dropped.items()})
        self._next[batch.priority] = expected
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
            self._claimed[priority] = emitted

    def close(self) -> int:
        """The process is gone: book what it had numbered and not handed over as ``lost_at_exit``.

        Known from its last beat; what a killed process numbered after it is not known to anybody.
        """
        lost = sum(max(0, claimed - (self._next[priority] - 1)) for priority, claimed in self._claimed.items())
        self._claimed.clear()
        self._worker.emitted += lost
        self._worker.drop(lost, "lost_at_exit")
        return lost


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
