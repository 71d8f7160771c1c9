"""The supervisor of one worker: one task that keeps the process as the desired state wants it.

Whatever happens (a new desired state, a death, a breach, a timer, the killswitch) only sets a flag and
wakes the task. The task looks at everything anew and does one thing after the other, so that no two
changes of one worker ever overlap.
"""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from typing import Any

from garrison.ipc.frames import FrameTooLargeError
from garrison.ipc.messages import Applied, Beat, Config, Events, Log, Ready, Result
from garrison.ipc.pacing import TokenBucket
from garrison.supervisor import breaker as circuit
from garrison.supervisor.breaker import Breaker, Cause
from garrison.supervisor.cgroups.base import Limits, OomWatch
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.desired import WorkerDesired
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.stamp import Stamp
from garrison.supervisor.lifecycle import Event, State, after
from garrison.supervisor.nursery.client import NurseryDiedError, NurseryError
from garrison.supervisor.nursery.protocol import Exited, Spawn
from garrison.supervisor.settings import Budget
from garrison.supervisor.settings import Worker as Definition
from garrison.supervisor.worker.configuration import ConfigurationState, Offer
from garrison.supervisor.worker.launch import KilledError, launch
from garrison.supervisor.worker.process import WorkerProcess
from garrison.supervisor.worker.services import Services

TERM_SHARE = 0.4
"""Share of the grace that a worker has for the polite request before SIGTERM comes too."""
KILL_SECONDS = 5.0
"""How long the killed may take to disappear before that is reported."""
REMOVE_SECONDS = 2.0
REMOVE_STEP_SECONDS = 0.01
BURST_SECONDS = 5.0
"""The burst of a worker's event rate, in seconds of its rate (the contract's "burst x5")."""


def limits_of(budget: Budget) -> Limits:
    """Return the caps of a node for a worker's budget."""
    return Limits(
        cpu_quota_percent=budget.cpu_quota_percent,
        cpu_weight=budget.cpu_weight,
        memory_high=budget.memory_high,
        memory_max=budget.memory_max,
        pids_max=budget.pids_max,
    )


class WorkerSupervisor:
    """Supervises one worker. All methods are called from the master's loop.

    Args:
        name: The worker's name.
        definition: What it runs.
        desired: How it is wanted.
        services: The agent around it.
        taken: The configuration that it last took, from before this master's start.
    """

    def __init__(
        self,
        name: str,
        definition: Definition,
        desired: WorkerDesired,
        services: Services,
        taken: Offer | None = None,
    ) -> None:
        self.name = name
        self.definition = definition
        self.desired = desired
        self.state = State.STOPPED
        self.breaker = Breaker()
        self.ledger = WorkerLedger()
        self.configuration = ConfigurationState(taken)
        self.process: WorkerProcess | None = None
        self.limits: Limits | None = None
        self.restarts = 0
        self.starts = 0
        self.last_error: str | None = None
        self._services = services
        self._stamp: Stamp | None = None
        self._bucket = TokenBucket(desired.budget.events_per_second, desired.budget.events_per_second * BURST_SECONDS)
        self._log_bucket = TokenBucket(20.0, 100.0)
        self._log_suppressed = 0
        self._said = ""
        self._refused_limits: Limits | None = None
        self._oom: OomWatch | None = None
        self._breach: tuple[Cause, str] | None = None
        self._frozen = False
        self._restart_wanted = False
        self._reset_wanted = False
        self._closing = False
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"worker {name}")
        self.want(desired, definition)

    # What the agent asks for

    def want(self, desired: WorkerDesired, definition: Definition | None = None) -> None:
        """Take a new desired state; what follows from it happens in the worker's own task."""
        if definition is not None and definition != self.definition:
            changed = (definition.modules, definition.command, definition.environment) != (
                self.definition.modules,
                self.definition.command,
                self.definition.environment,
            )
            self.definition = definition
            self._restart_wanted = self._restart_wanted or changed
        if desired.reset_token != self.desired.reset_token:
            self._reset_wanted = True
        self.desired = desired
        rate = desired.budget.events_per_second
        self._bucket.limit(rate, rate * BURST_SECONDS)
        offer = Offer(
            revision=desired.revision,
            hash=desired.hash,
            settings=desired.settings,
            rules=desired.rules,
            log_level=desired.log_level,
        )
        if self.configuration.offers(offer):
            if self.breaker.phase in ("latched", "open"):
                # A changed configuration is a new attempt: what tripped may be gone with it.
                self._reset_wanted = True
            self._send_config()
        self.poke()

    def reset(self) -> None:
        """Close the circuit: a tripped, latched or waiting worker may start at once."""
        self._reset_wanted = True
        self.poke()

    def poke(self) -> None:
        """Have the task look at everything again."""
        self._settled.clear()
        self._wake.set()

    async def settle(self, timeout: float) -> bool:
        """Wait until there is nothing left to do for now, starts included. False: not within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self._settled.is_set() or self.state in (State.STARTING, State.STOPPING):
                    await self._settled.wait()
                    await asyncio.sleep(0.005)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop the process in good order and end the task."""
        self._closing = True
        self.poke()
        await self._task

    # What the process says (Listener)

    def on_ready(self, ready: Ready) -> None:
        """The modules run: the worker is running, or on probation."""
        self.breaker = circuit.started(self.breaker, self._now(), self._services.policy)
        if self.state is State.STARTING:
            on_probation = self.breaker.phase == "probation"
            self._to(Event.READY_ON_PROBATION if on_probation else Event.READY, modules=list(ready.modules))
        self.poke()

    def on_beat(self, beat: Beat) -> None:
        """Nothing follows from a single beat here; the process keeps the last one."""

    def on_events(self, batch: Events) -> None:
        """Admit a batch by the worker's rate, stamp it and pass it on."""
        if batch.count == 0 or self._stamp is None:
            return
        if not self._bucket.admit(batch.count, self._now()):
            self.ledger.drop(batch.count, "rate_limit")
            return
        data = self._stamp.write(batch.data, batch.priority)
        self._services.forward(self.name, self.ledger, batch.priority, batch.count, data)

    def on_log(self, log: Log) -> None:
        """Write a worker's line to the agent's log, with its module, at a limited rate."""
        source = f"{self.name}.{log.module}" if log.module and log.module != self.name else self.name
        self._log_suppressed += log.suppressed
        if not self._log_bucket.admit(1, self._now()):
            self._log_suppressed += 1
            return
        if self._log_suppressed:
            self._log("warning", f"{self._log_suppressed} lines of {source} were suppressed")
            self._log_suppressed = 0
        if log.level in ("err", "crit", "alert", "emerg"):
            self._said = self.last_error = log.message.split("\n", 1)[0][:500]
        self._services.log(log.level, source, log.message)

    def on_applied(self, applied: Applied) -> None:
        """Note what became of a configuration."""
        status = self.configuration.status
        self.configuration.answered(applied.revision, applied.ok, applied.error)
        if self.configuration.status == status:
            return
        if self.configuration.status == "rejected":
            self._log("err", f"configuration refused, the old one stays: {self.configuration.error}")
        self._services.emit_state(
            f"config-{self.configuration.status}",
            {
                "worker": self.name,
                "revision": self.configuration.offer.revision,
                "hash": self.configuration.offer.hash,
                "reason": self.configuration.error,
            },
        )
        self._services.changed()

    def on_result(self, result: Result) -> None:
        """Log what became of a task."""
        text = f"task {result.id} is done" if result.ok else f"task {result.id} failed: {result.error}"
        self._log("info" if result.ok else "warning", text)

    def on_output(self, line: str) -> None:
        """Log what the process printed."""
        self._said = line[:500]
        self._log("notice", f"printed: {line}")

    def on_breach(self, reason: str) -> None:
        """The pipe's contract is broken: the worker is tripped."""
        self.trip("protocol", reason)

    def on_gone(self) -> None:
        """The process has ended."""
        self.poke()

    def trip(self, cause: Cause, detail: str) -> None:
        """Open the circuit: the worker is killed and waits. The first breach of a process counts."""
        if self._breach is None:
            self._breach = (cause, detail)
        self.poke()

    # The task

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                finished = await self._step()
            except Exception:  # noqa: BLE001  a mistake here must cost one worker's supervision a second, not the agent
                self._log("crit", f"supervision failed, trying again in 1 s: {traceback.format_exc(limit=-4)}")
                self._later(1.0)
                continue
            if not self._wake.is_set():
                self._settled.set()
                if finished:
                    return

    async def _step(self) -> bool:
        if self.process is not None and self.process.gone:
            await self._bury()
        if self._services.place.engaged():
            await self._killed()
            return self._closing
        if self.state is State.KILLED:
            self._to(Event.RELEASE)
        if self._breach is not None:
            await self._trip()
        if self._reset_wanted:
            self._reset()
        if self._closing or self.desired.action == "stop":
            await self._stop("asked to stop")
            return self._closing and self.process is None
        if self._restart_wanted and self.process is not None:
            await self._stop("what it runs has changed")
        self._restart_wanted = False
        if self.process is None:
            await self._start_when_allowed()
        else:
            self._keep()
        return False

    async def _start_when_allowed(self) -> None:
        now = self._now()
        self.breaker = circuit.settled(self.breaker, now, self._services.policy)
        wait = circuit.may_start_in(self.breaker, now)
        if wait is None:
            return
        if wait > 0:
            self._later(wait)
            return
        await self._start()

    async def _start(self) -> None:
        self._to(Event.START)
        self._breach = None
        self._said = ""
        self._refused_limits = None
        budget = self.desired.budget
        services = self._services
        epoch = services.next_epoch(self.name)
        config = self.configuration.first(budget.beat_seconds, budget.events_per_second)
        try:
            nursery = await services.nursery()
            self.process = await launch(
                self._request(),
                limits_of(budget),
                budget.nofile,
                config,
                place=services.place,
                nursery=nursery,
                epoch=epoch,
                ledger=self.ledger,
                listener=self,
            )
        except KilledError:
            self._wake.set()
            return
        except NurseryDiedError:
            self._to(Event.LOST, reason="the nursery died")
            self._later(0.05)
            return
        except (CgroupError, NurseryError, FrameTooLargeError, OSError) as error:
            self._refused(str(error))
            return
        self.starts += 1
        self.restarts = self.starts - 1
        self.limits = limits_of(budget)
        self._frozen = False
        self._stamp = Stamp(services.host, self.name, epoch)
        self._watch_oom()

    def _request(self) -> Spawn:
        definition = self.definition
        modules = tuple((module_name(spec), spec) for spec in definition.modules) if not definition.command else ()
        folder = os.path.join(self._services.state_dir, "workers", self.name)
        rlimits, nice = self._services.process_limits(limits_of(self.desired.budget))
        return Spawn(
            id=0,
            worker=self.name,
            host=self._services.host,
            state_dir=folder,
            modules=modules,
            command=definition.command,
            environment=dict(definition.environment),
            beat_seconds=self.desired.budget.beat_seconds,
            rlimits=rlimits,
            nice=nice,
        )

    def _keep(self) -> None:
        """Bring a living process to its desired caps and to frozen or not."""
        process = self.process
        assert process is not None
        limits = limits_of(self.desired.budget)
        cgroups = self._services.place.cgroups
        if limits not in (self.limits, self._refused_limits):
            try:
                cgroups.limit(self.name, limits)
                self.limits = limits
            except CgroupError as error:
                self._refused_limits = limits
                self._problem(f"the new budget is refused, the old one stays: {error}")
        frozen = self.desired.action == "freeze"
        if self.state is not State.STARTING and frozen != self._frozen:
            try:
                cgroups.freeze(self.name, frozen)
            except CgroupError as error:
                self._problem(str(error))
                self._later(1.0)
                return
            self._frozen = frozen
            on_probation = self.breaker.phase == "probation"
            self._to(Event.FREEZE if frozen else Event.THAW_ON_PROBATION if on_probation else Event.THAW)
        now = self._now()
        self.breaker = circuit.settled(self.breaker, now, self._services.policy)
        if self.state is State.PROBATION:
            if self.breaker.phase == "closed":
                self._to(Event.PASSED)
            else:
                self._later(self.breaker.probation_until - now)

    async def _stop(self, reason: str) -> None:
        process = self.process
        if process is None:
            if self.state is not State.STOPPED:
                self._to(Event.STOP, reason=reason)
            return
        self._to(Event.STOP, reason=reason)
        self._thaw()
        grace = self._services.grace()
        process.down.stop(reason)
        if not await process.wait_gone(grace * TERM_SHARE):
            process.signal(signal.SIGTERM)
            if not await process.wait_gone(grace * (1 - TERM_SHARE)):
                self._log("warning", f"did not stop within {grace:g} s and is killed")
                await self._kill_and_wait(process)
        await self._bury()

    async def _killed(self) -> None:
        if self.process is not None:
            await self._kill_and_wait(self.process)
            await self._bury()
        if self.state is not State.KILLED:
            self._to(Event.KILL)

    async def _trip(self) -> None:
        if self.process is not None:
            await self._kill_and_wait(self.process)
            await self._bury()
        self._breach = None

    async def _kill_and_wait(self, process: WorkerProcess) -> None:
        self._kill_node()
        if not process.gone and not await process.wait_gone(KILL_SECONDS):
            self._problem(
                f"pid {process.pid} does not die; it may hang in the kernel (state D): look at /proc/PID/stack"
            )
            await process.wait_gone(KILL_SECONDS)

    def _kill_node(self) -> None:
        place = self._services.place
        with place.lock:
            try:
                place.cgroups.kill(self.name)
            except CgroupError as error:
                self._problem(str(error))

    def _thaw(self) -> None:
        if self._frozen:
            try:
                self._services.place.cgroups.freeze(self.name, False)
                self._frozen = False
            except CgroupError as error:
                self._problem(str(error))

    async def _bury(self) -> None:
        """Wind up a process that is gone (or will not go): its node, its pipes, its books, what follows."""
        process = self.process
        if process is None:
            return
        cgroups = self._services.place.cgroups
        oom_kills = cgroups.usage(self.name).oom_kills
        self._unwatch_oom()
        # Children that outlived it die before the pipe is drained, so that nobody writes on.
        self._kill_node()
        process.drain()
        lost = process.close()
        self.process = None
        await self._remove_node()
        breach, self._breach = self._breach, None
        if breach is None and oom_kills:
            breach = ("oom", self._oom_text())
        self._conclude(process, breach, lost)

    def _conclude(self, process: WorkerProcess, breach: tuple[Cause, str] | None, lost: int) -> None:
        report = process.report
        facts: dict[str, Any] = {"pid": process.pid, "epoch": process.epoch, "lost_at_exit": lost}
        if report is not None:
            facts |= {
                "exit": describe_exit(report),
                "cpu_seconds": round(report.user_seconds + report.system_seconds, 3),
                "max_rss_bytes": report.max_rss_bytes,
            }
        if self._services.place.engaged():
            self._to(Event.KILL, **facts)
        elif self.state is State.STOPPING:
            self._to(Event.ENDED, **facts)
        elif breach is not None:
            self._breached(*breach, facts)
        elif report is None:
            self._to(Event.LOST, reason="the nursery died", **facts)
            self._wake.set()
        else:
            self._crashed(process, facts)

    def _crashed(self, process: WorkerProcess, facts: dict[str, Any]) -> None:
        now = self._now()
        ran = now - process.ready_at if process.ready_at is not None else 0.0
        how = str(facts["exit"])
        # What it said last is usually the reason.
        self.last_error = f"{how}: {self._said}" if self._said else how
        before = self.breaker.trips
        self.breaker = circuit.crashed(self.breaker, now, ran, self._services.policy, self._services.host, self.name)
        self._to(Event.CRASHED, reason=self.last_error, retry_in_seconds=self._retry_in(), **facts)
        if self.breaker.trips > before:
            self._to(Event.LATCH if self.breaker.phase == "latched" else Event.TRIP, **self._verdict("crash", ""))
        self._wake.set()

    def _breached(self, cause: Cause, detail: str, facts: dict[str, Any]) -> None:
        self.breaker = circuit.breached(
            self.breaker, cause, self._now(), self._services.policy, self._services.host, self.name
        )
        self.last_error = detail or self.last_error
        event = Event.LATCH if self.breaker.phase == "latched" else Event.TRIP
        self._to(event, **self._verdict(cause, detail), **facts)
        self._wake.set()

    def _verdict(self, cause: Cause, detail: str) -> dict[str, Any]:
        return {"cause": cause, "reason": detail, "trips": self.breaker.trips, "retry_in_seconds": self._retry_in()}

    def _refused(self, reason: str) -> None:
        policy, host = self._services.policy, self._services.host
        self.breaker = circuit.refused(self.breaker, self._now(), policy, host, self.name)
        self.last_error = reason
        self._log("err", f"not started: {reason}")
        self._to(Event.REFUSED, reason=reason, retry_in_seconds=self._retry_in())
        self._later(self._retry_in() or 1.0)

    def _reset(self) -> None:
        self._reset_wanted = False
        self.breaker = circuit.reset(self.breaker)
        if self.state in (State.TRIPPED, State.LATCHED, State.FAILED):
            self._to(Event.RESET)

    def _watch_oom(self) -> None:
        # v1 kills one process of the node and leaves the rest half alive; and everybody likes to hear of it at once.
        try:
            self._oom = self._services.place.cgroups.oom_watch(self.name)
        except OSError as error:
            self._log("warning", f"no notice of an OOM kill ({error.strerror}): it is seen when the process ends")
        if self._oom is not None:
            asyncio.get_running_loop().add_reader(self._oom.fileno(), self._oom_seen)

    def _unwatch_oom(self) -> None:
        if self._oom is not None:
            asyncio.get_running_loop().remove_reader(self._oom.fileno())
            self._oom.close()
            self._oom = None

    def _oom_seen(self) -> None:
        if self._oom is not None:
            self._oom.drain()
            if self._services.place.cgroups.usage(self.name).oom_kills:
                self.trip("oom", self._oom_text())

    def _oom_text(self) -> str:
        limit = self.limits.memory_max if self.limits is not None else None
        return f"killed by the kernel at its memory_max of {limit} bytes"

    async def _remove_node(self) -> None:
        cgroups = self._services.place.cgroups
        for _ in range(int(REMOVE_SECONDS / REMOVE_STEP_SECONDS)):
            try:
                if cgroups.remove(self.name):
                    return
            except CgroupError as error:
                self._problem(str(error))
                return
            await asyncio.sleep(REMOVE_STEP_SECONDS)
        self._problem(f"processes are left in {cgroups.path(self.name)}: {list(cgroups.members(self.name))[:10]}")

    # Small things

    def _retry_in(self) -> float | None:
        wait = circuit.may_start_in(self.breaker, self._now())
        return None if wait is None else round(wait, 3)

    def _send_config(self) -> None:
        if self.process is None or self.process.gone:
            return
        budget = self.desired.budget
        config: Config = self.configuration.config(budget.beat_seconds, budget.events_per_second)
        try:
            self.process.down.configure(config)
        except FrameTooLargeError as error:
            self.configuration.answered(config.revision, False, str(error))

    def _to(self, event: Event, **facts: Any) -> None:
        before, self.state = self.state, after(self.state, event)
        facts = {key: value for key, value in facts.items() if value not in (None, "", [])}
        details = ", ".join(f"{key}={value}" for key, value in facts.items())
        level = "warning" if event in (Event.CRASHED, Event.TRIP, Event.LATCH, Event.REFUSED) else "info"
        self._log(level, f"{before.value} -> {self.state.value} ({event.value})" + (f": {details}" if details else ""))
        self._services.emit_state(
            f"worker-{self.state.value}",
            {"worker": self.name, "from": before.value, "to": self.state.value, "event": event.value, **facts},
        )
        self._services.changed()

    def _problem(self, text: str) -> None:
        self.last_error = text
        self._log("err", text)

    def _log(self, level: Any, text: str) -> None:
        self._services.log(level, self.name, text)

    def _later(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.poke)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def module_name(spec: str) -> str:
    """Return the short name of a module's spec: ``process``, or the class name in lower case."""
    return spec.rpartition(":")[2].lower() if ":" in spec else spec


def describe_exit(report: Exited) -> str:
    """Return how a process ended, in words: ``exit status 3`` or ``killed by SIGSEGV``."""
    if os.WIFSIGNALED(report.status):
        number = os.WTERMSIG(report.status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"killed by {name}" + (" (core dumped)" if os.WCOREDUMP(report.status) else "")
    return f"exit status {os.WEXITSTATUS(report.status)}"
