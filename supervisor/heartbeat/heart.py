"""The heart: beats at regular intervals, and watches how full the way out is in between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from garrison.ipc.pacing import spread
from garrison.supervisor import logs
from garrison.supervisor.cgroups.base import Usage
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.control.status import KillswitchStatus, StoreStatus
from garrison.supervisor.events.books import Books, BooksState
from garrison.supervisor.events.figures import Figures
from garrison.supervisor.events.level import Level, judge
from garrison.supervisor.events.own import MODULE, OwnEvents
from garrison.supervisor.heartbeat.documents import (
    AgentFacts,
    accounting,
    agent_document,
    gone_document,
    worker_document,
)
from garrison.supervisor.heartbeat.telling import Telling, Told
from garrison.supervisor.linux import own_memory
from garrison.supervisor.problems import Problems
from garrison.supervisor.sampler import Sampler, open_files
from garrison.supervisor.version import VERSION
from garrison.supervisor.worker.supervisor import WorkerSupervisor

LOOK_SECONDS = 5.0
"""Time between two looks at the queue."""
CLOSE_LOOK_SECONDS = 1.0
"""The same while it is more than half full."""
WAITING_FACTOR = 10.0
"""While a heartbeat has not left the host the next one waits so many times longer: in an outage they only pile up."""
COUNTS_SECONDS = 300.0
"""Time between two writes of the counts to the disk. They are for a power cut: a killed master leaves its journals."""

_log = logs.get("agent")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the heart takes from what it tells.

    Attributes:
        host: Host name.
        cgroup_mode: How caps are enforced.
        interval: Returns the seconds between two heartbeats.
        config_hash: Returns the hash of the configuration in force.
        uptime: Returns the seconds since the master's start.
        workers: Returns the workers, by name.
        sampler: Where their usage is known.
        usage_of_master: Returns what master and nursery use.
        killswitch: Returns how the killswitch stands.
        store: Returns how the store is doing.
        figures: Returns how full the way out is.
        shed_level: Returns what the master gives up.
        problems: What is wrong now; what is wrong here goes there, too.
        emit_state: Emits an agent's own event: action, fields.
        save: Has the counts written to the disk.
        silent: Tells whether nothing may leave the host: the killswitch has closed the sink.
    """

    host: str
    cgroup_mode: str
    interval: Callable[[], float]
    config_hash: Callable[[], str]
    uptime: Callable[[], float]
    workers: Callable[[], Mapping[str, WorkerSupervisor]]
    sampler: Sampler
    usage_of_master: Callable[[], Usage]
    killswitch: Callable[[], KillswitchStatus]
    store: Callable[[], StoreStatus]
    figures: Callable[[], Figures]
    shed_level: Callable[[], int]
    problems: Problems
    emit_state: Callable[[str, dict[str, Any]], None]
    save: Callable[[BooksState], None]
    silent: Callable[[], bool]


class Heart:
    """See the module. Used from the master's loop, but for `delivered`.

    Args:
        around: What it tells of.
        own: Numbers and queues the documents.
        books: The ledgers.

    Attributes:
        beats: Heartbeats sent.
        queue: How full the queue is.
        spool: How full the spool is.
    """

    def __init__(self, around: Surroundings, own: OwnEvents, books: Books) -> None:
        self.beats = 0
        self.queue = Level()
        self.spool = Level()
        self._around = around
        self._own = own
        self._books = books
        self._telling = Telling()
        self._arrived = 0
        self._overflows: dict[str, int] = {}
        self._cpu: dict[tuple[str, int], tuple[float, float]] = {}
        self._gone: dict[str, tuple[int, int, int]] = {}
        self._beat_at = float("-inf")
        self._saved_at = float("-inf")
        own.ledger.on_delivered = self._delivered

    async def run(self) -> None:
        """Beat until cancelled. A beat that fails is reported, and the next one is tried."""
        loop = asyncio.get_running_loop()
        # Not at once: a fleet that starts together would beat together for ever.
        due = loop.time() + spread(self._around.host, "heartbeat") * self._around.interval()
        self._saved_at = loop.time()
        while True:
            now = loop.time()
            try:
                # First: what is full is told of in the same heartbeat.
                share = self.look(now)
                if now >= due:
                    self._beat_when_due(now)
                self._around.problems.set("heartbeat", "")
            except Exception as error:  # noqa: BLE001  without this task the host would seem dead
                _log.exception("a heartbeat failed")
                self._around.problems.set("heartbeat", f"the heartbeat failed, a mistake in the agent: {error!r}")
                share = 0.0
            interval = self._around.interval()
            if now >= due:
                due = max(due + interval, now + interval / 2)
            elif due - now > interval:
                due = now + interval  # it was made shorter
            await asyncio.sleep(max(0.05, min(due - now, CLOSE_LOOK_SECONDS if share > 0.5 else LOOK_SECONDS)))

    def _beat_when_due(self, now: float) -> None:
        if now - self._saved_at >= COUNTS_SECONDS:
            self._saved_at = now
            self._around.save(self._books.state())
        self._books.mend()
        waiting = self._telling.waiting_since is not None
        if self._around.silent() or (waiting and now - self._beat_at < WAITING_FACTOR * self._around.interval()):
            return
        self.beat(now)

    def beat(self, now: float) -> None:
        """Send one heartbeat.

        Args:
            now: Monotonic seconds.
        """
        around = self._around
        self._beat_at = now
        workers = around.workers()
        numbers: dict[str, int] = {}
        documents = []
        states: dict[str, int] = {}
        cpu: dict[tuple[str, int], tuple[float, float]] = {}
        for name in sorted(workers):
            worker = workers[name]
            states[worker.state.value] = states.get(worker.state.value, 0) + 1
            sample = around.sampler.last(name, worker.process.epoch) if worker.process is not None else None
            percent = None
            if sample is not None and worker.process is not None and sample.seconds:
                key = name, worker.process.epoch
                cpu[key] = sample.at, sample.usage.cpu_seconds
                percent = _percent(self._cpu.get(key), cpu[key], sample.cpu_percent)
            events, numbers[name] = accounting(worker.ledger)
            documents.append(worker_document(worker, sample, percent, now, events))
        for name, ledger in sorted(self._books.all().items()):
            if name in workers or name == MODULE:
                continue
            events, number = accounting(ledger)
            news = events["emitted"], events["delivered"], events["in_flight"]
            if events["drops"] or self._gone.get(name) != news:
                self._gone[name] = news
                numbers[name] = number
                documents.append(gone_document(name, events))
        facts = self._facts(now, cpu)
        events, numbers[MODULE] = accounting(self._own.ledger)
        document = agent_document(
            facts,
            around.killswitch(),
            around.store(),
            around.figures(),
            self.queue.phase,
            self.spool.phase,
            states,
            events,
        )
        self._cpu = cpu
        last = self._own.put("state", [document, *documents])
        self._telling.sent(Told(now, last, numbers))
        self.beats += 1

    def look(self, now: float) -> float:
        """Look at what has arrived and how full the way out is; returns the share of the queue in use, 0 to 1.

        Args:
            now: Monotonic seconds.
        """
        self._confirm()
        around = self._around
        around.problems.set("counts", "; ".join(filter(None, (*self._books.errors[:3], self._books.error()))))
        figures = around.figures()
        share = figures.queue_bytes / figures.queue_max_bytes if figures.queue_max_bytes else 0.0
        overflowed = self._overflowed("master_queue")
        self.queue = self._judge("queue", self.queue, now, share, overflowed, figures.queue_max_bytes)
        spool = figures.spool
        if spool is not None and spool.max_bytes:
            filled = spool.bytes / spool.max_bytes
            overflowed = self._overflowed("spool_full")
            self.spool = self._judge("spool", self.spool, now, filled, overflowed, spool.max_bytes)
        return share

    def _judge(self, what: str, before: Level, now: float, share: float, overflowed: int, max_bytes: int) -> Level:
        level = judge(before, now, share, overflowed=overflowed > 0)
        told, tell = _TOLD[before.phase], _TOLD[level.phase]
        if told != tell:
            fields = {
                "level": tell,
                "used_percent": round(100 * share, 1),
                "max_bytes": max_bytes,
                "dropped": overflowed or None,
                "sink_error": self._around.figures().error or None,
            }
            self._around.emit_state(f"{what}-{tell}", fields)
            text = "" if tell == "normal" else f"the {what} of events is {_SAYS[tell]}: the sink takes them too slowly"
            self._around.problems.set(f"{what} level", text)
            log = _log.notice if tell == "normal" else _log.warning
            log("the %s of events is %s (%.0f %% of %d bytes)", what, _SAYS[tell], 100 * share, max_bytes)
        return level

    def _overflowed(self, reason: str) -> int:
        """Return how many events were dropped for a reason since the last look."""
        total = sum(ledger.dropped[reason] for ledger in self._books.all().values())
        before = self._overflows.get(reason, total)
        self._overflows[reason] = total
        return max(0, total - before)

    def _delivered(self, epoch: int, priority: str, last: int) -> None:
        # From the sink's thread; a number that is replaced needs no lock.
        if priority == "state" and epoch == self._own.epoch:
            self._arrived = max(self._arrived, last)

    def _confirm(self) -> None:
        dropped = [
            (known.first, known.last)
            for known in self._own.ledger.ranges()
            if known.priority == "state" and known.epoch == self._own.epoch
        ]
        ledgers = self._books.all()
        for worker, number in self._telling.arrived(self._arrived, dropped).items():
            if number and worker in ledgers:
                ledgers[worker].confirm(number)

    def _facts(self, now: float, cpu: dict[tuple[str, int], tuple[float, float]]) -> AgentFacts:
        around = self._around
        percent = memory = resident = load = None
        try:
            usage = around.usage_of_master()
            memory = usage.memory_working_bytes
            cpu["", 0] = now, usage.cpu_seconds
            percent = _percent(self._cpu.get(("", 0)), cpu["", 0], None)
            resident, _shared = own_memory()
            load = os.getloadavg()
        except (CgroupError, OSError):
            # Out of descriptors, most likely. The rest is still worth telling.
            pass
        return AgentFacts(
            interval_seconds=around.interval(),
            uptime_seconds=around.uptime(),
            pid=os.getpid(),
            version=VERSION,
            cgroup_mode=around.cgroup_mode,
            cpu_percent=percent,
            memory_bytes=memory,
            rss_bytes=resident,
            fds=open_files(os.getpid()),
            load=load,
            config_hash=around.config_hash(),
            shed_level=around.shed_level(),
            problems=around.problems.texts(),
        )


_TOLD = {"normal": "normal", "warning": "warning", "full": "warning", "flood": "flood"}
"""What is told of a phase: full for a moment is no news."""
_SAYS = {"normal": "well again", "warning": "nearly full", "flood": "overflowing"}


def _percent(before: tuple[float, float] | None, now: tuple[float, float], otherwise: float | None) -> float | None:
    """Return CPU use between two readings (monotonic seconds, CPU seconds), percent of one core."""
    if before is None or now[0] <= before[0]:
        return round(otherwise, 2) if otherwise is not None else None
    return round(100.0 * max(0.0, now[1] - before[1]) / (now[0] - before[0]), 2)
