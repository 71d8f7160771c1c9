"""The pipeline: from a worker's batch to the sink, without the loop ever waiting for the sink.

The loop admits batches (rate limit, stamp, queue); one thread writes them. A sink that fails is tried
again with backoff while the queue fills up to its bound; then the least important events are dropped and
counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import backoff
from garrison.supervisor.events.queue import Batch, EventQueue
from garrison.supervisor.events.tap import Tap
from garrison.supervisor.sinks.base import Sink, SinkError

QUEUE_BYTES = 8 * 1024 * 1024
"""Bound of the master's queue: about 20,000 events of 400 bytes."""
WRITE_BYTES = 1024 * 1024
"""Most bytes taken from the queue for one write."""
CONGESTED_SHARE = 0.5
"""Share of the queue's bound above which workers are read more slowly, as long as the sink makes progress."""
PROGRESS_SECONDS = 0.5
"""A sink that has taken nothing for so long makes no progress: waiting for it would help nobody."""
RETRY_BASE_SECONDS = 0.25
RETRY_CAP_SECONDS = 15.0


class Pipeline:
    """Owns the queue and the sink's thread.

    Args:
        sink: Where events go; touched by the sink's thread only.
        host: Host name, for the jitter of retries.
        on_trouble: Called from the sink's thread with the text of a first failure, and with "" when it is over.
        max_bytes: Bound of the queue.

    Attributes:
        tap: The live view.
        error: What is wrong with the sink now; empty where nothing is.
        shed: Priorities whose events are dropped and counted before they cost anything more.
    """

    def __init__(self, sink: Sink, host: str, on_trouble: Callable[[str], None], max_bytes: int = QUEUE_BYTES) -> None:
        self.tap = Tap()
        self.error = ""
        self.shed: frozenset[Priority] = frozenset()
        self._sink = sink
        self._host = host
        self._on_trouble = on_trouble
        self._queue = EventQueue(max_bytes)
        self._congested_bytes = int(max_bytes * CONGESTED_SHARE)
        self._progress_at = float("-inf")
        self._held: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._suspended = False
        self._closing = False
        self._busy = False
        self._reopen = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="garrison-sink", daemon=True)

    def start(self) -> None:
        """Start the sink's thread."""
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Queue a batch for the sink and show it to the tap. Never blocks for the sink."""
        if batch.priority in self.shed:
            batch.ledger.drop(batch.count, "shed")
            return
        with self._changed:
            self._queue.put(batch)
            self._changed.notify_all()
        self.tap.publish(batch)

    def congested(self) -> bool:
        """True while it pays to let the sink catch up before more is put: it is behind, and it does write.

        Both threads share one interpreter lock, so a busy reader of pipes can starve a sink that is fast enough.
        """
        behind = self._queue.bytes > self._congested_bytes
        return behind and time.monotonic() - self._progress_at < PROGRESS_SECONDS

    def reopen(self) -> None:
        """Have the sink open its files anew before its next write."""
        with self._changed:
            self._reopen = True
            self._changed.notify_all()

    def suspend(self) -> None:
        """Write what is queued as far as the sink takes it at once, then close it until `resume`."""
        with self._changed:
            self._suspended = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Deliver again after `suspend`."""
        with self._changed:
            self._suspended = False
            self._changed.notify_all()

    def idle(self) -> bool:
        """True when nothing is queued, held or being written."""
        with self._changed:
            return not (self._queue or self._held or self._busy)

    def close(self, seconds: float) -> int:
        """Deliver what is left within `seconds`, then stop. Returns how many events had to be given up.

        They are on the ledgers as ``shutdown``. Call it from outside the loop: it waits. Also good where the thread was
        never started.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            lost = self._queue.drop_all("shutdown")
            while self._held:
                batch = self._held.popleft()
                batch.ledger.drop(batch.count, "shutdown")
                lost += batch.count
        return lost

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                reopen, self._reopen = self._reopen, False
                if not self._held:
                    self._held.extend(self._queue.take(WRITE_BYTES))
                work = list(self._held)
                finished = self._closing and not work
                close = self._suspended and not work
                self._busy = bool(work)
            # Outside the lock: a disk that hangs while a file is closed must not hold up whoever puts events in.
            if reopen:
                self._tend(self._sink.reopen)
            if finished:
                self._tend(self._sink.close)
                return
            if close:
                self._tend(self._sink.close)
                with self._changed:
                    self._changed.wait_for(lambda: not self._suspended or self._closing)
                continue
            if work:
                self._write(work)

    def _has_work(self) -> bool:
        return bool(self._queue or self._held or self._closing or self._suspended or self._reopen)

    def _tend(self, call: Callable[[], None]) -> None:
        """Close or reopen the sink; a failure is shown, and the thread lives on."""
        try:
            call()
        except Exception as error:  # noqa: BLE001  without this thread no event leaves the host any more
            self._say(f"the sink {self._sink.name} could not be closed: {error!r}")

    def _write(self, work: list[Batch]) -> None:
        delivered, error = len(work), ""
        try:
            self._sink.write(work)
        except SinkError as failure:
            delivered, error = failure.delivered, str(failure)
        except Exception as failure:  # noqa: BLE001  as in _tend
            delivered, error = 0, f"the sink {self._sink.name} failed, a mistake in the agent: {failure!r}"
        with self._changed:
            self._busy = False
            if delivered:
                self._progress_at = time.monotonic()
            for _ in range(min(delivered, len(self._held))):
                batch = self._held.popleft()
                batch.ledger.delivered += batch.count
        self._say(error)
        if error:
            self._wait_for_retry()
        else:
            self._failures = 0

    def _say(self, error: str) -> None:
        if error != self.error:
            self.error = error
            self._on_trouble(error)

    def _wait_for_retry(self) -> None:
        wait = backoff(self._failures, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, identity=(self._host, "sink"))
        self._failures += 1
        with self._changed:
            # Closing does not cut the wait short to nothing: a full disk must not be hammered at the end either.
            self._changed.wait_for(lambda: self._closing, wait)
            if self._closing:
                self._changed.wait(RETRY_BASE_SECONDS)
