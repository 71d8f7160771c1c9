"""The pipeline: from a worker's batch to the sink, without the loop ever waiting for the sink.

The loop admits batches (rate limit, stamp, queue); one thread writes them. A sink that fails is tried again with
backoff, while what is queued goes to the spool, or, where there is none, fills the queue up to its bound; then the
least important events are dropped and counted. `flow` decides what goes where, `garrison.supervisor.spool` keeps it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import backoff
from garrison.supervisor.events.figures import Figures
from garrison.supervisor.events.flow import Flow
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.pacing import DrainPace, Throttle
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.events.tap import Tap
from garrison.supervisor.sinks.base import Refused, Sink, SinkError
from garrison.supervisor.spool.keeper import Keeper, SpoolPlan
from garrison.supervisor.spool.records import Held

QUEUE_BYTES = 8 * 1024 * 1024
"""Bound of the master's queue: about 20,000 events of 400 bytes."""
WRITE_BYTES = 1024 * 1024
"""Most bytes taken from the queue for one write."""
CONGESTED_SHARE = 0.5
"""Share of the queue's bound above which workers are read more slowly, as long as the sink makes progress."""
PROGRESS_SECONDS = 3.0
"""A sink that has taken nothing for so long makes no progress: waiting for it would help nobody. One write to Kafka
takes up to a second on a busy host."""
RETRY_BASE_SECONDS = 0.25
RETRY_CAP_SECONDS = 15.0
HURRY_SECONDS = 1.0
"""How long a sink that was told to give up may take to do so."""
SPOOL_CLOSE_SECONDS = 2.0
"""How long, at the end, the spool may take to store what the sink did not."""


@dataclass(frozen=True, slots=True)
class Spooling:
    """How a pipeline spools.

    Attributes:
        plan: The file and its bounds.
        drain_rate: How fast it is emptied when the sink is back, bytes a second.
        drain_spread: Longest wait before that; each host of a fleet has its own share of it.
        on_trouble: Called from the spool's thread with the text of a first failure, and with "" when it is over.
    """

    plan: SpoolPlan
    drain_rate: float
    drain_spread: float
    on_trouble: Callable[[str], None]


class Pipeline:
    """Owns the queue and the sink's thread.

    Args:
        sink: Where events go; touched by the sink's thread only.
        host: Host name, for the jitter of retries.
        on_trouble: Called from the sink's thread with the text of a first failure, and with "" when it is over.
        max_bytes: Bound of the queue.
        spooling: None: there is no spool.
        ledger_of: Returns the ledger of a worker, for events that an earlier master has left in the spool.
        throttles: What limits the way out, beside the sink itself.

    Attributes:
        tap: The live view.
        error: What is wrong with the sink now; empty where nothing is.
        shed: Priorities whose events are dropped and counted before they cost anything more.
        always: Whether every batch is on disk before anybody answers for it.
    """

    def __init__(
        self,
        sink: Sink,
        host: str,
        on_trouble: Callable[[str], None],
        max_bytes: int = QUEUE_BYTES,
        *,
        spooling: Spooling | None = None,
        ledger_of: Callable[[str], WorkerLedger] | None = None,
        throttles: Sequence[Throttle] = (),
    ) -> None:
        self.tap = Tap()
        self.error = ""
        self.shed: frozenset[Priority] = frozenset()
        self.always = spooling is not None and spooling.plan.always
        self._sink = sink
        self._host = host
        self._on_trouble = on_trouble
        self._max_bytes = max_bytes
        self._congested_bytes = int(max_bytes * CONGESTED_SHARE)
        self._progress_at = float("-inf")
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pace = None if spooling is None else DrainPace(host, spooling.drain_rate, spooling.drain_spread)
        self._flow = Flow(max_bytes, always=self.always, throttles=throttles, pace=self._pace)
        self._keeper: Keeper | None = None
        if spooling is not None and self._pace is not None:
            self._keeper = Keeper(
                spooling.plan,
                host,
                self._flow,
                self._lock,
                self._changed.notify_all,
                ledger_of or _Ledgers().of,
                self._pace,
                spooling.on_trouble,
            )
            self._flow.spool = self._keeper
        self._write_bytes = WRITE_BYTES if self._keeper is None else self._keeper.piece_bytes
        self._suspended = False
        self._closing = False
        self._reopen = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="garrison-sink", daemon=True)

    def open(self) -> Mapping[tuple[str, int, Priority], Held]:
        """Open the spool, and return what an earlier master left in it. Call it before `start`; it waits for the disk.

        By worker, epoch and priority. Of a spool that cannot be opened now nothing is known.
        """
        return {} if self._keeper is None else self._keeper.open()

    def start(self) -> None:
        """Start the threads of the sink and of the spool."""
        self._thread.start()
        if self._keeper is not None:
            self._keeper.start()

    def put(self, batch: Batch) -> None:
        """Queue a batch for the sink and show it to the tap. Never blocks for the sink."""
        if batch.priority in self.shed:
            batch.drop("shed")
            return
        with self._changed:
            now = time.monotonic()
            self._flow.put(batch)
            if self._keeper is not None:
                self._keeper.wake(now)
            # A thread that waits for company comes by itself when that is over: waking it costs more than the batch.
            if (not self.always or (self._keeper is not None and self._keeper.error)) and not self._flow.lingers(now):
                self._changed.notify_all()
        self.tap.publish(batch)

    def congested(self) -> bool:
        """True while it pays to let the sink catch up before more is put: it is behind, and it does write.

        Both threads share one interpreter lock, so a busy reader of pipes can starve a sink that is fast enough.
        """
        if self._flow.queue.bytes <= self._congested_bytes:
            return False
        progress = self._progress_at if self._keeper is None else max(self._progress_at, self._keeper.progress_at)
        return time.monotonic() - progress < PROGRESS_SECONDS

    def figures(self) -> Figures:
        """Return how full everything is. From any thread; waits for nothing but a lock held for microseconds."""
        with self._lock:
            spool = None if self._keeper is None else self._keeper.figures()
            return Figures(self._sink.name, self.error, self._flow.queue.bytes, self._max_bytes, spool)

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
        """True when nothing is queued, held, spooled or being written."""
        with self._changed:
            spooled = self._keeper is not None and self._keeper.contents.waiting()
            return not (self._flow.queue or self._flow.held or self._flow.busy_since is not None or spooled)

    def close(self, seconds: float) -> int:
        """Deliver what is left within `seconds`, then stop. Returns how many events had to be given up.

        What the sink did not take goes to the spool, for the next start; without one, or where it does not take it
        either, it is on the ledgers as ``shutdown``. Call it from outside the loop: it waits. Also good where the
        threads were never started.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closing = self._flow.closing = True
            if self._keeper is not None:
                self._keeper.wake(time.monotonic())
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._flow.ending = True
            if self._keeper is not None:
                self._keeper.wake(time.monotonic())
            self._changed.notify_all()
        if self._thread.is_alive():
            # What it still confirms need not be sent again after the next start.
            self._sink.hurry()
            self._thread.join(HURRY_SECONDS)
        stored = self._keeper is None or self._keeper.close(SPOOL_CLOSE_SECONDS)
        with self._changed:
            lost = 0 if stored or self._keeper is None else self._keeper.contents.abandon("shutdown")
            return lost + self._flow.drop_all("shutdown")

    def _run(self) -> None:
        while True:
            with self._changed:
                wait = self._prepare()
                work = [] if self._flow.ending else list(self._flow.held)
                reopen, self._reopen = self._reopen, False
                finished = not work and self._flow_done(wait)
                close = self._suspended and not work
                self._flow.busy_since = time.monotonic() if work else None
                if self._keeper is not None and work:
                    self._keeper.wake(time.monotonic())
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

    def _prepare(self) -> float | None:
        """Wait until there is something to do; `held` is filled then. Returns as `Flow.take` does."""
        flow = self._flow
        while True:
            soonest = None
            if not flow.held and not flow.ending:
                if self._closing or self._suspended:
                    flow.company_until = float("-inf")
                batches, soonest = flow.take(self._write_bytes, time.monotonic())
                flow.held.extend(batches)
                if batches and self._keeper is not None:
                    self._keeper.taken()
            if flow.held or flow.ending or self._suspended or self._reopen or self._flow_done(soonest):
                return soonest
            self._changed.wait(soonest)

    def _flow_done(self, wait: float | None) -> bool:
        """Whether the sink's thread has done what it can before the end."""
        if not self._closing:
            return False
        flow = self._flow
        if flow.ending or wait is not None:
            return True
        # What is on its way through the spool may still come.
        return not flow.queue and (
            self._keeper is None or bool(self._keeper.error) or not self._keeper.contents.waiting()
        )

    def _tend(self, call: Callable[[], None]) -> None:
        """Close or reopen the sink; a failure is shown, and the thread lives on."""
        try:
            call()
        except Exception as error:  # noqa: BLE001  without this thread no event leaves the host any more
            self._say(f"the sink {self._sink.name} could not be closed: {error!r}")

    def _write(self, work: list[Batch]) -> None:
        delivered, error = len(work), ""
        refused: Sequence[Refused] = ()
        try:
            refused = self._sink.write(work)
        except SinkError as failure:
            delivered, error, refused = failure.delivered, str(failure), failure.refused
        except Exception as failure:  # noqa: BLE001  as in _tend
            delivered, error = 0, f"the sink {self._sink.name} failed, a mistake in the agent: {failure!r}"
        with self._changed:
            now = time.monotonic()
            flow = self._flow
            flow.busy_since = None
            flow.company_until = now + self._sink.linger_seconds
            for batch, first, last, reason in refused:
                if not batch.done:
                    batch.lose(first, last, reason)
            if delivered:
                self._progress_at = now
            for _ in range(min(delivered, len(flow.held))):
                batch = flow.held.popleft()
                batch.delivered()
                if batch.stored and self._keeper is not None:
                    self._keeper.confirm(batch)
            self._note(failed=bool(error), now=now)
        self._say(error)
        if error:
            self._wait_for_retry()
        else:
            self._failures = 0

    def _note(self, *, failed: bool, now: float) -> None:
        """Tell the spool how the sink is doing."""
        flow = self._flow
        if not failed:
            over, flow.trouble_since = flow.trouble_since is not None, None
            if over and self._keeper is not None:
                self._keeper.taken()  # nothing was read ahead meanwhile
        elif flow.trouble_since is None:
            flow.trouble_since = now
        if self._pace is not None and self._keeper is not None:
            if failed:
                self._pace.away(now)
                self._keeper.wake(now)
            else:
                self._pace.back(now)

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
                self._changed.wait_for(lambda: self._flow.ending, RETRY_BASE_SECONDS)


class _Ledgers:
    """Ledgers by worker, where nobody else has any."""

    def __init__(self) -> None:
        self._ledgers: dict[str, WorkerLedger] = {}

    def of(self, worker: str) -> WorkerLedger:
        return self._ledgers.setdefault(worker, WorkerLedger(worker))
