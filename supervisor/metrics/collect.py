"""Takes the numbers from the living parts of the agent, a worker at a time, so that the loop turns in between."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from garrison.supervisor import logs
from garrison.supervisor.breaker import Cause, Phase, may_start_in
from garrison.supervisor.cgroups.base import Cgroups, Usage
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.events.figures import Figures
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.lifecycle import ALIVE, State
from garrison.supervisor.metrics import catalogue as of
from garrison.supervisor.metrics.exposition import Exposition, Metric
from garrison.supervisor.sampler import Sampler, open_files
from garrison.supervisor.settings import AggregateBudget
from garrison.supervisor.stores.base import StoreStatus
from garrison.supervisor.version import VERSION
from garrison.supervisor.worker.supervisor import WorkerSupervisor

MAX_REASONS = 32
"""Reasons of drops that are told apart for each worker; a worker names some of them. The rest is ``other``."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CAUSES: tuple[Cause, ...] = get_args(Cause)
_PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers are.

    Attributes:
        host: Host name.
        started: When the master was started, seconds since the epoch.
        cgroups: The agent's part of the tree.
        sampler: The workers' usage.
        workers: Returns the workers, by name.
        own: The ledger of the agent's own events.
        usage_of_master: Returns what master and nursery use.
        budget: Returns the caps of all workers together.
        killed: Tells whether the killswitch is engaged.
        store: Returns how the store is doing.
        registered: Tells whether this host is registered; None where there is no registration.
        figures: Returns how full the way out is.
        problems: Returns how many problems the status shows.
        shed_level: Returns what the master gives up.
        nurseries: Returns how many nurseries were replaced.
        log_events: Returns how many log lines went to the sink, and how many did not.
    """

    host: str
    started: float
    cgroups: Cgroups
    sampler: Sampler
    workers: Callable[[], Mapping[str, WorkerSupervisor]]
    own: WorkerLedger
    usage_of_master: Callable[[], Usage]
    budget: Callable[[], AggregateBudget]
    killed: Callable[[], bool]
    store: Callable[[], StoreStatus]
    registered: Callable[[], bool | None]
    figures: Callable[[], Figures]
    problems: Callable[[], int]
    shed_level: Callable[[], int]
    nurseries: Callable[[], int]
    log_events: Callable[[], tuple[int, int]]


class Collector:
    """Makes the text of a scrape.

    Args:
        sources: Where the numbers are.
        requests: Requests to the endpoint so far, by result.
    """

    def __init__(self, sources: Sources, requests: Mapping[str, int]) -> None:
        self._sources = sources
        self._requests = requests
        self._cpu_seconds = 0.0

    async def collect(self) -> bytes:
        """Return the numbers as they are now. What cannot be read now is left out."""
        out = Exposition(of.METRICS)
        began = time.thread_time()
        self._agent(out)
        self._control(out)
        self._together(out)
        self._way_out(out)
        self._events(out, "agent", self._sources.own)
        self._cpu_seconds += time.thread_time() - began
        for name in sorted(self._sources.workers()):
            # Reading a node is some ten small files; between two of them the killswitch may have something to say.
            await asyncio.sleep(0)
            began = time.thread_time()
            worker = self._sources.workers().get(name)
            if worker is not None:
                self._worker(out, worker, asyncio.get_running_loop().time())
            self._cpu_seconds += time.thread_time() - began
        await asyncio.sleep(0)
        began = time.thread_time()
        self._log(out)
        out.add(of.COLLECT_CPU, round(self._cpu_seconds, 6))
        out.add(of.SERIES_LEFT_OUT, out.left_out)
        text = out.text()
        self._cpu_seconds += time.thread_time() - began
        return text

    def _agent(self, out: Exposition) -> None:
        sources = self._sources
        out.add(of.AGENT_INFO, 1, sources.host, VERSION, sources.cgroups.mode)
        out.add(of.AGENT_START, round(sources.started, 3))
        out.add(of.COLLECTED, round(time.time(), 3))
        out.add(of.AGENT_SHED, sources.shed_level())
        out.add(of.AGENT_PROBLEMS, sources.problems())
        out.add(of.NURSERY_REPLACED, sources.nurseries())
        try:
            usage = sources.usage_of_master()
            out.add(of.AGENT_CPU, round(usage.cpu_seconds, 6))
            out.add(of.AGENT_MEMORY, usage.memory_working_bytes)
            with open("/proc/self/stat", "rb") as file:
                # The name of the program, in brackets, may hold anything; what comes behind it starts with field 3.
                fields = file.read().rpartition(b")")[2].split()
            out.add(of.AGENT_THREADS, int(fields[17]))
            out.add(of.AGENT_RESIDENT, int(fields[21]) * _PAGE)
        except (CgroupError, OSError):
            # Out of descriptors, most likely. The rest is still worth having.
            out.left_out += 1
        descriptors = open_files(os.getpid())
        if descriptors is not None:
            out.add(of.AGENT_FDS, descriptors)
        out.add(of.AGENT_MAX_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def _control(self, out: Exposition) -> None:
        sources = self._sources
        store = sources.store()
        out.add(of.KILLSWITCH, sources.killed())
        out.add(of.STORE_INFO, 1, store.backend, store.endpoint)
        out.add(of.STORE_CONNECTED, store.connected)
        out.add(of.STORE_REVISION, store.revision)
        out.add(of.STORE_STALE, round(store.stale_seconds, 3))
        if (registered := sources.registered()) is not None:
            out.add(of.STORE_REGISTERED, registered)

    def _together(self, out: Exposition) -> None:
        budget = self._sources.budget()
        out.add(of.WORKERS_CPU_LIMIT, budget.cpu_quota_percent / 100)
        out.add(of.WORKERS_MEMORY_LIMIT, budget.memory_max)
        try:
            usage = self._sources.cgroups.usage(None)
        except CgroupError:
            out.left_out += 1
            return
        out.add(of.WORKERS_CPU, round(usage.cpu_seconds, 6))
        out.add(of.WORKERS_THROTTLED, round(usage.throttled_seconds, 6))
        out.add(of.WORKERS_MEMORY, usage.memory_working_bytes)

    def _way_out(self, out: Exposition) -> None:
        figures = self._sources.figures()
        out.add(of.SINK_INFO, 1, figures.sink)
        out.add(of.SINK_WELL, not figures.error)
        out.add(of.QUEUE_BYTES, figures.queue_bytes)
        out.add(of.QUEUE_LIMIT, figures.queue_max_bytes)
        if (spool := figures.spool) is not None:
            out.add(of.SPOOL_BYTES, spool.bytes)
            out.add(of.SPOOL_LIMIT, spool.max_bytes)
            out.add(of.SPOOL_EVENTS, spool.events)
            out.add(of.SPOOL_WELL, not spool.error)

    def _events(self, out: Exposition, name: str, ledger: WorkerLedger) -> None:
        # All at one moment: the sink's thread goes on counting, and the sum has to fit.
        counts = ledger.record()
        out.add(of.EVENTS_EMITTED, counts.emitted, name)
        out.add(of.EVENTS_DELIVERED, counts.delivered, name)
        out.add(of.EVENTS_IN_FLIGHT, counts.emitted - counts.delivered - sum(counts.dropped.values()), name)
        for reason, count in told(counts.dropped).items():
            out.add(of.EVENTS_DROPPED, count, name, reason)

    def _worker(self, out: Exposition, worker: WorkerSupervisor, now: float) -> None:
        name, breaker, process = worker.name, worker.breaker, worker.process
        _one_of(out, of.WORKER_STATE, name, [state.value for state in State], worker.state.value)
        _one_of(out, of.WORKER_PHASE, name, _PHASES, breaker.phase)
        out.add(of.WORKER_WANTED, worker.desired.action == "start", name)
        out.add(of.WORKER_HELD, bool(worker.held_reason), name)
        out.add(of.WORKER_REJECTED, worker.configuration.status == "rejected", name)
        out.add(of.WORKER_STARTS, worker.starts, name)
        out.add(of.WORKER_LEVEL, breaker.level, name)
        out.add(of.WORKER_RETRY, round(may_start_in(breaker, now) or 0.0, 1), name)
        out.add(of.WORKER_THROTTLES, worker.guard.throttles, name)
        for cause in _CAUSES:
            # The zeros too: a counter that begins at 1 shows no increase.
            out.add(of.WORKER_TRIPS, worker.guard.trips[cause], name, cause)
        self._events(out, name, worker.ledger)
        budget = worker.desired.budget
        limits = worker.limits if process is not None and worker.limits is not None else worker.caps
        out.add(of.WORKER_MAX_FDS, budget.nofile, name)
        for metric, limit, scale in (
            (of.WORKER_CPU_LIMIT, limits.cpu_quota_percent, 100),
            (of.WORKER_MEMORY_HIGH, limits.memory_high, 1),
            (of.WORKER_MEMORY_LIMIT, limits.memory_max, 1),
            (of.WORKER_PIDS_LIMIT, limits.pids_max, 1),
        ):
            if limit is not None:
                out.add(metric, limit / scale if scale != 1 else limit, name)
        if process is None or worker.state not in ALIVE:
            return
        sample = self._sources.sampler.peek(name, process.epoch, now)
        if sample.stale:
            out.left_out += 1
            return
        usage = sample.usage
        out.add(of.WORKER_CPU, round(usage.cpu_seconds, 6), name)
        out.add(of.WORKER_PERIODS, usage.periods, name)
        out.add(of.WORKER_THROTTLED_PERIODS, usage.throttled_periods, name)
        out.add(of.WORKER_THROTTLED, round(usage.throttled_seconds, 6), name)
        out.add(of.WORKER_MEMORY, usage.memory_working_bytes, name)
        out.add(of.WORKER_MEMORY_CHARGED, usage.memory_bytes, name)
        out.add(of.WORKER_OOM, usage.oom_kills, name)
        out.add(of.WORKER_PIDS, usage.pids, name)
        descriptors = open_files(process.pid)
        if descriptors is not None:
            out.add(of.WORKER_FDS, descriptors, name)

    def _log(self, out: Exposition) -> None:
        counters = logs.counters()
        out.add(of.LOG_SUPPRESSED, counters.suppressed)
        out.add(of.LOG_DROPPED, counters.dropped)
        out.add(of.LOG_LOST, counters.stderr_lost, "stderr")
        out.add(of.LOG_LOST, counters.file_lost, "file")
        sent, suppressed = self._sources.log_events()
        out.add(of.LOG_EVENTS, sent)
        out.add(of.LOG_EVENTS_SUPPRESSED, suppressed)
        for result, count in self._requests.items():
            out.add(of.REQUESTS, count, result)


def told(dropped: Mapping[str, int]) -> dict[str, int]:
    """Return drops by reason, those beyond `MAX_REASONS` together as ``other``. Pure.

    The first that came stay apart for ever, so that no series changes its meaning.
    """
    kept: dict[str, int] = {}
    for number, (name, count) in enumerate(dropped.items(), 1):
        name = name if number < MAX_REASONS else "other"
        kept[name] = kept.get(name, 0) + count
    return kept


def _one_of(out: Exposition, metric: Metric, worker: str, names: list[str] | tuple[str, ...], now: str) -> None:
    for name in names:
        out.add(metric, name == now, worker, name)
