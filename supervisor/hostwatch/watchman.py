"""The watchman: looks at the host, at everything of ours together and at the master itself, and has others act on it.

One task with a period of its own. It looks sooner when the kernel says so: when tasks of the host begin to wait for
memory, and when the workers together come near their memory cap, where seconds decide who is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from garrison.supervisor import logs
from garrison.supervisor.budget.aggregate import ACT_AT, Budget, Own, memory_room
from garrison.supervisor.budget.shedding import Share
from garrison.supervisor.cgroups.base import Cgroups, OomWatch, Usage
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.hostwatch import host
from garrison.supervisor.hostwatch.giving_way import GivingWay
from garrison.supervisor.hostwatch.shedding import Shedding
from garrison.supervisor.hostwatch.together import Together
from garrison.supervisor.hostwatch.trigger import MemoryTrigger
from garrison.supervisor.lifecycle import ALIVE, State
from garrison.supervisor.linux import own_memory
from garrison.supervisor.problems import Problems
from garrison.supervisor.sampler import Sample, Sampler, compare
from garrison.supervisor.settings import AggregateBudget, Settings
from garrison.supervisor.worker.supervisor import WorkerSupervisor

ALERT_SECONDS = 0.2
"""Time between two looks at memory while the workers together are near their cap."""
QUIET_SECONDS = 0.2
"""How long a notifier that has just spoken is not listened to: the kernel repeats itself up to 100 times a second."""
ALERT_AT = 0.7
"""Share of the room for the workers' memory above which it is looked at that often once the kernel has spoken."""
HELD_BACK_AT = 0.98
"""Share of ``memory_high`` at which a worker counts as held at it."""

_log = logs.get("hostwatch")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The agent around the watchman.

    Attributes:
        host: Host name.
        cgroups: Where usage is read.
        pipeline: Events and live views.
        problems: What the status shows.
        emit_state: Emits the agent's own events.
        settings: Returns the settings in force.
        budget: Returns the budget of all together that is in force.
        workers: Returns the workers, by name.
        paused: As for `Sampler`, where the master itself enforces the quotas.
    """

    host: str
    cgroups: Cgroups
    pipeline: Pipeline
    problems: Problems
    emit_state: Callable[[str, dict[str, Any]], None]
    settings: Callable[[], Settings]
    budget: Callable[[], AggregateBudget]
    workers: Callable[[], Mapping[str, WorkerSupervisor]]
    paused: Callable[[str, int, Usage], Usage] | None = None


class Watchman:
    """See the module. All methods are called from the master's loop."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._samples = Sampler(around.cgroups, around.paused)
        self._master: Sample | None = None
        self._all: Sample | None = None
        self._counters: host.Counters | None = None
        self.giving_way = GivingWay(around.host, self._samples, around.problems, around.emit_state)
        self.together = Together(around.emit_state)
        self.shedding = Shedding(around.pipeline, around.problems, around.emit_state)
        self.looks = 0
        self._wake = asyncio.Event()
        self._alert = False
        self._near: tuple[OomWatch, int] | None = None
        self._trigger: MemoryTrigger | None = None
        self._listening: set[int] = set()

    async def run(self) -> None:
        """Look until cancelled. A look that fails is reported, and the next one is taken as if nothing had been."""
        loop = asyncio.get_running_loop()
        try:
            self._listen_to_host()
            due = loop.time()
            while True:
                try:
                    due = self._turn(due, loop.time())
                    self._around.problems.set("hostwatch", "")
                except Exception as error:  # noqa: BLE001  a mistake here must not end the watch, nor the agent
                    _log.exception("a look at the host failed")
                    self._around.problems.set("hostwatch", f"the host and the aggregate are not watched: {error!r}")
                    due = loop.time() + self._period()
                await self._pause(due, loop.time())
        finally:
            self._close()

    def _turn(self, due: float, now: float) -> float:
        """Do what is due; returns when the next full look is."""
        if now >= due:
            self.look(now)
            return now + self._period()
        if self._alert:
            self._look_at_memory(now)
        return due

    async def _pause(self, due: float, now: float) -> None:
        breath = self.giving_way.breathe(self._around.workers(), self._around.settings().agent.pressure, now)
        wait = min(max(0.0, due - now), breath, ALERT_SECONDS if self._alert else breath)
        self._wake.clear()
        try:
            # Never at once again, whatever is due: a loop turn for the others in any case.
            await asyncio.wait_for(self._wake.wait(), max(0.01, wait))
        except TimeoutError:
            return

    def _period(self) -> float:
        return self._around.settings().agent.pressure.sample_seconds * self.shedding.factor()

    # Looks

    def look(self, now: float) -> None:
        """Look at everything once.

        Args:
            now: Monotonic seconds.
        """
        self.looks += 1
        around, settings = self._around, self._around.settings()
        samples = self._look_at_us(now)
        if samples is None:
            # Out of descriptors, most likely. Who uses what is not known now, so nobody is judged.
            return
        self._judge_us(now, samples)
        own = self._own(samples)
        counters = host.look(now, own)
        reading = host.compare(self._counters, counters)
        self._counters = counters
        self.giving_way.take(reading, around.workers(), settings.agent.pressure, counters.total)
        assert self._master is not None
        share = Share(cpu_percent=settings.agent.own.cpu_percent, memory_bytes=settings.agent.own.memory)
        dry_run = settings.agent.dry_run
        memory = self._master.usage.memory_working_bytes
        self.shedding.take(now, self._master.cpu_percent, memory, share, dry_run=dry_run)
        self._listen_to_workers(around.budget())

    def _look_at_memory(self, now: float) -> None:
        """Look at nothing but ourselves, because the workers together are near their cap."""
        samples = self._look_at_us(now)
        if samples is not None:
            self._judge_us(now, samples)

    def _look_at_us(self, now: float) -> dict[str, Sample] | None:
        cgroups = self._around.cgroups
        try:
            self._master = compare(self._master, Sample(now, self.usage_of_master()))
            self._all = compare(self._all, Sample(now, cgroups.usage(None)))
        except CgroupError as error:
            self._around.problems.set("counters", str(error))
            return None
        self._around.problems.set("counters", "")
        samples: dict[str, Sample] = {}
        living = set()
        for name, worker in self._around.workers().items():
            process = worker.process
            if process is None or worker.state not in ALIVE or worker.state is State.STOPPING:
                continue
            living.add((name, process.epoch))
            self._samples.begin(name, process.epoch, now)
            sample = self._samples.sample(name, process.epoch, now, 0.0)
            if not sample.stale:
                samples[name] = sample
        self._samples.keep(living)
        return samples

    def usage_of_master(self) -> Usage:
        """Return what master and nursery use.

        Raises:
            CgroupError: It cannot be read.
            OSError: The same.
        """
        usage = self._around.cgroups.usage_of_master()
        resident, shared = own_memory()
        # What was charged before the master moved into its node is not counted there.
        if (private := resident - shared) <= usage.memory_working_bytes:
            return usage
        return Usage(cpu_seconds=usage.cpu_seconds, memory_bytes=resident, memory_working_bytes=private)

    def _judge_us(self, now: float, samples: Mapping[str, Sample]) -> None:
        assert self._master is not None
        assert self._all is not None
        around = self._around
        budget = around.budget()
        own = Own(cpu_percent=self._master.cpu_percent, memory_bytes=self._master.usage.memory_working_bytes)
        self.together.take(now, own, samples, around.workers(), budget, all_workers=self._all)
        used = sum(sample.usage.memory_working_bytes for sample in samples.values())
        room = memory_room(own, Budget(cpu_percent=budget.cpu_quota_percent, memory_max=budget.memory_max))
        if used <= ALERT_AT * room:
            self._alert = False

    def _own(self, samples: Mapping[str, Sample]) -> host.Own:
        assert self._master is not None
        assert self._all is not None
        workers = self._around.workers()
        return host.Own(
            cpu_seconds=self._all.usage.cpu_seconds + self._master.usage.cpu_seconds,
            io_stall_seconds=self._around.cgroups.io_stall_seconds(),
            held_back=bool(self._all.throttled_periods)
            or any(_held_back(sample, workers[name]) for name, sample in samples.items()),
            processes=self._all.usage.pids,
        )

    # What the kernel says by itself

    def _listen_to_host(self) -> None:
        try:
            self._trigger = MemoryTrigger()
        except OSError as error:
            _log.info("no notice when memory becomes short, the host is polled: %s", error)
            return
        self._listen(self._trigger.fileno(), self._host_is_short)

    def _host_is_short(self) -> None:
        trigger = self._trigger
        assert trigger is not None
        if trigger.drain():
            self._rest(trigger.fileno(), self._host_is_short)
            now = asyncio.get_running_loop().time()
            if self._counters is None or now - self._counters.at >= QUIET_SECONDS:
                self.look(now)
            return
        self._forget(trigger.fileno())
        trigger.close()
        self._trigger = None

    def _listen_to_workers(self, budget: AggregateBudget) -> None:
        """Be told when the workers together come near their cap; anew when the cap has changed."""
        level = int(ACT_AT * ALERT_AT * budget.memory_max)
        if self._near is not None:
            if self._near[1] == level:
                return
            self._forget(self._near[0].fileno())
            self._near[0].close()
            self._near = None
        try:
            near = self._around.cgroups.memory_watch(level)
        except CgroupError as error:
            self._around.problems.set("memory notices", f"the workers' memory is polled only: {error}")
            return
        self._around.problems.set("memory notices", "")
        if near is not None:
            self._near = near, level
            self._listen(near.fileno(), self._workers_are_near)

    def _workers_are_near(self) -> None:
        assert self._near is not None
        self._near[0].drain()
        self._rest(self._near[0].fileno(), self._workers_are_near)
        self._alert = True
        self._wake.set()

    def _listen(self, descriptor: int, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_reader(descriptor, call)
        self._listening.add(descriptor)

    def _rest(self, descriptor: int, call: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(descriptor)

        def again() -> None:
            if descriptor in self._listening:
                loop.add_reader(descriptor, call)

        loop.call_later(QUIET_SECONDS, again)

    def _forget(self, descriptor: int) -> None:
        self._listening.discard(descriptor)
        asyncio.get_running_loop().remove_reader(descriptor)

    def _close(self) -> None:
        for descriptor in tuple(self._listening):
            self._forget(descriptor)
        if self._near is not None:
            self._near[0].close()
            self._near = None
        if self._trigger is not None:
            self._trigger.close()
            self._trigger = None


def _held_back(sample: Sample, worker: WorkerSupervisor) -> bool:
    """Tell whether a worker was slowed by its own caps, which lets tasks wait without the host being short."""
    high = worker.limits.memory_high if worker.limits is not None else None
    at_high = high is not None and sample.usage.memory_bytes >= HELD_BACK_AT * high
    return bool(sample.throttled_periods or sample.high_events) or at_high
