"""The keeper of the spool: the thread that owns its file, and what the pipeline may know of it without waiting.

It stores what the flow wants stored, removes what the sink has confirmed, and reads ahead for it, so that neither the
loop nor the sink ever waits for this disk. A file that cannot be used now is tried again with backoff; one that cannot
be read is set aside and begun anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import backoff
from garrison.supervisor.events.figures import SpoolFigures
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.pacing import DrainPace
from garrison.supervisor.events.queue import Batch, EventQueue
from garrison.supervisor.spool.aside import set_aside
from garrison.supervisor.spool.errors import SpoolError
from garrison.supervisor.spool.records import Confirmed, Held, Loss, Restored, Written
from garrison.supervisor.spool.room import share

if TYPE_CHECKING:
    from garrison.supervisor.events.flow import Flow
    from garrison.supervisor.spool.database import SpoolFile

READ_BYTES = 1024 * 1024
"""Most that is read ahead for the sink."""
READ_SHARE = 8
"""Divisor of the spool's bound for the same: what is in the sink's hands cannot make room for what is more important."""
CONFIRM_SECONDS = 0.5
"""How long the removal of what was confirmed may wait for company; what a crash leaves of it is sent twice."""
IDLE_SECONDS = 10.0
"""How long an empty spool keeps its size on the disk: the next moment may need it again."""
RETRY_BASE_SECONDS = 0.5
RETRY_CAP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SpoolPlan:
    """What the settings say of the spool; see ``[spool]``."""

    path: str
    max_bytes: int
    keep_free: int
    always: bool


class Keeper:
    """Keeps the spool. What is marked *(locked)* needs the pipeline's lock.

    Args:
        plan: What the settings say.
        host: Host name, for the jitter of retries.
        flow: Where events come from.
        lock: The pipeline's.
        changed: Tells the sink's thread that there may be something for it *(locked)*.
        ledger_of: Returns the ledger of a worker, also of one that is not there any more.
        pace: The pace of what comes out.
        on_trouble: Called from the thread with the text of a first failure, and with "" when it is over.

    Attributes:
        error: Why nothing can be stored now; empty where it can.
        ready: What was read for the sink *(locked)*.
        progress_at: When something was stored last, monotonic seconds.
        piece_bytes: Most that the sink should have in its hands.
    """

    def __init__(
        self,
        plan: SpoolPlan,
        host: str,
        flow: Flow,
        lock: threading.Lock,
        changed: Callable[[], None],
        ledger_of: Callable[[str], WorkerLedger],
        pace: DrainPace,
        on_trouble: Callable[[str], None],
    ) -> None:
        self.error = ""
        self.ready = EventQueue(2**62)
        self.progress_at = float("-inf")
        self._plan = plan
        self._host = host
        self._flow = flow
        self._wakeup = threading.Condition(lock)
        self._changed = changed
        self._ledger_of = ledger_of
        self._pace = pace
        self._on_trouble = on_trouble
        self.piece_bytes = min(READ_BYTES, plan.max_bytes // READ_SHARE)
        self._file: SpoolFile | None = None
        self._expected = False
        self._begun = False
        self._fitted = False
        self._storing: list[Batch] = []
        self._unread: Counter[Priority] = Counter()
        self._after: dict[Priority, int] = {}
        self._confirmed = Confirmed()
        self._confirmed_at = 0.0
        self._spans: dict[tuple[str, int, Priority], tuple[int, int]] = {}
        self._shrink_at: float | None = None
        self._failures = 0
        self._retry_at = float("-inf")
        self._comes_at = float("-inf")
        self._size = 0
        self._events = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="garrison-spool", daemon=True)

    def open(self) -> Mapping[tuple[str, int, Priority], Held]:
        """Open a spool that an earlier master left, and return what is in it. Call it before `start`; it waits.

        A spool that cannot be opened is reported and tried again later.
        """
        if not self._plan.always and not os.path.lexists(self._plan.path):
            return {}
        self._expected = True
        try:
            return self._open().held()
        except SpoolError as error:
            self._failed(error, [], Confirmed())
            return {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self, now: float) -> None:
        """Have the thread look again what is to be done, unless it comes by in time anyway *(locked)*."""
        at = self._flow.store_at(now)
        if at is not None and at < self._comes_at:
            self._comes_at = at
            self._wakeup.notify_all()

    def blocks(self, priority: Priority) -> bool:
        """Whether events of a priority are here that must go to the sink before newer ones *(locked)*."""
        return (
            self._unread[priority] > 0
            or self.ready.holds(priority)
            or any(batch.priority == priority for batch in self._storing)
        )

    def waiting(self) -> bool:
        """Whether anything is here that the sink was not offered yet *(locked)*."""
        return bool(self.ready) or bool(self._storing) or self._unread.total() > 0

    def confirm(self, row: Batch | Loss) -> None:
        """Note that a stored batch is done with: its row can go *(locked)*."""
        if not self._confirmed:
            self._confirmed_at = time.monotonic()
            self._comes_at = float("-inf")
            self._wakeup.notify_all()
        self._confirmed.add(row)
        key = row.worker, row.epoch, row.priority
        _first, last = self._spans.get(key, (0, 0))
        if row.last < last:
            self._spans[key] = row.last + 1, last
        else:
            self._spans.pop(key, None)

    def taken(self) -> None:
        """Note that the sink has taken something of what is ready *(locked)*."""
        if self._wants_reading():
            self._wakeup.notify_all()

    def figures(self) -> SpoolFigures:
        """Return how full it is, as of its last change *(locked)*."""
        events = max(0, self._events - self._confirmed.events.total())
        return SpoolFigures(self._size, self._plan.max_bytes, events, self.error)

    def close(self, seconds: float) -> bool:
        """Have the thread store what the flow still has, close the file and end. False: it did not within `seconds`."""
        with self._wakeup:
            self._ended = True
            self._retry_at = float("-inf")
            self._wakeup.notify_all()
        if self._thread.ident is None:
            self._run()
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def abandon(self, reason: str) -> int:
        """Give up what a disk that hangs has not taken; returns the number of events *(locked)*."""
        lost = 0
        for batch in self._storing:
            if not batch.done:
                lost += batch.count
                batch.drop(reason)
        return lost

    # The thread

    def _run(self) -> None:
        while True:
            with self._wakeup:
                work = self._next()
            if work is None:
                break
            batches, confirmed, pinned = work
            try:
                self._turn(batches, confirmed, pinned)
                continue
            except SpoolError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  without this thread nothing would be stored any more
                failure = SpoolError("unusable", f"the spool failed, a mistake in the agent: {error!r}")
            self._failed(failure, batches, confirmed)
            if self._ended:
                break
        if self._file is not None:
            self._file.close()

    def _next(self) -> tuple[list[Batch], Confirmed, dict[Priority, int]] | None:
        """Wait for something to do; None: for nothing any more *(locked)*."""
        while True:
            now = time.monotonic()
            at = self._due(now)
            if at is not None and at <= now:
                break
            if self._ended:
                return None
            self._comes_at = float("inf") if at is None else at
            self._wakeup.wait(None if at is None else at - now)
        self._comes_at = float("-inf")
        store_at = self._flow.store_at(now)
        if store_at is not None and store_at <= now:
            self._storing = self._flow.gather(share(self._plan.max_bytes).transaction_bytes, now)
        confirmed, self._confirmed = self._confirmed, Confirmed()
        return self._storing, confirmed, dict(self._after)

    def _due(self, now: float) -> float | None:
        """Return when there is something to do, monotonic seconds; None: nothing is to be expected *(locked)*."""
        times = []
        store_at = self._flow.store_at(now)
        if store_at is not None:
            times.append(store_at)
        if self._confirmed:
            times.append(now if self._ended else self._confirmed_at + CONFIRM_SECONDS)
        if not self._ended:
            if self._wants_reading() or (self._expected and self._file is None):
                times.append(now)
            if self._shrink_at is not None:
                times.append(self._shrink_at)
        return max(min(times), self._retry_at) if times else None

    def _wants_reading(self) -> bool:
        away = self._flow.trouble_since is not None and bool(self._flow.held)
        return self._unread.total() > 0 and not away and self.ready.bytes < self.piece_bytes // 2

    def _turn(self, batches: list[Batch], confirmed: Confirmed, pinned: dict[Priority, int]) -> None:
        file = self._file if self._file is not None else self._open()
        if not self._fitted:
            lost = file.fit()
            with self._wakeup:
                self._fitted = True
                self._gave_up(lost)
        written = file.write(batches, confirmed, pinned) if batches or confirmed else None
        with self._wakeup:
            if written is not None:
                self._wrote(written)
            wants, after = self._wants_reading() and not self._ended, dict(self._after)
        if wants:
            found = file.read(after, self.piece_bytes, self._restore)
            with self._wakeup:
                self._found(found)
        if self._shrink_at is not None and time.monotonic() >= self._shrink_at:
            self._shrink_at = None
            file.shrink()
        size = file.size()
        with self._wakeup:
            self._size, self._events = size, file.events.total()
            if written is not None:
                empty = not (self._events or self.waiting())
                self._shrink_at = time.monotonic() + IDLE_SECONDS if empty else None
            self._failures, self._retry_at = 0, float("-inf")
            self._changed()
        self._say("")

    def _open(self) -> SpoolFile:
        # Here and not above: what SQLite costs, only an agent that uses it pays.
        from garrison.supervisor.spool.database import SpoolFile

        plan = self._plan
        file = SpoolFile(plan.path, plan.max_bytes, plan.keep_free, sync=plan.always)
        last, held = (0, {}) if self._begun else (file.last_order(), file.held())
        with self._wakeup:
            self._unread = file.rows_after(self._after)
            if not self._begun:
                self._begun = True
                self._spans = {key: (found.first, found.last) for key, found in held.items()}
                self._flow.follow(last)
                if self._unread.total():
                    self._pace.begin(time.monotonic())
            self._file, self._fitted, self._expected = file, False, True
            self._size, self._events = file.size(), file.events.total()
        return file

    def _wrote(self, written: Written) -> None:
        now = time.monotonic()
        self._storing = []
        self._gave_up(written.lost)
        held = set(map(id, self._flow.held))
        for batch in written.refused:
            if id(batch) in held:
                self._flow.hold_off(now)
            elif not batch.done:
                batch.drop("spool_full")
        for batch in written.stored:
            batch.stored = True
            self._pace.arrived(batch.size, now)
            if batch.done or id(batch) in held:
                # It never was behind anything here: the sink had it before.
                self._after[batch.priority] = max(self._after.get(batch.priority, 0), batch.order)
                if batch.done:
                    self.confirm(batch)
            else:
                self._unread[batch.priority] += 1
            if not batch.done:
                key = batch.worker, batch.epoch, batch.priority
                self._spans[key] = self._spans.get(key, (batch.first, 0))[0], batch.last
            batch.settle()
        if written.stored:
            self.progress_at = now

    def _found(self, found: list[Batch | Loss]) -> None:
        for item in found:
            self._after[item.priority] = item.order
            self._unread[item.priority] -= 1
            if isinstance(item, Batch):
                item.stored = True
                self.ready.put(item)
            else:
                self.confirm(item)
                self._drop(item, "spool_corrupt")
        if not found:
            self._unread.clear()  # whatever it was that we counted

    def _restore(self, row: Restored) -> Batch:
        ledger = self._ledger_of(row.worker)
        return Batch(
            row.worker, ledger, row.priority, row.count, row.data, row.about, row.epoch, row.first, order=row.order
        )

    def _gave_up(self, losses: list[Loss]) -> None:
        for loss in losses:
            self._unread[loss.priority] -= 1
            self._drop(loss, "spool_full")

    def _drop(self, loss: Loss, reason: str) -> None:
        ledger = self._ledger_of(loss.worker)
        Batch(loss.worker, ledger, loss.priority, loss.count, b"", "", loss.epoch, loss.first).drop(reason)

    # Trouble

    def _failed(self, error: SpoolError, batches: list[Batch], confirmed: Confirmed) -> None:
        """Take back what was not stored; have the file tried again, or a corrupt one set aside."""
        text = str(error)
        file = self._file
        if error.kind == "corrupt":
            text = f"{text}; {self._set_aside()}"
        if error.kind != "full" and file is not None:
            file.close()
        with self._wakeup:
            self._storing = []
            self._flow.put_back(batches)
            confirmed.merge(self._confirmed)
            self._confirmed = confirmed
            if error.kind != "full":
                # What cannot be read now must not hold up what comes after it.
                self._file = None
                self._unread.clear()
            if error.kind == "corrupt":
                self._forget()
            wait = backoff(
                self._failures, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, identity=(self._host, "spool")
            )
            self._failures += 1
            self._retry_at = time.monotonic() + wait
            self._changed()
        self._say(text)

    def _set_aside(self) -> str:
        if self._file is not None:
            self._file.close()
        try:
            name = set_aside(self._plan.path)
        except OSError as error:
            return f"it cannot be set aside: {error.strerror or error}"
        return f"it is now {name}"

    def _forget(self) -> None:
        """Book what was in a file that is lost; what was read from it is still here, in memory *(locked)*."""
        ready = self.ready.take(2**62)
        for batch in (*self._flow.held, *ready):
            if batch.stored:
                batch.stored = False
                self.confirm(batch)
        self._flow.queue.put_back(ready)
        self._confirmed = Confirmed()
        spans, self._spans = self._spans, {}
        for (worker, epoch, priority), (first, last) in spans.items():
            # Numbers between them that were never here are on the books already, and are not counted again.
            self._drop(Loss(priority, 0, worker, epoch, first, last - first + 1), "spool_corrupt")
        self._events = self._size = 0

    def _say(self, error: str) -> None:
        if error != self.error:
            self.error = error
            self._on_trouble(error)
