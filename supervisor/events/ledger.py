"""The ledger: what each worker emitted, what was delivered, what was dropped and why. Pure but for its journal.

For every worker ``emitted = delivered + dropped + in flight`` at any moment. `WorkerLedger` sums up all processes of
one worker, those of earlier masters included; `garrison.supervisor.events.checking` checks what each of them claims.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from garrison.ipc.messages import Events, Priority
from garrison.supervisor.events.inflight import InFlight, Key, Window
from garrison.supervisor.events.ranges import DropRange, DropRanges

MAX_REASONS = 32
"""Most reasons that are told apart in the books of one worker: some of them are a worker's own words."""
OTHER = "worker_other"
NO_END = 2**53
"""The last number of a range of which nobody knows the end."""

_REASON = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)


class Process(msgspec.Struct, array_like=True):
    """How far a living process has come in one priority.

    Attributes:
        booked: The last number that came.
        claimed: How many it says it has numbered.
    """

    epoch: int
    priority: Priority
    booked: int
    claimed: int


class Record(msgspec.Struct, array_like=True):
    """A ledger as it is kept on disk. Its counts only grow.

    Attributes:
        epoch: The newest process that it knows of.
        untracked: See `InFlight`.
        number: See `DropRanges`; so is `forgotten`.
    """

    worker: str
    epoch: int = 0
    emitted: int = 0
    delivered: int = 0
    dropped: dict[str, int] = {}
    untracked: int = 0
    windows: list[Window] = []
    processes: list[Process] = []
    ranges: list[DropRange] = []
    number: int = 0
    forgotten: int = 0


class WorkerLedger:
    """The totals of one worker, over all its processes. Counts only grow. Its methods may be called from any thread.

    Args:
        record: What was known before; None: nothing.
        keep: Called with the ledger's record after each change; must be quick, and not raise.

    Attributes:
        emitted: Events that were numbered, as far as is known.
        delivered: What the sink has confirmed.
        dropped: What was given up, by reason.
    """

    __slots__ = (
        "_epoch",
        "_in_flight",
        "_keep",
        "_lock",
        "_processes",
        "_ranges",
        "delivered",
        "dropped",
        "emitted",
        "on_delivered",
        "worker",
    )

    def __init__(
        self, worker: str = "", record: Record | None = None, keep: Callable[[Record], None] | None = None
    ) -> None:
        record = record or Record(worker=worker)
        self.worker = worker
        self.emitted = record.emitted
        self.delivered = record.delivered
        self.dropped: Counter[str] = Counter(record.dropped)
        self.on_delivered: Callable[[int, Priority, int], None] | None = None
        """Called, in the thread of the sink, with epoch, priority and last number of what was delivered."""
        self._epoch = record.epoch
        self._in_flight = InFlight(record.windows, record.untracked)
        self._processes: dict[Key, Process] = {(entry.epoch, entry.priority): entry for entry in record.processes}
        self._ranges = DropRanges(record.ranges, forgotten=record.forgotten)
        self._ranges.number = max(self._ranges.number, record.number)
        self._keep = keep
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Events that the agent holds: received, and neither delivered nor dropped yet."""
        return self.emitted - self.delivered - self.dropped.total()

    @property
    def forgotten(self) -> int:
        """Dropped events whose numbers could not be kept until a heartbeat told of them."""
        return self._ranges.forgotten

    def through(self) -> list[Process]:
        """Return how far the living processes have come."""
        with self._lock:
            return [msgspec.structs.replace(entry) for entry in self._processes.values()]

    def ranges(self) -> list[DropRange]:
        """Return the drops that are to be told, oldest first."""
        with self._lock:
            return self._ranges.known()

    def confirm(self, number: int) -> None:
        """Note that a reader has been told of the drops up to the change `number`."""
        with self._lock:
            self._ranges.confirm(number)
            self._changed()

    def record(self) -> Record:
        """Return a copy of everything, for the disk."""
        with self._lock:
            record = self._record()
            return msgspec.structs.replace(
                record,
                dropped=dict(record.dropped),
                windows=[msgspec.structs.replace(window) for window in record.windows],
                processes=[msgspec.structs.replace(entry) for entry in record.processes],
            )

    def detach(self) -> None:
        """Keep no record of what comes from now on."""
        with self._lock:
            self._keep = None

    # What comes in

    def emit(self, epoch: int, priority: Priority, first: int, count: int) -> None:
        """Count events that have come in: they are in flight now.

        Args:
            epoch: The number of their process; 0: without a place in a sequence.
            priority: Theirs.
            first: Sequence number of the first.
            count: How many.
        """
        with self._lock:
            self._emit(epoch, priority, first, count)
            if epoch:
                self._process(epoch, priority).booked = first + count - 1
            self._changed()

    def book(self, epoch: int, batch: Events) -> None:
        """Count a batch that was checked, and what it lists as dropped."""
        with self._lock:
            for first, last, reason in batch.dropped:
                self.emitted += last - first + 1
                self._give_up(last - first + 1, self._reason(reason), epoch, batch.priority, first, last)
            if batch.count:
                self._emit(epoch, batch.priority, batch.first, batch.count)
            self._process(epoch, batch.priority).booked = batch.first + batch.count - 1
            self._changed()

    def claim(self, epoch: int, claimed: dict[Priority, int]) -> None:
        """Note how many events a process says it has numbered."""
        with self._lock:
            for priority, count in claimed.items():
                self._process(epoch, priority).claimed = count
            self._changed()

    def close(self, epoch: int) -> int:
        """A process is gone: book what it had numbered and not handed over as ``lost_at_exit``. Returns how much."""
        with self._lock:
            lost = self._close(epoch)
            self._changed()
        return lost

    def take_over(self, held: Mapping[Key, tuple[int, int, int]], *, torn: bool = False) -> int:
        """An earlier master is gone: book what it had in flight, and what its processes had not handed over, as lost.

        Args:
            held: What of this worker is still there, in the spool: how many events, first and last number, by process
                and priority.
            torn: The host went down: the processes known here may have gone on after this record was written, and how
                far nobody knows. What of it has not arrived is lost.

        Returns:
            How many events are ``lost_at_exit``, as far as they can be counted.
        """
        with self._lock:
            self._learn(held)
            if torn:
                for entry in self._processes.values():
                    first = max(entry.booked, entry.claimed) + 1
                    self._ranges.add(entry.epoch, entry.priority, first, NO_END, "lost_at_exit")
            lost = sum(self._close(epoch) for epoch in {epoch for epoch, _priority in self._processes})
            old, self._in_flight = self._in_flight, InFlight()
            kept = 0
            missing: list[Window] = []
            for window in old.windows():
                count, first, last = held.get((window.epoch, window.priority), (0, window.last + 1, window.last))
                first, last = max(first, window.first), min(last, window.last)
                if last < first:
                    missing.append(window)
                    continue
                kept += min(count, last - first + 1)
                self._in_flight.add(window.epoch, window.priority, first, last)
                for start, end in ((window.first, first - 1), (last + 1, window.last)):
                    if start <= end:
                        missing.append(msgspec.structs.replace(window, first=start, last=end))
            gone = max(0, self.in_flight - kept)
            if gone:
                self.dropped["lost_at_exit"] += gone
                for window in missing:
                    self._ranges.add(window.epoch, window.priority, window.first, window.last, "lost_at_exit")
            self._changed()
        return lost + gone

    # What becomes of it

    def deliver(self, count: int, epoch: int = 0, priority: Priority = "event", first: int = 0) -> None:
        """Count events that the sink has confirmed.

        Args:
            count: How many.
            epoch: The number of their process; 0: they have no place in a sequence.
            priority: Theirs.
            first: Sequence number of the first. Numbers that were settled before, by an earlier master above all,
                are not counted again.
        """
        with self._lock:
            self.delivered += self._settle(count, epoch, priority, first)
            self._changed()
        if self.on_delivered is not None and epoch:
            self.on_delivered(epoch, priority, first + count - 1)

    def drop(self, count: int, reason: str, epoch: int = 0, priority: Priority = "event", first: int = 0) -> None:
        """Count events that the master gave up; see `deliver`. With a place in a sequence it is kept as a range."""
        if count:
            with self._lock:
                settled = self._settle(count, epoch, priority, first)
                self._give_up(settled, reason, epoch, priority, first, first + count - 1)
                self._changed()

    # Without the lock

    def _emit(self, epoch: int, priority: Priority, first: int, count: int) -> None:
        self.emitted += count
        if epoch:
            self._epoch = max(self._epoch, epoch)
            self._in_flight.add(epoch, priority, first, first + count - 1)

    def _settle(self, count: int, epoch: int, priority: Priority, first: int) -> int:
        """Take numbers out of what is in flight; returns how many of them were."""
        return self._in_flight.settle(epoch, priority, first, first + count - 1) if epoch else count

    def _learn(self, held: Mapping[Key, tuple[int, int, int]]) -> None:
        """Count what lies in the spool and came after this record was written: there was a power cut."""
        newest = self._epoch
        for (epoch, priority), (count, first, last) in sorted(held.items()):
            entry = self._processes.get((epoch, priority))
            if entry is not None:
                known = entry.booked
            elif epoch > newest:
                known = 0
            else:
                continue  # all of an earlier process is booked
            if last > known:
                first = max(first, known + 1)
                self._emit(epoch, priority, first, min(count, last - first + 1))
                self._in_flight.add(epoch, priority, first, last)
                if entry is not None:
                    entry.booked = last

    def _give_up(self, count: int, reason: str, epoch: int, priority: Priority, first: int, last: int) -> None:
        if count <= 0:
            return
        self.dropped[reason] += count
        if epoch:
            self._ranges.add(epoch, priority, first, last, reason)

    def _close(self, epoch: int) -> int:
        lost = 0
        for key in [key for key in self._processes if key[0] == epoch]:
            entry = self._processes.pop(key)
            missing = entry.claimed - entry.booked
            if missing > 0:
                self.emitted += missing
                self._give_up(missing, "lost_at_exit", epoch, entry.priority, entry.booked + 1, entry.claimed)
                lost += missing
        return lost

    def _process(self, epoch: int, priority: Priority) -> Process:
        key = epoch, priority
        if key not in self._processes:
            self._processes[key] = Process(epoch=epoch, priority=priority, booked=0, claimed=0)
        return self._processes[key]

    def _reason(self, word: str) -> str:
        """Return a worker's own reason as one of a bounded number of names."""
        reason = f"worker_{word}"
        if reason in self.dropped:
            return reason
        if len(self.dropped) >= MAX_REASONS or _REASON.fullmatch(word) is None:
            return OTHER
        return reason

    def _changed(self) -> None:
        if self._keep is not None:
            self._keep(self._record())

    def _record(self) -> Record:
        return Record(
            worker=self.worker,
            emitted=self.emitted,
            delivered=self.delivered,
            dropped=self.dropped,
            epoch=self._epoch,
            untracked=self._in_flight.untracked,
            windows=self._in_flight.windows(),
            processes=list(self._processes.values()),
            ranges=self._ranges.known(),
            number=self._ranges.number,
            forgotten=self._ranges.forgotten,
        )
