"""Feeds a Kafka sink as the pipeline does, and checks what a consumer finds."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from garrison.ipc.messages import Priority
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.settings.schema import KafkaSink as Settings
from garrison.supervisor.sinks.base import Refused, Sink, SinkError
from garrison.supervisor.sinks.kafka.sink import KafkaSink

HOST = "web1"
WRITE_EVENTS = 2000


def event(worker: str, sequence: int, size: int = 0) -> bytes:
    """Return a stamped event, as it leaves the master."""
    document: dict[str, Any] = {"event": {"module": worker, "sequence": sequence}, "host": {"name": HOST}}
    if size:
        document["filler"] = "".join(chr(33 + (sequence * 7 + number * number) % 90) for number in range(size))
        document["filler"] = document["filler"].replace('"', "'").replace("\\", "/")
    return json.dumps(document).encode() + b"\n"


def batch(first: int, count: int, worker: str = "process", priority: Priority = "event", epoch: int = 7) -> Batch:
    """Return a batch of small events."""
    data = b"".join(event(worker, first + number) for number in range(count))
    return Batch(worker, WorkerLedger(), priority, count, data, worker, epoch, first)


def batch_of(events: list[bytes], first: int = 1, worker: str = "process") -> Batch:
    """Return a batch of these events."""
    return Batch(worker, WorkerLedger(), "event", len(events), b"".join(events), worker, 7, first)


class Offering:
    """Offers batches from a thread until each is delivered, as the pipeline does, and keeps the books.

    Attributes:
        errors: Texts of the failures, without repetitions in a row.
        failures: How many there were.
        delivered: Events by worker.
        refused: What the sink gave up.
    """

    def __init__(self, sink: Sink, retry_seconds: float = 0.2) -> None:
        self.sink = sink
        self.errors: list[str] = []
        self.failures = 0
        self.delivered: dict[str, int] = defaultdict(int)
        self.refused: list[Refused] = []
        self.longest_write = 0.0
        self._retry = retry_seconds
        self._queue: deque[Batch] = deque()
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, *batches: Batch) -> None:
        """Queue batches."""
        with self._lock:
            self._queue.extend(batches)

    @property
    def pending(self) -> int:
        """Batches not delivered yet."""
        return len(self._queue)

    def end(self) -> None:
        """Stop offering and close the sink. Idempotent."""
        self._ended = True
        self.sink.hurry()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.sink.close()

    def _run(self) -> None:
        while not self._ended:
            with self._lock:
                work: list[Batch] = []
                events = 0
                for each in self._queue:
                    if events and events + each.count > WRITE_EVENTS:
                        break
                    events += each.count
                    work.append(each)
            if not work:
                time.sleep(0.01)
                continue
            begin, done = time.monotonic(), len(work)
            refused: Any = ()
            try:
                refused = self.sink.write(work)
            except SinkError as error:
                done, refused = error.delivered, error.refused
                self.failures += 1
                if not self.errors or self.errors[-1] != str(error):
                    self.errors.append(str(error))
            self.longest_write = max(self.longest_write, time.monotonic() - begin)
            self.refused += refused
            with self._lock:
                for _ in range(done):
                    each = self._queue.popleft()
                    self.delivered[each.worker] += each.count
            for each in refused:
                self.delivered[each.batch.worker] -= each.count
            if done < len(work):
                time.sleep(self._retry)


class Load:
    """Several workers that emit for as long as the test wants."""

    def __init__(self, offering: Offering, workers: tuple[str, ...] = ("files", "process")) -> None:
        self.emitted = dict.fromkeys(workers, 0)
        self._offering, self._pause = offering, 0.02
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No more events."""
        self._ended = True
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended:
            if self._offering.pending < 400:
                for worker in self.emitted:
                    self._offering.put(batch(self.emitted[worker] + 1, 10, worker))
                    self.emitted[worker] += 10
            time.sleep(self._pause)


def settings(bootstrap: list[str], **more: Any) -> Settings:
    """Return settings for a broker, with short waits."""
    return Settings(**{"bootstrap_servers": tuple(bootstrap), "linger_seconds": 0.0, "timeout_seconds": 3.0, **more})


def make_sink(bootstrap: list[str], leave: Callable[[], bool] = lambda: False, **more: Any) -> KafkaSink:
    """Return a sink that waits long enough for a busy machine, and not for company."""
    more.setdefault("timeout_seconds", 30.0)
    return KafkaSink(settings(bootstrap, **more), HOST, leave)


def sequences(records: list[Any]) -> dict[str, list[int]]:
    """Return the sequence numbers of each worker, in the order in which they were found; headers are checked."""
    found: dict[str, list[int]] = defaultdict(list)
    for record in records:
        headers = dict(record.headers)
        assert record.key == headers["host"] == HOST.encode()
        for line in record.value.split(b"\n"):
            said = json.loads(line)["event"]
            assert said["module"] == headers["worker"].decode()
            found[said["module"]].append(said["sequence"])
    return found


def assert_exact(records: list[Any], emitted: dict[str, int]) -> None:
    """Every event is there once and in its place."""
    found = sequences(records)
    for worker, count in emitted.items():
        assert found[worker] == list(range(1, count + 1)), describe(found[worker], count)


def describe(found: list[int], count: int) -> str:
    """Say what is missing, twice there, or out of order."""
    missing = sorted(set(range(1, count + 1)) - set(found))
    twice = len(found) - len(set(found))
    swapped = sum(later < earlier for earlier, later in itertools.pairwise(found))
    return f"{len(missing)} missing {missing[:5]}, {twice} twice, {swapped} out of order, of {count}"
