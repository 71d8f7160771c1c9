"""Sinks that are away, and pipelines with a spool."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from garrison.ipc.messages import Priority
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.pipeline import Pipeline, Spooling
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.sinks.base import Refused, Sink, SinkError
from garrison.supervisor.spool.keeper import SpoolPlan

MIB = 1024 * 1024


class Moody(Sink):
    """A sink that takes events, refuses them or hangs, as told."""

    name = "moody"

    def __init__(self, *, away: bool = False) -> None:
        self.away = away
        self.taken: list[Batch] = []
        self.writes = 0
        self.free = threading.Event()
        self.free.set()

    def write(self, batches: Sequence[Batch]) -> Sequence[Refused]:
        self.writes += 1
        self.free.wait(120)
        if self.away:
            raise SinkError("nobody there")
        self.taken += batches
        return ()

    def reopen(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def numbers(self, priority: Priority = "event") -> list[int]:
        """Sequence numbers of what was taken."""
        return [
            number
            for batch in self.taken
            if batch.priority == priority
            for number in range(batch.first, batch.last + 1)
        ]


class Worker:
    """Makes batches of one worker process, booked as the intake does it."""

    def __init__(self, ledger: WorkerLedger, name: str = "w", epoch: int = 1) -> None:
        self.ledger = ledger
        self.name = name
        self.epoch = epoch
        self._next: dict[Priority, int] = {}

    def batch(self, priority: Priority = "event", count: int = 1, width: int = 0) -> Batch:
        first = self._next.get(priority, 1)
        self._next[priority] = first + count
        data = b"".join(
            json.dumps({"n": number, "x": "x" * width}).encode() + b"\n" for number in range(first, first + count)
        )
        self.ledger.emit(self.epoch, priority, first, count)
        return Batch(self.name, self.ledger, priority, count, data, self.name, self.epoch, first)


class Host:
    """The ledgers of one host and its pipelines, one after the other."""

    def __init__(self, path: Path, *, max_bytes: int = 4 * MIB, always: bool = False, keep_free: int = 0) -> None:
        self.path = path
        self.plan = SpoolPlan(str(path), max_bytes, keep_free, always)
        self.ledgers: dict[str, WorkerLedger] = {}
        self.troubles: list[str] = []
        self.rate = 100 * MIB
        self.spread = 0.0
        self.pipelines: list[Pipeline] = []

    def ledger(self, worker: str) -> WorkerLedger:
        return self.ledgers.setdefault(worker, WorkerLedger(worker))

    def pipeline(self, sink: Sink, *, start: bool = True, max_bytes: int = 8 * MIB) -> Pipeline:
        spooling = Spooling(self.plan, self.rate, self.spread, self.troubles.append)
        pipeline = Pipeline(sink, "host", lambda _: None, max_bytes, spooling=spooling, ledger_of=self.ledger)
        self.held = pipeline.open()
        if start:
            pipeline.start()
        self.pipelines.append(pipeline)
        return pipeline

    def size(self) -> int:
        """Bytes of the database and its log."""
        return sum(path.stat().st_size for path in (self.path, Path(f"{self.path}-wal")) if path.exists())

    def balanced(self) -> bool:
        """Whether every ledger adds up and nothing is in flight."""
        return all(ledger.in_flight == 0 for ledger in self.ledgers.values())


def closing(pipelines: Sequence[Pipeline], sinks: Sequence[Moody] = ()) -> Callable[[], None]:
    """Return what ends what a test has started."""

    def close() -> None:
        for sink in sinks:
            sink.free.set()
        for pipeline in pipelines:
            pipeline.close(0.0)

    return close
