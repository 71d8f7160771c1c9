"""What the spool's file holds, as far as it must be known without asking the disk.

No I/O; the pipeline's lock is held by whoever calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from garrison.ipc.messages import Priority
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch, EventQueue
from garrison.supervisor.spool.records import Confirmed, Held, Loss, Restored, Written


class Contents:
    """Follows the rows of the spool from their writing to their removal, and books those that are given up.

    Args:
        ledger_of: Returns the ledger of a worker, also of one that is not there any more.

    Attributes:
        ready: What was read for the sink.
        storing: What is being written.
        unread: Rows by priority that were not read yet.
        after: By priority, the order up to which rows were read, or never have to be: the sink has them.
        confirmed: What is done with, and has a row yet.
    """

    def __init__(self, ledger_of: Callable[[str], WorkerLedger]) -> None:
        self.ready = EventQueue(2**62)
        self.storing: list[Batch] = []
        self.unread: Counter[Priority] = Counter()
        self.after: dict[Priority, int] = {}
        self.confirmed = Confirmed()
        self._ledger_of = ledger_of
        self._spans: dict[tuple[str, int, Priority], tuple[int, int]] = {}

    def blocks(self, priority: Priority) -> bool:
        """Whether events of a priority are here that must go to the sink before newer ones."""
        return (
            self.unread[priority] > 0
            or self.ready.holds(priority)
            or any(batch.priority == priority for batch in self.storing)
        )

    def waiting(self) -> bool:
        """Whether anything is here that the sink was not offered yet."""
        return bool(self.ready) or bool(self.storing) or self.unread.total() > 0

    def begin(self, held: Mapping[tuple[str, int, Priority], Held]) -> None:
        """Note what an earlier master has left."""
        self._spans = {key: (found.first, found.last) for key, found in held.items()}

    def confirm(self, row: Batch | Loss) -> None:
        """Note that a row is done with."""
        self.confirmed.add(row)
        key = row.worker, row.epoch, row.priority
        _first, last = self._spans.get(key, (0, 0))
        if row.last < last:
            self._spans[key] = row.last + 1, last
        else:
            self._spans.pop(key, None)

    def wrote(self, written: Written, held: Collection[Batch]) -> bool:
        """Note what a transaction has done; `held` is what the sink has.

        Returns:
            Whether something that the sink has found no room.
        """
        self.storing = []
        self.gave_up(written.lost)
        theirs = set(map(id, held))
        for batch in written.refused:
            if id(batch) not in theirs and not batch.done:
                batch.drop("spool_full")
        for batch in written.stored:
            batch.stored = True
            if batch.done or id(batch) in theirs:
                # It never was behind anything here: the sink had it before.
                self.after[batch.priority] = max(self.after.get(batch.priority, 0), batch.order)
            else:
                self.unread[batch.priority] += 1
            if batch.done:
                self.confirm(batch)
            else:
                key = batch.worker, batch.epoch, batch.priority
                self._spans[key] = self._spans.get(key, (batch.first, 0))[0], batch.last
            batch.settle()
        return any(id(batch) in theirs for batch in written.refused)

    def found(self, items: Iterable[Batch | Loss]) -> None:
        """Note what was read."""
        any_found = False
        for item in items:
            any_found = True
            self.after[item.priority] = item.order
            self.unread[item.priority] -= 1
            if isinstance(item, Batch):
                item.stored = True
                self.ready.put(item)
            else:
                self.confirm(item)
                self._drop(item, "spool_corrupt")
        if not any_found:
            self.unread.clear()  # whatever it was that we counted

    def restore(self, row: Restored) -> Batch:
        """Return the batch of a row."""
        ledger = self._ledger_of(row.worker)
        return Batch(
            row.worker, ledger, row.priority, row.count, row.data, row.about, row.epoch, row.first, order=row.order
        )

    def gave_up(self, losses: Iterable[Loss]) -> None:
        """Book rows that made room."""
        for loss in losses:
            self.unread[loss.priority] -= 1
            self._drop(loss, "spool_full")

    def emptied(self) -> None:
        """Note that the file was removed, with nothing in it that is needed."""
        self.unread.clear()
        self._spans.clear()
        self.confirmed = Confirmed()

    def lost(self, held: Iterable[Batch]) -> list[Batch]:
        """Book what was in a file that cannot be read any more; `held` is what the sink has.

        Returns:
            What was read from it before and has to be queued again: it is in memory only.
        """
        ready = self.ready.take(2**62)
        for batch in (*held, *ready):
            if batch.stored:
                batch.stored = False
                self.confirm(batch)
        for (worker, epoch, priority), (first, last) in self._spans.items():
            # Numbers between them that were never here are on the books already, and are not counted again.
            self._drop(Loss(priority, 0, worker, epoch, first, last - first + 1), "spool_corrupt")
        self.emptied()
        return ready

    def abandon(self, reason: str) -> int:
        """Give up what is being written and does not get through; returns the number of events."""
        lost = 0
        for batch in self.storing:
            if not batch.done:
                lost += batch.count
                batch.drop(reason)
        return lost

    def _drop(self, loss: Loss, reason: str) -> None:
        ledger = self._ledger_of(loss.worker)
        Batch(loss.worker, ledger, loss.priority, loss.count, b"", "", loss.epoch, loss.first).drop(reason)
