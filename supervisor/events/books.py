"""The books: the ledgers of all workers and of the agent itself, kept across restarts of worker, master and host.

Two copies outlive the master. The journals (`journal.py`, in memory) are exact after any end of the process. The state
file is written with each heartbeat and at an orderly end, and is what is left after a restart of the host; then what
came in its last minute is not known, but for what lies in the spool. Counts only grow, so of two copies the larger
one is the newer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from garrison.ipc.messages import Priority
from garrison.supervisor.events.journal import Journal, read
from garrison.supervisor.events.ledger import Record, WorkerLedger

MAX_LEDGERS = 96
"""Ledgers that are kept: more than workers can be defined, so that those of a removed one stay for a while."""

Held = Mapping[tuple[str, int, Priority], tuple[int, int, int]]
"""What the spool holds: how many events, first and last number, by worker, process and priority."""


class BooksState(msgspec.Struct, kw_only=True):
    """The state file: a record of each ledger.

    Attributes:
        clean: Whether it was written at an orderly end: nothing came after it.
    """

    records: list[Record] = []
    clean: bool = False


class Books:
    """Makes, keeps and restores the ledgers.

    Args:
        folder: Where the journals are; made where there is none. Empty: none are kept.
        state: What the state file held.

    Attributes:
        errors: What could not be read, for the status; it was done without.
    """

    def __init__(self, folder: str, state: BooksState | None = None) -> None:
        self.errors: list[str] = []
        self._folder = folder
        self._ledgers: dict[str, WorkerLedger] = {}
        self._journals: dict[str, Journal] = {}
        self._used: set[str] = set()
        self._records = {record.worker: record for record in (state.records if state else [])}
        # Of these nothing newer is known: what came between their writing and the host's end.
        self._torn = {} if state is None or state.clean else dict(self._records)
        if folder:
            self._read_journals()

    def _read_journals(self) -> None:
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            names = sorted(os.listdir(self._folder))[: 4 * MAX_LEDGERS]
        except OSError as error:
            self.errors.append(f"{self._folder} cannot be used: {error.strerror or error}")
            return
        for name in names:
            try:
                record = read(os.path.join(self._folder, name))
            except OSError as error:
                self.errors.append(f"the counts in {name} cannot be read: {error.strerror or error}")
                continue
            if record is None or record.worker != name:
                self.errors.append(f"{os.path.join(self._folder, name)} held no counts and was removed")
                self._remove(name)
                continue
            known = self._records.get(name)
            if known is None or _newer(record, known):
                self._records[name] = record
            self._torn.pop(name, None)

    def of(self, worker: str) -> WorkerLedger:
        """Return a worker's ledger; the same one for the same name, whatever becomes of the worker."""
        self._used.add(worker)
        return self._open(worker)

    def retire(self, worker: str) -> None:
        """Note that a worker is no longer defined; its books stay while there is room."""
        self._used.discard(worker)

    def _open(self, worker: str) -> WorkerLedger:
        ledger = self._ledgers.get(worker)
        if ledger is None:
            self._make_room()
            keep = None
            if self._folder:
                journal = self._journals[worker] = Journal(os.path.join(self._folder, worker))
                keep = journal.write
            ledger = self._ledgers[worker] = WorkerLedger(worker, self._records.pop(worker, None), keep)
        return ledger

    def begin(self, held: Held) -> dict[str, int]:
        """Book as lost what an earlier master had in flight and what is not held now.

        Call it once, before anything new is booked.

        Args:
            held: What the spool holds.

        Returns:
            How many events were ``lost_at_exit``, by worker; those that lost none are left out.
        """
        by_worker: dict[str, dict[tuple[int, Priority], tuple[int, int, int]]] = {}
        for (worker, epoch, priority), what in held.items():
            by_worker.setdefault(worker, {})[epoch, priority] = what
        lost = {}
        for worker in sorted({*self._records, *self._ledgers, *by_worker}):
            if count := self._open(worker).take_over(by_worker.get(worker, {}), torn=worker in self._torn):
                lost[worker] = count
        return lost

    def all(self) -> dict[str, WorkerLedger]:
        """Return every ledger there is, those of removed workers included."""
        return dict(self._ledgers)

    def state(self, *, clean: bool = False) -> BooksState:
        """Return all records, for the state file. `clean`: this is the end, and nothing will be booked any more."""
        records = [*self._records.values(), *(ledger.record() for ledger in self._ledgers.values())]
        return BooksState(records=records, clean=clean)

    def error(self) -> str:
        """Return why counts would not survive a killed master; empty where they would."""
        errors = [journal.error for journal in self._journals.values() if journal.error]
        return f"the counts of events would not survive a killed master: {errors[0]}" if errors else ""

    def mend(self) -> None:
        """Have journals that failed tried again with their next record."""
        for journal in self._journals.values():
            journal.reset()

    def close(self) -> None:
        """Close the journals; what is booked afterwards stays in memory."""
        for ledger in self._ledgers.values():
            ledger.detach()
        for journal in self._journals.values():
            journal.close()

    def _make_room(self) -> None:
        while len(self._ledgers) >= MAX_LEDGERS:
            # Of a worker that is no longer defined: the oldest of which nothing is in flight.
            idle = (name for name, ledger in self._ledgers.items() if name not in self._used and not ledger.in_flight)
            name = next(idle, None)
            if name is None:
                return
            self._ledgers.pop(name).detach()
            if (journal := self._journals.pop(name, None)) is not None:
                journal.close()
                self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self._folder, name))
        except OSError as error:
            self.errors.append(f"{os.path.join(self._folder, name)} cannot be removed: {error.strerror or error}")


def _newer(one: Record, other: Record) -> bool:
    def progress(record: Record) -> tuple[int, int, int]:
        return record.emitted, record.delivered + sum(record.dropped.values()), record.number

    return progress(one) >= progress(other)
