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
from garrison.ipc.messages import Applied, Ready
from garrison.supervisor import breaker as circuit
from garrison.supervisor.breaker import Breaker, Cause
from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.desired import WorkerDesired
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.lifecycle import ALIVE, Event, State, after
from garrison.supervisor.nursery.client import NurseryDiedError, NurseryError
from garrison.supervisor.nursery.protocol import Spawn
from garrison.supervisor.settings import Worker as Definition
from garrison.supervisor.worker.configuration import ConfigurationState, Offer
from garrison.supervisor.worker.endings import facts_of
from garrison.supervisor.worker.intake import Hooks, Intake
from garrison.supervisor.worker.launch import KilledError, launch
from garrison.supervisor.worker.node import WorkerNode, limits_of
from garrison.supervisor.worker.process import WorkerProcess
from garrison.supervisor.worker.services import Services

TERM_SHARE = 0.4
"""Share of the grace that a worker has for the polite request before SIGTERM comes too."""
KILL_SECONDS = 5.0
"""How long the killed may take to disappear before that is reported."""
SWEEP_SECONDS = 5.0
"""Time between two tries to get rid of what an earlier process has left."""


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
        self.node = WorkerNode(name, services.place, self._out_of_memory, self._problem)
        self.restarts = 0
        self.starts = 0
        self.last_error: str | None = None
        self._services = services
        hooks = Hooks(ready=self._ready, error=self._complaint, breach=self._broken, gone=self.poke)
        rate = desired.budget.events_per_second
        self._intake = Intake(name, services, self.ledger, self.configuration, rate, hooks)
        self._breach: tuple[Cause, str] | None = None
        self._pace = self._pace_of(desired)
        self._restart_wanted = False
        self._reset_wanted = False
        self._closing = False
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"worker {name}")
        self.want(desired, definition)

    @property
    def limits(self) -> Limits | None:
        """The caps in force; None before the first start."""
        return self.node.limits

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
        self._intake.limit(desired.budget.events_per_second)
        if self.process is not None:
            self.process.limit(desired.budget.events_per_second)
        pace, self._pace = self._pace, self._pace_of(desired)
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
        elif pace != self._pace:
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

    def trip(self, cause: Cause, detail: str) -> None:
        """Open the circuit: the worker is killed and waits. The first breach of a process counts."""
        if self._breach is None:
            self._breach = (cause, detail)
        self.poke()

    # What the process says

    def _ready(self, ready: Ready) -> None:
        """The modules run: the worker is running, or on probation."""
        if self.state is State.STARTING:
            self.breaker = circuit.started(self.breaker, self._now(), self._services.policy)
            on_probation = self.breaker.phase == "probation"
            self._to(Event.READY_ON_PROBATION if on_probation else Event.READY, modules=list(ready.modules))
        self.poke()

    def _complaint(self, text: str) -> None:
        self.last_error = text

    def _broken(self, reason: str) -> None:
        self.trip("protocol", reason)

    def _out_of_memory(self) -> None:
        self.trip("oom", self._oom_text())

    def _oom_text(self) -> str:
        limit = self.limits.memory_max if self.limits is not None else None
        return f"killed by the kernel at its memory_max of {limit} bytes"

    # The task

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                finished = await self._step()
            except Exception:  # noqa: BLE001  a mistake here must cost one worker's supervision a second, not the agent
                self._log("crit", f"supervision failed, trying again in 1 s: {traceback.format_exc(limit=-4)}")
                finished = self._mend()
            if not self._wake.is_set():
                self._settled.set()
                if finished:
                    return

    async def _step(self) -> bool:
        """Do the one thing that is due. True: there will never be anything to do again.

        Whatever waits (for an exit, for the nursery) ends the step and has another look taken, because anything may
        have happened meanwhile, an engaged and released killswitch included.
        """
        if self.process is not None and self.process.gone:
            await self._bury()
        elif self.process is None and self.node.left and not await self.node.sweep():
            self._later(SWEEP_SECONDS)
        if self._services.place.engaged():
            await self._killed()
            return self._closing
        if self.state is State.KILLED:
            self._to(Event.RELEASE)
        if self._breach is not None:
            await self._trip()
            return self._again()
        if self._reset_wanted:
            self._reset()
        if self._closing or self.desired.action == "stop":
            if self.process is not None:
                await self._stop("asked to stop")
                return self._again()
            if self.state is not State.STOPPED:
                self._to(Event.STOP, reason="asked to stop")
            return self._closing
        if self._restart_wanted and self.process is not None:
            self._restart_wanted = False
            await self._stop("what it runs has changed")
            return self._again()
        self._restart_wanted = False
        if self.process is None:
            await self._start_when_allowed()
        else:
            self._keep()
        return False

    def _again(self) -> bool:
        self._wake.set()
        return False

    def _mend(self) -> bool:
        """After a failed step: never stay in a state that the next step cannot leave. True: the task is to end."""
        if self.process is None:
            self._breach = None
            if self.state in ALIVE:
                self.state = State.STOPPED
            if self._closing:
                return True
        self._later(1.0)
        return False

    async def _start_when_allowed(self) -> None:
        now = self._now()
        self.breaker = circuit.settled(self.breaker, now, self._services.policy)
        wait = circuit.may_start_in(self.breaker, now)
        if wait == 0:
            await self._start()
            return
        if self.state is State.STOPPED:
            # A stop, or the killswitch, does not close a circuit: what waited before waits on.
            still = {"latched": Event.STILL_LATCHED, "open": Event.STILL_OPEN}.get(self.breaker.phase, Event.WAIT)
            self._to(still, cause=self.breaker.cause, retry_in_seconds=self._retry_in())
        if wait is not None:
            self._later(wait)

    async def _start(self) -> None:
        self._to(Event.START)
        self._breach = None
        budget = self.desired.budget
        limits = limits_of(budget)
        services = self._services
        epoch = services.next_epoch(self.name)
        config = self.configuration.first(budget.beat_seconds, budget.events_per_second)
        self._intake.begin(epoch)
        # Until it runs, whatever was made is for the next step to sweep.
        self.node.left = True
        try:
            nursery = await services.nursery()
            self.process = await launch(
                self._request(),
                limits,
                budget.nofile,
                config,
                place=services.place,
                nursery=nursery,
                epoch=epoch,
                ledger=self.ledger,
                listener=self._intake,
                congested=services.congested,
            )
        except KilledError:
            # It may be released again by now.
            self._to(Event.KILL if services.place.engaged() else Event.LOST, reason="the killswitch was engaged")
            self._wake.set()
            return
        except NurseryDiedError as error:
            self._to(Event.LOST, reason=str(error))
            self._later(0.05)
            return
        except (CgroupError, NurseryError, FrameTooLargeError, OSError) as error:
            if isinstance(error, FrameTooLargeError):
                self._intake.on_applied(Applied(revision=config.revision, ok=False, error=str(error)))
            self._refused(str(error))
            return
        self.starts += 1
        self.restarts = self.starts - 1
        self.node.started(limits)

    def _request(self) -> Spawn:
        definition = self.definition
        modules = tuple((module_name(spec), spec) for spec in definition.modules) if not definition.command else ()
        folder = os.path.join(self._services.state_dir, "workers", self.name)
        held = self._services.process_limits(limits_of(self.desired.budget))
        return Spawn(
            id=0,
            worker=self.name,
            host=self._services.host,
            state_dir=folder,
            modules=modules,
            command=definition.command,
            environment=dict(definition.environment),
            beat_seconds=self.desired.budget.beat_seconds,
            rlimits=held.rlimits,
            nice=held.nice,
            subreaper=held.subreaper,
        )

    def _keep(self) -> None:
        """Bring a living process to its desired caps and to frozen or not."""
        self.node.limit(limits_of(self.desired.budget))
        frozen = self.desired.action == "freeze"
        if self.state is not State.STARTING and frozen != self.node.frozen:
            if wait := self.node.freeze(frozen):
                self._later(wait)
                return
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
        assert process is not None
        if self.state is not State.STOPPING:
            self._to(Event.STOP, reason=reason)
        if self.node.frozen:
            self.node.freeze(False)
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
        if not self.node.kill():
            # Without a descriptor to open the node's files, for one, this still works: the pidfd is there already.
            process.signal(signal.SIGKILL)
        if not process.gone and not await process.wait_gone(KILL_SECONDS):
            self._problem(
                f"pid {process.pid} does not die; it may hang in the kernel (state D): look at /proc/PID/stack"
            )
            await process.wait_gone(KILL_SECONDS)

    async def _bury(self) -> None:
        """Wind up a process that is gone (or will not go): its node, its pipes, its books, what follows."""
        process = self.process
        if process is None:
            return
        oom_kills = self.node.oom_kills()
        self.node.unwatch()
        # Children that outlived it die before the pipe is drained, so that nobody writes on.
        self.node.kill()
        process.drain()
        lost = process.close()
        self.process = None
        await self.node.remove()
        breach, self._breach = self._breach, None
        if breach is None and oom_kills:
            breach = ("oom", self._oom_text())
        self._conclude(process, breach, facts_of(process.pid, process.epoch, process.report, lost))

    def _conclude(self, process: WorkerProcess, breach: tuple[Cause, str] | None, facts: dict[str, Any]) -> None:
        if self._services.place.engaged():
            self._to(Event.KILL, **facts)
        elif self.state is State.STOPPING:
            self._to(Event.ENDED, **facts)
        elif breach is not None:
            self._breached(*breach, facts)
        elif process.report is None:
            self._to(Event.LOST, reason="the nursery died", **facts)
        else:
            self._crashed(process, facts)
        self._wake.set()

    def _crashed(self, process: WorkerProcess, facts: dict[str, Any]) -> None:
        now = self._now()
        ran = now - process.ready_at if process.ready_at is not None else 0.0
        how = str(facts["exit"])
        # What it said last is usually the reason.
        said = self._intake.said
        self.last_error = f"{how}: {said}" if said else how
        before = self.breaker.trips
        self.breaker = circuit.crashed(self.breaker, now, ran, self._services.policy, self._services.host, self.name)
        self._to(Event.CRASHED, reason=self.last_error, retry_in_seconds=self._retry_in(), **facts)
        if self.breaker.trips > before:
            self._to(Event.LATCH if self.breaker.phase == "latched" else Event.TRIP, **self._verdict("crash", ""))

    def _breached(self, cause: Cause, detail: str, facts: dict[str, Any]) -> None:
        self.breaker = circuit.breached(
            self.breaker, cause, self._now(), self._services.policy, self._services.host, self.name
        )
        self.last_error = detail or self.last_error
        event = Event.LATCH if self.breaker.phase == "latched" else Event.TRIP
        self._to(event, **self._verdict(cause, detail), **facts)

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

    # Small things

    def _retry_in(self) -> float | None:
        wait = circuit.may_start_in(self.breaker, self._now())
        return None if wait is None else round(wait, 3)

    def _pace_of(self, desired: WorkerDesired) -> tuple[float, float]:
        return desired.budget.beat_seconds, desired.budget.events_per_second

    def _send_config(self) -> None:
        if self.process is None or self.process.gone:
            return
        config = self.configuration.current(*self._pace)
        try:
            self.process.down.configure(config)
        except FrameTooLargeError as error:
            self._intake.on_applied(Applied(revision=config.revision, ok=False, error=str(error)))

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
        self.last_error = text or None
        if text:
            self._log("err", text)

    def _log(self, level: Any, text: str) -> None:
        self._services.log(level, self.name, text)

    def _later(self, seconds: float) -> None:
        """Have another look in `seconds`; one that is due earlier stays, and looks for both."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, seconds)
        if self._timer is not None:
            if loop.time() < self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self.poke)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def module_name(spec: str) -> str:
    """Return the short name of a module's spec: ``process``, or the class name in lower case."""
    return spec.rpartition(":")[2].lower() if ":" in spec else spec
