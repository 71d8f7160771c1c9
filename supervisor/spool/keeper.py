"""The keeper of the spool: the thread that owns its file, and what the pipeline may know of it without waiting.

It stores what the flow wants stored, removes what the sink has confirmed, and reads ahead for it, so that neither the
loop nor the sink ever waits for this disk. A file that cannot be used now is tried again with backoff; one that cannot
be read is set aside and begun anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import backoff
from garrison.supervisor.events.figures import SpoolFigures
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.pacing import DrainPace
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.spool.aside import remove, set_aside
from garrison.supervisor.spool.contents import Contents
from garrison.supervisor.spool.errors import SpoolError
from garrison.supervisor.spool.records import Confirmed, Held, Written
from garrison.supervisor.spool.room import share

if TYPE_CHECKING:
    from garrison.supervisor.events.flow import Flow
    from garrison.supervisor.spool.database import SpoolFile

READ_BYTES = 1024 * 1024
"""Most that is read ahead for the sink."""
READ_SHARE = 8
"""Divisor of the spool's bound for the same: what the sink has in its hands makes no room for what matters more."""
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
        contents: What is in it *(locked)*.
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
        self.contents = Contents(ledger_of)
        self.progress_at = float("-inf")
        self._plan = plan
        self._host = host
        self._flow = flow
        self._wakeup = threading.Condition(lock)
        self._changed = changed
        self._pace = pace
        self._on_trouble = on_trouble
        self.piece_bytes = min(READ_BYTES, plan.max_bytes // READ_SHARE)
        self._file: SpoolFile | None = None
        self._expected = False
        self._begun = False
        self._fitted = False
        self._confirmed_at = 0.0
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

    def confirm(self, batch: Batch) -> None:
        """Note that the sink has taken a stored batch: its row can go *(locked)*."""
        if not self.contents.confirmed:
            self._confirmed_at = time.monotonic()
            self._comes_at = float("-inf")
            self._wakeup.notify_all()
        self.contents.confirm(batch)

    def taken(self) -> None:
        """Note that the sink has taken something of what is ready *(locked)*."""
        if self._wants_reading():
            self._wakeup.notify_all()

    def figures(self) -> SpoolFigures:
        """Return how full it is, as of its last change *(locked)*."""
        events = max(0, self._events - self.contents.confirmed.events.total())
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
        contents, confirmed = self.contents, Confirmed()
        if now >= self._retry_at:
            store_at = self._flow.store_at(now)
            if store_at is not None and store_at <= now:
                contents.storing = self._flow.gather(share(self._plan.max_bytes).transaction_bytes, now)
            confirmed, contents.confirmed = contents.confirmed, Confirmed()
        return contents.storing, confirmed, dict(contents.after)

    def _due(self, now: float) -> float | None:
        """Return when there is something to do, monotonic seconds; None: nothing is to be expected *(locked)*."""
        times = []
        store_at = self._flow.store_at(now)
        if store_at is not None:
            times.append(store_at)
        if self.contents.confirmed:
            times.append(now if self._ended else self._confirmed_at + CONFIRM_SECONDS)
        if not self._ended:
            if self.error or (self._expected and self._file is None):
                times.append(now)
            if self._shrink_at is not None:
                times.append(self._shrink_at)
        at = max(min(times), self._retry_at) if times else None
        if self._file is not None and self._wants_reading() and not self._ended:
            at = now  # a disk that is full can be read
        return at

    def _wants_reading(self) -> bool:
        away = self._flow.trouble_since is not None and bool(self._flow.held)
        return self.contents.unread.total() > 0 and not away and self.contents.ready.bytes < self.piece_bytes // 2

    def _turn(self, batches: list[Batch], confirmed: Confirmed, pinned: dict[Priority, int]) -> None:
        opened = self._file is None or time.monotonic() >= self._retry_at > float("-inf")
        file = self._file if self._file is not None else self._open()
        if not self._fitted and time.monotonic() >= self._retry_at:
            lost = file.fit()
            with self._wakeup:
                self._fitted = True
                self.contents.gave_up(lost)
        written = file.write(batches, confirmed, pinned) if batches or confirmed else None
        with self._wakeup:
            if written is not None:
                self._wrote(written)
            wants, after = self._wants_reading() and not self._ended, dict(self.contents.after)
        if wants:
            found = file.read(after, self.piece_bytes, self.contents.restore)
            with self._wakeup:
                self.contents.found(found)
        if self._shrink_at is not None and time.monotonic() >= self._shrink_at:
            file.shrink()
            self._shrink_at = None
        size, roomy = file.size(), not self.error or file.roomy()
        with self._wakeup:
            self._size, self._events = size, file.events.total()
            if written is not None:
                empty = not (self._events or self.contents.waiting())
                self._shrink_at = time.monotonic() + IDLE_SECONDS if empty else None
            news = False
            if (written is not None and written.stored) or ((opened or written is not None) and roomy):
                self._failures, self._retry_at = 0, float("-inf")
                news = self._note("")
            elif self.error and time.monotonic() >= self._retry_at:
                # Nothing has failed, and nothing says that the next batch would not.
                self._retry_at = time.monotonic() + self._backoff()
            self._changed()
        if news:
            self._on_trouble("")

    def _open(self) -> SpoolFile:
        # Here and not above: what SQLite costs, only an agent that uses it pays.
        from garrison.supervisor.spool.database import SpoolFile

        plan = self._plan
        file = SpoolFile(plan.path, plan.max_bytes, plan.keep_free, sync=plan.always)
        last, held = (0, {}) if self._begun else (file.last_order(), file.held())
        with self._wakeup:
            self.contents.unread = file.rows_after(self.contents.after)
            if not self._begun:
                self._begun = True
                self.contents.begin(held)
                self._flow.follow(last)
                if self.contents.unread.total():
                    self._pace.begin(time.monotonic())
            self._file, self._fitted, self._expected = file, False, True
            self._size, self._events = file.size(), file.events.total()
        return file

    def _wrote(self, written: Written) -> None:
        """Note what a transaction has done *(locked)*."""
        now = time.monotonic()
        if self.contents.wrote(written, self._flow.held):
            self._flow.hold_off(now)
        for batch in written.stored:
            self._pace.arrived(batch.size, now)
            self.progress_at = now

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
            self.contents.storing = []
            self._flow.put_back(batches)
            confirmed.merge(self.contents.confirmed)
            self.contents.confirmed = confirmed
            if error.kind == "full" and file is not None and not file.events - confirmed.events:
                # Nothing in it is needed any more, and that cannot even be written down.
                self._begin_anew(file)
            if error.kind != "full":
                # What cannot be read now must not hold up what comes after it.
                self._file = None
                self.contents.unread.clear()
            if error.kind == "corrupt":
                self._flow.queue.put_back(self.contents.lost(self._flow.held))
                self._events = self._size = 0
            self._retry_at = time.monotonic() + self._backoff()
            # Before anybody is told to look again: it decides who may go past the spool.
            news = self._note(text)
            self._changed()
        if news:
            self._on_trouble(text)

    def _begin_anew(self, file: SpoolFile) -> None:
        """Remove a file of which everything was delivered *(locked)*."""
        file.close()
        self._file, self._expected = None, True
        self.contents.emptied()
        self._events = self._size = 0
        with contextlib.suppress(OSError):
            remove(self._plan.path)

    def _set_aside(self) -> str:
        if self._file is not None:
            self._file.close()
        try:
            name = set_aside(self._plan.path)
        except OSError as error:
            return f"it cannot be set aside: {error.strerror or error}"
        return f"it is now {name}"

    def _backoff(self) -> float:
        """Return how long to leave the spool alone after one more try that did not help, seconds."""
        self._failures += 1
        identity = (self._host, "spool")
        return backoff(self._failures - 1, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, identity=identity)

    def _note(self, error: str) -> bool:
        """Take note of what is wrong now *(locked)*; returns whether that is news."""
        news, self.error = error != self.error, error
        return news
