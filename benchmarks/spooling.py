"""(h) The spool: storing and draining, beside SQLite alone with the same events.

Both sides get the same stamped batches in the same transactions, on the same file system, A B A B. SQLite alone is what
one would write first: a table with a key and a blob, WAL, the same sync; no bound, no order by priority, no checksum.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.context import Context, Deadline
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from benchmarks.workers.bench_modules import execution
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.events.stamp import Stamp
from garrison.supervisor.spool.database import SpoolFile
from garrison.supervisor.spool.records import Confirmed, Restored
from garrison.supervisor.spool.room import share

MIB = 1024 * 1024
SPOOL_BYTES = 256 * MIB
BATCH_EVENTS = 140
"""About what one frame of a worker holds."""
EVENTS = 70_000
READ_BYTES = MIB
SECONDS = 120.0


@dataclass(frozen=True)
class Turn:
    """One side, once: seconds and CPU seconds of storing and of draining, bytes on the disk in between."""

    store: float
    store_cpu: float
    drain: float
    drain_cpu: float
    size: int


class Clock:
    """Wall and CPU time of a piece of work."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds and the CPU seconds since it was made."""
        return time.monotonic() - self._wall, time.process_time() - self._cpu


def batches(events: int) -> list[Batch]:
    """Return stamped batches as they come to the pipeline."""
    ledger, stamp = WorkerLedger("bench"), Stamp("bench1", "bench", 1)
    made = []
    for order, first in enumerate(range(1, events + 1, BATCH_EVENTS), 1):
        lines = [msgspec.json.encode(_varied(number))[:-1] for number in range(first, first + BATCH_EVENTS)]
        data = stamp.write([*lines, b""], "event")
        made.append(Batch("bench", ledger, "event", BATCH_EVENTS, data, "bench", 1, first, order))
    return made


def _varied(number: int) -> dict[str, object]:
    """Return an execution whose names and ids differ from the others', so that compression does not look too good."""
    document = execution(number)
    path = f"/srv/{os.urandom(3).hex()}/{os.urandom(5).hex()}"
    document["process"] |= {"entity_id": os.urandom(8).hex(), "command_line": f"{path} --once --out {path}.out"}
    return document


def transactions(made: list[Batch]) -> list[list[Batch]]:
    """Return the batches as the flow hands them over: so many bytes at a time."""
    bound, size = share(SPOOL_BYTES).transaction_bytes, 0
    groups: list[list[Batch]] = [[]]
    for batch in made:
        if groups[-1] and size + batch.size > bound:
            groups.append([])
            size = 0
        groups[-1].append(batch)
        size += batch.size
    return groups


def spool(path: Path, groups: list[list[Batch]], sync: bool) -> Turn:
    """Store and drain with the spool."""
    file = SpoolFile(str(path), SPOOL_BYTES, 0, sync=sync)
    try:
        file.fit()
        clock = Clock()
        for group in groups:
            file.write(group, Confirmed(), {})
        store, size = clock.read(), file.size()

        def make(row: Restored) -> Batch:
            ledger = groups[0][0].ledger
            return Batch(row.worker, ledger, row.priority, row.count, row.data, "", row.epoch, row.first, row.order)

        clock, after, found = Clock(), {}, 0
        while rows := file.read(after, READ_BYTES, make):
            confirmed = Confirmed()
            for row in rows:
                confirmed.add(row)
                found += row.count
            after = dict(confirmed.through)
            file.write([], confirmed, after)
        drain = clock.read()
    finally:
        file.close()
    return _checked(Turn(*store, *drain, size), found, groups)


def alone(path: Path, groups: list[list[Batch]], sync: bool) -> Turn:
    """Store and drain with SQLite alone."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
        db.execute("CREATE TABLE batch (number INTEGER PRIMARY KEY, data BLOB)")
        clock = Clock()
        for group in groups:
            db.execute("BEGIN")
            db.executemany("INSERT INTO batch VALUES (?, ?)", [(batch.order, batch.data) for batch in group])
            db.execute("COMMIT")
        store = clock.read()
        size = sum(os.stat(f"{path}{side}").st_size for side in ("", "-wal"))
        clock, at, found = Clock(), 0, 0
        piece = max(1, READ_BYTES // groups[0][0].size)
        while rows := db.execute(f"SELECT number, data FROM batch WHERE number > ? LIMIT {piece}", (at,)).fetchall():
            at = rows[-1][0]
            found += sum(data.count(b"\n") for _number, data in rows)
            db.execute("DELETE FROM batch WHERE number <= ?", (at,))
        drain = clock.read()
    finally:
        db.close()
    return _checked(Turn(*store, *drain, size), found, groups)


def _checked(turn: Turn, found: int, groups: list[list[Batch]]) -> Turn:
    events = sum(batch.count for group in groups for batch in group)
    if found != events:
        raise AssertionError(f"{events} events were stored and {found} came back")
    return turn


def run(context: Context) -> Report:
    """Measure it."""
    report = Report("spooling")
    folder = context.folder / "spooling"
    folder.mkdir()
    groups = transactions(batches(EVENTS // (10 if context.quick else 1)))
    events = sum(batch.count for group in groups for batch in group)
    raw = sum(len(batch.data) for group in groups for batch in group)
    deadline = Deadline(SECONDS)
    sides: tuple[tuple[str, Callable[[Path, list[list[Batch]], bool], Turn]], ...] = (
        ("spool", spool),
        ("SQLite alone", alone),
    )
    for name, sync in (("outage", False), ("always", True)):
        turns: dict[str, list[Turn]] = {side: [] for side, _ in sides}
        for number in range(context.count(10, 3)):
            if deadline.over and number >= 2:
                break
            for side, measure in sides:
                path = folder / f"{name}-{number}-{side.replace(' ', '-')}.sqlite"
                turns[side].append(measure(path, groups, sync))
                for leftover in folder.iterdir():
                    leftover.unlink()
            context.noise.sample()
        ours, beside = turns["spool"], turns["SQLite alone"]
        report.rows += [
            _row(f"`{name}`: stored", "events/s", ours, beside, lambda turn: events / turn.store, more=True),
            _row(f"`{name}`: drained", "events/s", ours, beside, lambda turn: events / turn.drain, more=True),
            _row(f"`{name}`: CPU to store 1,000", "ms", ours, beside, lambda turn: turn.store_cpu / events * 1e6),
            _row(f"`{name}`: CPU to drain 1,000", "ms", ours, beside, lambda turn: turn.drain_cpu / events * 1e6),
        ]
        if not sync:
            report.rows.append(_row("on the disk, an event", "bytes", ours, beside, lambda turn: turn.size / events))
    report.notes.append(
        f"{events} events of {raw / events:.0f} bytes with their stamps, in transactions of "
        f"{share(SPOOL_BYTES).transaction_bytes // 1024} KiB; every event came back, on both sides"
    )
    return report


def _row(
    what: str, unit: str, ours: list[Turn], beside: list[Turn], value: Callable[[Turn], float], *, more: bool = False
) -> Row:
    mine, theirs = Series("spool", unit), Series("SQLite alone", unit)
    for turn in ours:
        mine.add(value(turn))
    for turn in beside:
        theirs.add(value(turn))
    ratio = mine.p50 / theirs.p50 if more else theirs.p50 / mine.p50
    return Row(f"spool, {what}", mine, theirs, ratio)
