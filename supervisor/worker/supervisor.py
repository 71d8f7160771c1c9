"""The supervisor of one worker: one task that keeps the process as the desired state wants it.

Whatever happens (a new desired state, a death, a breach, a timer, the killswitch) only sets a flag and
wakes the task. The task looks at everything anew and does one thing after the other, so that no two
changes of one worker ever overlap.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from typing import Any, Literal

import msgspec

from garrison.ipc.frames import FrameTooLargeError
from garrison.ipc.messages import EXIT_WITHOUT_MODULE, Applied, Beat, Control, Hold, Priority, Ready, holds_of
from garrison.supervisor.breaker import Breaker, Record
from garrison.supervisor.budget.watch import Verdict
from garrison.supervisor.cgroups.base import Limits, Usage
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.desired import WorkerDesired
from garrison.supervisor.desired.model import short_hash
from garrison.supervisor.lifecycle import ALIVE, Event, State, after
from garrison.supervisor.nursery.client import NurseryDiedError, NurseryError
from garrison.supervisor.nursery.protocol import Spawn
from garrison.supervisor.rights.accounts import NoAccountError
from garrison.supervisor.settings import Worker as Definition
from garrison.supervisor.worker import ending
from garrison.supervisor.worker.configuration import ConfigurationState, Offer, pace_of
from garrison.supervisor.worker.endings import exit_status, facts_of
from garrison.supervisor.worker.guard import AT_ONCE
from garrison.supervisor.worker.intake import Hooks, Intake
from garrison.supervisor.worker.judge import Judge, told
from garrison.supervisor.worker.launch import KilledError, launch
from garrison.supervisor.worker.modules import asks_again
from garrison.supervisor.worker.node import WorkerNode, limits_of
from garrison.supervisor.worker.process import WorkerProcess
from garrison.supervisor.worker.rights import rights_of
from garrison.supervisor.worker.services import Services

SWEEP_SECONDS = 5.0
"""Time between two tries to get rid of what an earlier process has left."""
ASKED_PER_MODULE = 5
"""So often an hour, for each of its modules, a worker may ask to be started again: then the module is latched."""
ASKED_SECONDS = 3600.0

Held = Literal["freeze", "stop"]


class WorkerSupervisor:
    """Supervises one worker. All methods are called from the master's loop.

    Args:
        name: The worker's name.
        definition: What it runs.
        desired: How it is wanted.
        services: The agent around it.
        taken: The configuration that it last took, from before this master's start.
        record: What is known of its breaker from then.
    """

    def __init__(
        self,
        name: str,
        definition: Definition,
        desired: WorkerDesired,
        services: Services,
        taken: Offer | None = None,
        record: Record | None = None,
    ) -> None:
        self.name = name
        self.definition = definition
        self.desired = desired
        self.state = State.STOPPED
        self.ledger = services.ledger(name)
        self.configuration = ConfigurationState(taken)
        self.process: WorkerProcess | None = None
        self.node = WorkerNode(name, services.place, self._out_of_memory, self._problem)
        self.restarts = 0
        self.starts = 0
        self.last_error: str | None = None
        self._services = services
        hooks = Hooks(ready=self._ready, error=self._complaint, breach=self._broken, gone=self.poke)
        rate, burst = desired.budget.events_per_second, desired.budget.events_burst_seconds
        self._intake = Intake(name, services, self.ledger, self.configuration, rate, burst, hooks)
        self.judge = Judge(self, self._intake, services, record)
        self.guard = self.judge.guard
        self._pace = pace_of(desired.budget, dry_run=self.dry_run, acks=services.acks)
        self._nofile = desired.budget.nofile
        self._held: tuple[Held | None, str] = (None, "")
        self._frozen_at: float | None = None
        self._degraded = False
        self._asked: list[float] = []
        self._restart_wanted = False
        self._reset_wanted = False
        self._closing = False
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"worker {name}")
        self.want(desired, definition)

    @property
    def breaker(self) -> Breaker:
        """The state of its breaker."""
        return self.guard.breaker

    @property
    def dry_run(self) -> bool:
        """Whether what the breaker would do is only reported."""
        return self.judge.dry_run

    @property
    def held_reason(self) -> str:
        """Why it stands still or does not run although it should; empty where nothing holds it."""
        return self._held[1]

    @property
    def caps(self) -> Limits:
        """The caps of its budget, as they are where nothing is throttled or shared."""
        return limits_of(self.desired.budget, essential=self.definition.essential)

    @property
    def limits(self) -> Limits | None:
        """The caps in force; None before the first start."""
        return self.node.limits

    # What the agent asks for

    def want(self, desired: WorkerDesired, definition: Definition | None = None) -> None:
        """Take a new desired state; what follows from it happens in the worker's own task."""
        if definition is not None and definition != self.definition:
            changed = _runs(definition) != _runs(self.definition)
            self.definition = definition
            self._restart_wanted = self._restart_wanted or changed
        self.desired = desired
        self._reset_wanted |= self.guard.configure(self._configured(), desired.reset_token)
        self._intake.limit(desired.budget.events_per_second, desired.budget.events_burst_seconds)
        if self.process is not None:
            self.process.limit(desired.budget.events_per_second)
        pace, self._pace = self._pace, pace_of(desired.budget, dry_run=self.dry_run, acks=self._services.acks)
        offer = Offer(
            revision=desired.revision,
            hash=desired.hash,
            settings=desired.settings,
            rules=desired.rules,
            log_level=desired.log_level,
        )
        if self.configuration.offers(offer) or pace != self._pace:
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

    def hold(self, action: Held | None, reason: str) -> None:
        """Have it stand still or not run for the host's sake, whatever is desired, until None is asked for."""
        if (action, reason) != self._held:
            self._held = (action, reason if action else "")
            self.poke()

    def breathe(self, running: bool) -> None:
        """Let a worker that is held frozen run for a moment, or end that; its state does not change."""
        if self.state is State.FROZEN and self._held[0] == "freeze" and self.node.frozen == running:
            self.node.freeze(not running or self.desired.action == "freeze")

    def allow(self, percent: float, seconds: float) -> None:
        """Let a task use more CPU than usual: percent of one core up to the quota, for so many seconds."""
        self.guard.allow(percent, self._now() + seconds)

    # What it uses

    def observe(self, planned: float) -> None:
        """Take the next sample of its process and judge it.

        Args:
            planned: Seconds between two calls, as the caller means it: what is later than that is not held against it.
        """
        now = self._now()
        if self.judge.observe(planned, now) and self._due(now):
            self.poke()

    def trip(self, verdict: Verdict) -> None:
        """Open the circuit: the worker is ended and waits. With `dry_run` this is only reported."""
        self.judge.trip(verdict, self._now())

    def condemn(self, verdict: Verdict) -> None:
        """Open the circuit, also where breaches are only reported: for what cannot go on, and for caps."""
        self.judge.condemn(verdict, self._now())

    def throttle(self, verdict: Verdict) -> None:
        """Lower its CPU quota for a while, then give it back or trip; soon after an earlier one it trips at once.

        No effect on one that is throttled already, or is not running. With `dry_run` this is only reported.
        """
        self.judge.throttle(verdict, self._now())

    def share(self, percent: float | None) -> None:
        """Cap its CPU at its share of what all workers may use, percent of one core; None gives it its budget back."""
        if percent != self.guard.share_percent:
            self.guard.share_percent = percent
            self._wake.set()

    def _due(self, now: float) -> bool:
        """Tell whether the task has something to do that only shows in a sample, or with time."""
        self.guard.settle_level(now)
        return self.guard.degraded != self._degraded or self.node.retry_due(now)

    # What the process says

    def _ready(self, ready: Ready) -> None:
        """The modules run: the worker is running, or on probation."""
        if self.state is State.STARTING:
            self.guard.ready(self._now())
            on_probation = self.breaker.phase == "probation"
            self._to(Event.READY_ON_PROBATION if on_probation else Event.READY, modules=list(ready.modules))
        self.poke()

    def _complaint(self, text: str) -> None:
        self.last_error = text

    def _broken(self, reason: str) -> None:
        self.condemn(Verdict(cause="protocol", detail=reason))

    def _out_of_memory(self, usage: Usage) -> None:
        if usage.oom_origin == "own":
            self.condemn(self.judge.out_of_memory(usage))
        else:
            # All workers together had too much, and the kernel chose: what it has left of this one is no worker.
            self.node.kill()

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
        if self.judge.breach is not None:
            await self._trip()
            return self._again()
        if self._reset_wanted:
            self._reset()
        if self._closing or self._action() == "stop":
            reason = self._held[1] if self._held[0] == "stop" and self.desired.action != "stop" else "asked to stop"
            if self.process is not None:
                await self._stop(reason)
                return self._again()
            if self.state is not State.STOPPED:
                self._to(Event.STOP, reason=reason)
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

    def _action(self) -> str:
        """Return what is to be done: what is desired, unless the host needs it to do less."""
        actions = (self.desired.action, self._held[0])
        return next((action for action in ("stop", "freeze") if action in actions), "start")

    def _again(self) -> bool:
        self._wake.set()
        return False

    def _mend(self) -> bool:
        """After a failed step: never stay in a state that the next step cannot leave. True: the task is to end."""
        if self.process is None:
            self.judge.breach = None
            if self.state in ALIVE:
                self.state = State.STOPPED
            if self._closing:
                return True
        self._later(1.0)
        return False

    async def _start_when_allowed(self) -> None:
        wait = self.guard.start_in(self._now())
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
        budget = self.desired.budget
        limits = self.caps
        services = self._services
        epoch = services.next_epoch(self.name)
        held = self.guard.held_at(self._now())
        offered, pace = self.configuration.offer, self._pace
        config = self.configuration.first(pace, held)
        self._intake.begin(epoch, held, self._acknowledge if services.acks else None)
        self.judge.begin()
        self._degraded, self._frozen_at = False, None
        self._nofile = budget.nofile
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
        except (CgroupError, NurseryError, NoAccountError, FrameTooLargeError, OSError) as error:
            if isinstance(error, FrameTooLargeError):
                self._intake.on_applied(Applied(revision=config.revision, ok=False, error=str(error)))
            self._refused(str(error))
            return
        self.starts += 1
        self.restarts = self.starts - 1
        self.node.started(limits)
        services.sampler.begin(self.name, epoch, self._now())
        # What changed during the start found no process to be told to.
        self.process.limit(self.desired.budget.events_per_second)
        if self.configuration.offer.hash != offered.hash or self._pace != pace:
            self._send_config()

    def _acknowledge(self, priority: Priority, through: int) -> None:
        if self.process is not None:
            self.process.down.ack(priority, through)

    def _request(self) -> Spawn:
        definition = self.definition
        modules = tuple((module_name(spec), spec) for spec in definition.modules) if not definition.command else ()
        folder = os.path.join(self._services.state_dir, "workers", self.name)
        held = self._services.process_limits(self.caps)
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
            rights=rights_of(definition),
        )

    def _keep(self) -> None:
        """Bring a living process to its desired caps, to frozen or not, and to its breaker's state."""
        if not self._limit():
            return
        frozen = self._action() == "freeze"
        if self.state is not State.STARTING and frozen != (self.state is State.FROZEN):
            if frozen != self.node.frozen and (wait := self.node.freeze(frozen)):
                self._later(wait)
                return
            self._froze(frozen)
        elif self.state is State.FROZEN and self.desired.action == "freeze" and not self.node.frozen:
            self.node.freeze(True)
        if self.state is not State.FROZEN:
            self._follow_breaker()
        degraded, process = self.guard.degraded, self.process
        if degraded != self._degraded and process is not None and process.ready_at is not None:
            self._degraded = degraded
            process.down.control(Control("degrade" if degraded else "normal"))

    def _limit(self) -> bool:
        """Bring the node to the caps that hold now. False: that ends the process."""
        budget = self.desired.budget
        limits = self.guard.limits(budget, essential=self.definition.essential)
        if not self.node.limit(limits):
            in_force = self.node.limits
            if self.guard.throttled and in_force is not None and in_force.cpu_quota_percent != limits.cpu_quota_percent:
                self.condemn(Verdict(cause="cpu", detail="it cannot be throttled: its quota cannot be changed"))
                return False
            if budget.force and in_force is not None and in_force.memory_max != limits.memory_max:
                text = f"its new memory_max of {limits.memory_max} bytes does not hold what it uses, and force is set"
                self.condemn(Verdict(cause="memory", detail=text, resource="memory_max", limit=limits.memory_max or 0))
                return False
        if budget.nofile != self._nofile:
            self._nofile = budget.nofile
            self.node.limit_files(budget.nofile)
        return True

    def _froze(self, frozen: bool) -> None:
        if frozen:
            self._frozen_at = self._now()
            self._to(Event.FREEZE, reason=self._held[1])
            return
        self._thawed()
        phases = {"probation": Event.THAW_ON_PROBATION, "throttled": Event.THAW_THROTTLED}
        self._to(phases.get(self.breaker.phase, Event.THAW))

    def _thawed(self) -> None:
        """Count the time that it stood still for no probation and no throttle."""
        if self._frozen_at is not None:
            self.guard.stood(self._now() - self._frozen_at)
            self._frozen_at = None

    def _follow_breaker(self) -> None:
        """Show in the worker's state what its breaker's is."""
        now = self._now()
        self.guard.settle(now)
        if self.state is State.RUNNING and self.guard.throttled and self.guard.verdict is not None:
            self._to(Event.THROTTLE, **self.judge.facts(self.guard.verdict, now))
        elif self.state is State.THROTTLED and not self.guard.throttled:
            share = round(self.guard.watch.throttled_percent, 1)
            self._to(Event.RESTORE, throttled_periods_percent=share)
        elif self.state is State.PROBATION:
            if self.breaker.phase == "closed":
                self._to(Event.PASSED)
            else:
                self._later(self.breaker.probation_until - now)

    async def _stop(self, reason: str) -> None:
        process = self.process
        assert process is not None
        await self._end(process, reason)
        await self._bury()

    async def _end(self, process: WorkerProcess, reason: str) -> None:
        """End a process in good order: ask, SIGTERM, kill."""
        if self.state is not State.STOPPING:
            self._to(Event.STOP, reason=reason)
        if self.node.frozen:
            self.node.freeze(False)
        # What it is given to end with is not less than what it was given to run with.
        self.node.limit(self.caps)
        grace = self._services.grace()
        if not await ending.asked(process, reason, grace):
            self._log("warning", f"did not stop within {grace:g} s and is killed")
            await self._kill(process)

    async def _killed(self) -> None:
        if self.process is not None:
            await self._kill(self.process)
            await self._bury()
        if self.state is not State.KILLED:
            self._to(Event.KILL)

    async def _trip(self) -> None:
        breach, process = self.judge.breach, self.process
        if process is not None and breach is not None:
            if breach.cause in AT_ONCE:
                await self._kill(process)
            else:
                await self._end(process, f"tripped, {breach.cause}: {breach.detail}")
            await self._bury()
        self.judge.breach = None

    async def _kill(self, process: WorkerProcess) -> None:
        if not await ending.killed(process, self.node):
            self._problem(
                f"pid {process.pid} does not die; it may hang in the kernel (state D): look at /proc/PID/stack"
            )
            await process.wait_gone(ending.KILL_SECONDS)

    async def _bury(self) -> None:
        """Wind up a process that is gone (or will not go): its node, its pipes, its books, what follows."""
        process = self.process
        if process is None:
            return
        usage = self.node.usage()
        self.node.unwatch()
        # Children that outlived it die before the pipe is drained, so that nobody writes on.
        self.node.kill()
        process.drain()
        lost = process.close()
        self.process = None
        await self.node.remove()
        self._thawed()
        facts = facts_of(process.pid, process.epoch, process.report, lost)
        breach, self.judge.breach = self.judge.breach, None
        self._conclude(process, breach, usage, facts)

    def _conclude(self, process: WorkerProcess, breach: Verdict | None, usage: Usage, facts: dict[str, Any]) -> None:
        now, held = self._now(), dict(self.guard.held)
        if process.last_beat is not None and process.beat_at is not None and self._was_told(process):
            self.guard.heard(holds_of(process.last_beat, now - process.beat_at), now)
        if process.killed():
            # Also where it was released before this death was looked at: a kill by an operator is no crash.
            self.guard.ended(now)
            self._to(Event.KILL, **facts)
        elif breach is not None:
            self._tripped(process, breach, usage, facts)
        elif self.state is State.STOPPING:
            self.guard.ended(now)
            self._to(Event.ENDED, **facts)
        elif usage.oom_origin == "own":
            verdict = self.judge.out_of_memory(usage)
            self.guard.breached(verdict, now)
            self._tripped(process, verdict, usage, facts)
        elif usage.oom_origin == "ancestor":
            self.guard.refused(now)
            self.last_error = "killed by the kernel because all workers together reached their memory cap"
            self._to(Event.CRASHED, reason=self.last_error, retry_in_seconds=self._retry_in(), **facts)
        elif process.report is None:
            self.guard.ended(now)
            self._to(Event.LOST, reason="the nursery died", **facts)
        elif not self._again_without_a_module(process, held, facts):
            self._crashed(process, usage, facts)
        self._wake.set()

    def _was_told(self, process: WorkerProcess) -> bool:
        """Tell whether the last beat came after `ready`: before, the process knew nothing of its modules' breakers."""
        return process.ready_at is not None and (process.beat_at or 0.0) >= process.ready_at

    def _again_without_a_module(self, process: WorkerProcess, held: dict[str, Hold], facts: dict[str, Any]) -> bool:
        """Start a worker anew that ended itself for the sake of a module which would not stop. False: it did not."""
        module = asks_again(process.last_beat, held)
        if module is None or exit_status(process.report) != EXIT_WITHOUT_MODULE:
            return False
        now = self._now()
        self._asked = [at for at in self._asked if now - at < ASKED_SECONDS]
        if len(self._asked) >= ASKED_PER_MODULE * max(1, len(self.definition.modules)):
            return False
        self._asked.append(now)
        self.guard.ended(now)
        self._to(
            Event.AGAIN,
            module=module.name,
            cause=module.cause,
            task=module.last_task,
            module_retry_in_seconds=module.retry_in_seconds,
            reason=f"its module {module.name} did not stop when told to",
            **facts,
        )
        return True

    def _crashed(self, process: WorkerProcess, usage: Usage, facts: dict[str, Any]) -> None:
        now = self._now()
        ran = now - process.ready_at if process.ready_at is not None else 0.0
        how = str(facts["exit"])
        # What it said last is usually the reason.
        said = self._intake.said
        self.last_error = f"{how}: {said}" if said else how
        verdict = Verdict(cause="crash", detail=self.last_error)
        opened = self.guard.crashed(now, ran, verdict)
        self._to(Event.CRASHED, reason=self.last_error, retry_in_seconds=self._retry_in(), **facts)
        if opened:
            self._to(self._opened(), **self.guard.facts(verdict, now, usage, process.last_beat))

    def _tripped(self, process: WorkerProcess, verdict: Verdict, usage: Usage, facts: dict[str, Any]) -> None:
        self.last_error = verdict.detail or self.last_error
        told = self.guard.facts(verdict, self._now(), usage, process.last_beat)
        self._to(self._opened(), **{**told, **facts})

    def _opened(self) -> Event:
        return Event.LATCH if self.breaker.phase == "latched" else Event.TRIP

    def _refused(self, reason: str) -> None:
        self.guard.refused(self._now())
        self.last_error = reason
        self._log("err", f"not started: {reason}")
        self._to(Event.REFUSED, reason=reason, retry_in_seconds=self._retry_in())
        self._later(self._retry_in() or 1.0)

    def _reset(self) -> None:
        self._reset_wanted = False
        self.guard.reset()
        beat = self._beat()
        if self.process is not None and beat is not None and any(module.trips for module in beat.modules):
            self.process.down.control(Control("reset"))
        if self.state in (State.TRIPPED, State.LATCHED, State.FAILED):
            self._to(Event.RESET)

    # Small things

    def _retry_in(self) -> float | None:
        return self.guard.retry_in(self._now())

    def _beat(self) -> Beat | None:
        return self.process.last_beat if self.process is not None else None

    def _configured(self) -> str:
        """Return what stands for all that the worker is told to be: another one is a new attempt."""
        budget = msgspec.structs.replace(self.desired.budget, force=False, dry_run=False)
        definition = self.definition
        program, rights = _runs(definition)
        # Rights that nobody has set count for nothing: another version of the agent is no new attempt of the worker.
        return short_hash(self.desired.hash, budget, *program, *(rights if rights != _runs(Definition())[1] else ()))

    def _send_config(self) -> None:
        if self.process is None or self.process.gone:
            return
        config = self.configuration.current(self._pace)
        try:
            self.process.down.configure(config)
        except FrameTooLargeError as error:
            self._intake.on_applied(Applied(revision=config.revision, ok=False, error=str(error)))

    def _to(self, event: Event, **facts: Any) -> None:
        before, self.state = self.state, after(self.state, event)
        facts = told(facts)
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


def _runs(definition: Definition) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Return what makes another process of a worker: what it runs, and with which rights."""
    program = (definition.modules, definition.command, definition.environment)
    return program, (definition.user, definition.capabilities, definition.system_calls)


def module_name(spec: str) -> str:
    """Return the short name of a module's spec: ``process``, or the class name in lower case."""
    return spec.rpartition(":")[2].lower() if ":" in spec else spec
