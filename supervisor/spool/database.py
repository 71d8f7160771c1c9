"""The spool's file: one SQLite database in WAL mode, bounded on disk with its log. Used by one thread at a time.

One table for each priority, numbered by the pipeline's order, so that rows are appended at the end and taken from
the start.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from garrison.ipc.messages import PRIORITIES, Priority
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.spool import room
from garrison.supervisor.spool import statements as sql
from garrison.supervisor.spool.connection import CORRUPT_READING, connect, explained, one, transaction
from garrison.supervisor.spool.errors import SpoolError
from garrison.supervisor.spool.packing import pack, unpack
from garrison.supervisor.spool.records import Confirmed, Held, Loss, Restored, Written

DROP_ROWS = 16
"""Rows that make room at a time."""
FETCH_ROWS = 32
VACUUM_PAGES = 256
"""Pages given back to the file system at a time."""


class _Packed(NamedTuple):
    batch: Batch
    rank: int
    pages: int
    raw: int
    checksum: int
    data: bytes


class SpoolFile:
    """The open database. Its methods block for the disk.

    Args:
        path: The file; made where it is missing, its folder is not.
        max_bytes: Bound of database and log together, at least `room.MIN_BYTES`.
        keep_free: Bytes that must stay free in the file system; with less nothing more is stored.
        sync: Whether a commit is on the disk when `write` returns; without it a commit survives the end of this
            process, and what the end of the machine leaves of it is whole.

    Attributes:
        rows: Rows by priority.
        events: Events by worker.

    Raises:
        SpoolError: It cannot be opened.
    """

    def __init__(self, path: str, max_bytes: int, keep_free: int, *, sync: bool) -> None:
        self._path = path
        self._keep_free = keep_free
        self._room = room.share(max_bytes)
        if not os.path.exists(path):
            self._check_disk()
        self._db = connect(path, self._room, sync=sync)
        self._identity = _identity(path)
        self.rows: Counter[Priority] = Counter()
        self.events: Counter[str] = Counter()
        try:
            self._count()
        except BaseException:
            self.close()
            raise

    def held(self) -> dict[tuple[str, int, Priority], Held]:
        """Return what is here, by worker, epoch and priority. Only the rows' heads are read.

        Raises:
            SpoolError: It cannot be read.
        """
        with explained(self._path, CORRUPT_READING):
            return {
                (worker, epoch, priority): Held(events, first, last)
                for priority in PRIORITIES
                for worker, epoch, _rows, events, first, last in self._db.execute(sql.HELD[priority])
            }

    def rows_after(self, after: Mapping[Priority, int]) -> Counter[Priority]:
        """Return how many rows are behind the given orders, by priority.

        Raises:
            SpoolError: It cannot be read.
        """
        with explained(self._path, CORRUPT_READING):
            return Counter({name: one(self._db, sql.ROWS_AFTER[name], after.get(name, 0)) for name in PRIORITIES})

    def last_order(self) -> int:
        """Return the highest order of any row; 0 where there is none.

        Raises:
            SpoolError: It cannot be read.
        """
        with explained(self._path, CORRUPT_READING):
            return max(one(self._db, sql.LAST[priority]) for priority in PRIORITIES)

    def write(self, batches: Sequence[Batch], confirmed: Confirmed, pinned: Mapping[Priority, int]) -> Written:
        """Remove what is done with and store batches, all or nothing. Makes room by giving up the least important.

        Args:
            batches: What to store, each with its `order`.
            confirmed: What has left the spool meanwhile.
            pinned: By priority, the order up to which rows are in the sink's hands: they are not given up.

        Raises:
            SpoolError: Nothing was changed.
        """
        packed = [_pack(batch) for batch in batches]
        if packed:
            self._check_there()
            self._check_disk()
        written = Written()
        rows, events = self.rows.copy(), self.events.copy()
        with explained(self._path), transaction(self._db):
            for priority, through in confirmed.through.items():
                rows[priority] -= self._db.execute(sql.DELETE_THROUGH[priority], (through,)).rowcount
            events -= confirmed.events
            wanted = self._make_room(packed, pinned, written)
            for loss in written.lost:
                rows[loss.priority] -= 1
                events[loss.worker] -= loss.count
            for batch, _rank, _pages, raw, checksum, data in wanted:
                numbers = batch.epoch, batch.first, batch.count, raw, checksum
                self._db.execute(sql.INSERT[batch.priority], (batch.order, batch.worker, batch.about, *numbers, data))
                rows[batch.priority] += 1
                events[batch.worker] += batch.count
                written.stored.append(batch)
        self.rows, self.events = +rows, +events
        self._bound_log()
        return written

    def read(
        self, after: Mapping[Priority, int], max_bytes: int, make: Callable[[Restored], Batch]
    ) -> list[Batch | Loss]:
        """Return rows behind `after`, the most important first, up to about `max_bytes` of data; at least one if any.

        A row that is not what was stored is returned as a `Loss`.

        Raises:
            SpoolError: It cannot be read.
        """
        found: list[Batch | Loss] = []
        size = 0
        with explained(self._path, CORRUPT_READING):
            for priority in PRIORITIES:
                at = after.get(priority, 0)
                while self.rows[priority] and size < max_bytes:
                    fetched = 0
                    rows = self._db.execute(sql.FETCH[priority], (at, FETCH_ROWS))
                    for row in rows:
                        fetched += 1
                        at = row[0]
                        item = _unpack(priority, row, make)
                        found.append(item)
                        size += item.size if isinstance(item, Batch) else 0
                        if size >= max_bytes:
                            break
                    rows.close()
                    if fetched < FETCH_ROWS:
                        break
        return found

    def size(self) -> int:
        """Return what database and log take on the disk, bytes."""
        total = 0
        for side in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += os.stat(self._path + side).st_size
        return total

    def roomy(self) -> bool:
        """Whether the file system has room for what is written next."""
        try:
            found = os.statvfs(os.path.dirname(self._path) or ".")
        except OSError:
            return False
        return found.f_bavail * found.f_frsize >= self._keep_free + self._room.transaction_bytes

    def fit(self) -> list[Loss]:
        """Bring a database that is larger than its bound down to it. Call it once before the first `write`.

        Returns:
            What had to be given up for that: the bound was larger before.

        Raises:
            SpoolError: It failed.
        """
        lost: list[Loss] = []
        db, pages = self._db, self._room.pages
        with explained(self._path):
            while self._used_pages() > pages:
                with transaction(db):
                    dropped = self._drop_oldest({}, 0)
                if not dropped:
                    break
                for loss in dropped:
                    self.rows[loss.priority] -= 1
                    self.events[loss.worker] -= loss.count
                lost += dropped
                self._bound_log()
            while one(db, "PRAGMA page_count") > pages and one(db, "PRAGMA freelist_count"):
                db.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")  # `execute` would do one step of it
                self._bound_log()
            if lost:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            db.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        self.rows, self.events = +self.rows, +self.events
        return lost

    def shrink(self) -> None:
        """Give the file system back what an empty database does not need. Cheap when there is nothing to give back.

        Raises:
            SpoolError: It failed; nothing is lost.
        """
        with explained(self._path):
            if one(self._db, "PRAGMA freelist_count"):
                self._db.executescript("PRAGMA incremental_vacuum")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Write the log back and close. Idempotent. What fails here fails again, and is told, at the next opening."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _count(self) -> None:
        with explained(self._path, CORRUPT_READING):
            for priority in PRIORITIES:
                for worker, epoch, rows, events, first, _last in self._db.execute(sql.HELD[priority]):
                    numbers = all(isinstance(value, int) and value >= 0 for value in (epoch, events, first))
                    if not isinstance(worker, str) or not numbers:
                        raise SpoolError("corrupt", f"{self._path} holds rows that the agent has not written")
                    self.rows[priority] += rows
                    self.events[worker] += events

    # Room

    def _make_room(self, packed: list[_Packed], pinned: Mapping[Priority, int], written: Written) -> list[_Packed]:
        """Give up the oldest of the least important, stored or new, until the rest fits; return what to store."""
        wanted = sorted(packed, key=lambda item: (item.rank, item.batch.order))
        need = sum(item.pages for item in wanted)
        while wanted and need > self._room.pages - self._used_pages():
            least = wanted[-1].rank
            if dropped := self._drop_oldest(pinned, least):
                written.lost += dropped
                continue
            # Nothing that is stored is less important: the oldest of the least important new ones goes.
            victim = next(item for item in wanted if item.rank == least)
            wanted.remove(victim)
            need -= victim.pages
            written.refused.append(victim.batch)
        return wanted

    def _drop_oldest(self, pinned: Mapping[Priority, int], least: int) -> list[Loss]:
        """Remove a few of the oldest rows of the least important priority that has any and is of rank `least` or below.

        Rank 0 is the most important.
        """
        for priority in reversed(PRIORITIES[least:]):
            found = self._db.execute(sql.OLDEST[priority], (pinned.get(priority, 0), DROP_ROWS)).fetchall()
            if found:
                self._db.executemany(sql.DELETE[priority], [row[:1] for row in found])
                return [Loss(priority, *row) for row in found]
        return []

    def _used_pages(self) -> int:
        return one(self._db, "PRAGMA page_count") - one(self._db, "PRAGMA freelist_count")

    def _bound_log(self) -> None:
        """Write the log back where a large transaction has made it longer than it may be."""
        with contextlib.suppress(OSError):
            if os.stat(f"{self._path}-wal").st_size > self._room.log_bytes:
                with explained(self._path):
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _check_there(self) -> None:
        """Notice a file that was removed: what goes there would be gone with this process."""
        if _identity(self._path) != self._identity:
            raise SpoolError("corrupt", f"the spool {self._path} was removed or replaced by somebody else")

    def _check_disk(self) -> None:
        try:
            found = os.statvfs(os.path.dirname(self._path) or ".")
        except OSError as error:
            text = f"the folder of the spool {self._path} cannot be looked at: {error.strerror}"
            raise SpoolError("unusable", f"{text}; make it, or set [spool] path to another") from error
        free = found.f_bavail * found.f_frsize
        if free < self._keep_free:
            text = f"the file system of the spool {self._path} has {free} bytes free, and [spool] keep_free leaves"
            raise SpoolError("full", f"{text} {self._keep_free} to others; free space there or set [spool] path")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _pack(batch: Batch) -> _Packed:
    raw, checksum, data = pack(batch.data)
    pages = room.pages_for(len(data) + len(batch.worker) + len(batch.about) + room.ROW_BYTES)
    return _Packed(batch, PRIORITIES.index(batch.priority), pages, raw, checksum, data)


def _unpack(priority: Priority, row: tuple[Any, ...], make: Callable[[Restored], Batch]) -> Batch | Loss:
    number, worker, about, epoch, first, count, raw, checksum, kept = row
    data = unpack(raw, checksum, kept)
    names = isinstance(worker, str) and isinstance(about, str)
    numbers = all(isinstance(value, int) for value in (epoch, first, count))
    if data is None or not names or not numbers or data.count(b"\n") != count:
        epoch, first, count = (value if isinstance(value, int) else 0 for value in (epoch, first, count))
        return Loss(priority, number, str(worker), epoch, first, count)
    return make(Restored(priority, number, worker, about, epoch, first, count, data))
