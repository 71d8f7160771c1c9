"""Judges the process of one worker: samples become verdicts, and verdicts a throttle, a trip, or a report of one.

It decides and notes; what follows (the end of a process, other caps) is the supervisor's, in its own task.
"""

from __future__ import annotations

from typing import Any, Protocol

from garrison.supervisor.breaker import Breaker, Cause, Record
from garrison.supervisor.budget.watch import Look, Verdict
from garrison.supervisor.cgroups.base import Usage
from garrison.supervisor.desired import WorkerDesired
from garrison.supervisor.lifecycle import WORKING, State
from garrison.supervisor.linux import run_delay
from garrison.supervisor.worker.guard import Guard
from garrison.supervisor.worker.intake import Intake
from garrison.supervisor.worker.node import WorkerNode
from garrison.supervisor.worker.process import WorkerProcess
from garrison.supervisor.worker.services import Services

WATCHED = (*WORKING, State.STARTING, State.FROZEN)
"""States in which a process is judged."""
WOULD_SECONDS = 60.0
"""Least time between two reports of what a breach of one cause would have led to."""


class Judged(Protocol):
    """What the judge sees of a worker, and the one thing that it asks of it."""

    name: str
    state: State
    desired: WorkerDesired
    process: WorkerProcess | None
    node: WorkerNode

    def poke(self) -> None:
        """Have the worker's task look at everything again."""


class Judge:
    """Judges one worker.

    Args:
        worker: Whom.
        intake: Takes what its process sends.
        services: The agent around it.
        record: What is known of its breaker from before this master's start; None: nothing.

    Attributes:
        guard: Its breaker.
        breach: What its present process is to be ended for; None while there is nothing.
    """

    def __init__(self, worker: Judged, intake: Intake, services: Services, record: Record | None) -> None:
        self.guard = Guard(worker.name, services, record)
        self.breach: Verdict | None = None
        self._worker = worker
        self._intake = intake
        self._services = services
        self._stood = False
        self._delay: float | None = None
        self._reported: dict[Cause, float] = {}

    @property
    def breaker(self) -> Breaker:
        """The state of its breaker."""
        return self.guard.breaker

    @property
    def dry_run(self) -> bool:
        """Whether what the breaker would do is only reported."""
        return bool(self._worker.desired.budget.dry_run) or self._services.dry_run()

    def begin(self) -> None:
        """A new process starts: nothing is held against it."""
        self.guard.begin()
        self.breach = None
        self._stood, self._delay = False, None

    def observe(self, planned: float, now: float) -> bool:
        """Take the next sample of its process and judge it. False: there is none to judge.

        Args:
            planned: Seconds between two calls, as the caller means it: what is later than that is not held against it.
            now: The loop's time.
        """
        worker, process = self._worker, self._worker.process
        if process is None or process.gone or self.breach is not None or worker.state not in WATCHED:
            return False
        facts = self._intake.facts(process.pid)
        sample = self._services.sampler.sample(worker.name, process.epoch, now, planned * 0.9, facts)
        frozen = worker.state is State.FROZEN
        look = Look(
            planned=planned,
            ready=process.ready_at is not None,
            frozen_seconds=sample.seconds if frozen or self._stood else 0.0,
            waited_seconds=self._waited(process.pid) if sample.beats == 0 else 0.0,
        )
        self._stood = frozen
        verdict = self.guard.look(sample, look, worker.desired.budget, now)
        if verdict is not None and verdict.cause == "cpu":
            self._throttle_or_trip(verdict, now)
        elif verdict is not None:
            self.trip(verdict, now)
        elif self.guard.throttled and not frozen:
            self._end_throttle(now)
        return True

    def throttle(self, verdict: Verdict, now: float) -> None:
        """Lower its CPU quota for a while, then give it back or trip; soon after an earlier one it trips at once.

        No effect on one that is throttled already, or is not running. With `dry_run` this is only reported.
        """
        if self._worker.state in (*WORKING, State.STARTING) and not self.guard.throttled:
            self._throttle_or_trip(verdict, now)

    def trip(self, verdict: Verdict, now: float) -> None:
        """Open the circuit, or report with `dry_run` that it would be."""
        if self.dry_run:
            self._would("trip", verdict, now)
        else:
            self.condemn(verdict, now)

    def condemn(self, verdict: Verdict, now: float) -> None:
        """Open the circuit, also where breaches are only reported: for what cannot go on. The first breach counts."""
        if self._worker.process is not None and self.breach is None and self._worker.state is not State.STOPPING:
            self.guard.breached(verdict, now)
            self.breach = verdict
            self._worker.poke()

    def out_of_memory(self, usage: Usage) -> Verdict:
        """Return the verdict on a worker in which the kernel has killed at its own cap."""
        limits = self._worker.node.limits
        limit = limits.memory_max if limits is not None and limits.memory_max is not None else 0
        return Verdict(
            cause="oom",
            detail=f"killed by the kernel at its memory_max of {limit} bytes",
            resource="memory_max",
            value=max(usage.memory_working_bytes, limit),
            limit=limit,
        )

    def facts(self, verdict: Verdict, now: float) -> dict[str, Any]:
        """Return what is told of a verdict on the present process, the kernel's counters included."""
        return self.guard.facts(verdict, now, self._worker.node.usage(), self._beat())

    def _throttle_or_trip(self, verdict: Verdict, now: float) -> None:
        if not self.guard.may_throttle(now) or self._worker.state is State.FROZEN:
            self.trip(verdict, now)
        elif self.dry_run:
            self._would("throttle", verdict, now)
        elif self.breach is None:
            self.guard.throttle(verdict, self._worker.desired.budget, now)
            text = f"throttled to {self.breaker.cap_percent:g} % of a core: {verdict.detail}"
            self._services.log("warning", self._worker.name, text)
            self._worker.poke()

    def _would(self, what: str, verdict: Verdict, now: float) -> None:
        if now - self._reported.get(verdict.cause, -WOULD_SECONDS) < WOULD_SECONDS:
            return
        self._reported[verdict.cause] = now
        name = self._worker.name
        facts = told(self.guard.facts(verdict, now, self._worker.node.usage(), self._beat(), retry=False))
        self._services.log("warning", name, f"dry_run: would {what}: {verdict.detail}")
        self._services.emit_state(f"breaker-would-{what}", {"worker": name, "dry_run": True, **facts})

    def _end_throttle(self, now: float) -> None:
        if (verdict := self.guard.end_throttle(now)) is not None:
            self.breach = verdict
        if not self.guard.throttled:
            self._worker.poke()

    def _waited(self, pid: int) -> float:
        """Return the seconds for which it could have run since the last call and got no CPU."""
        before, self._delay = self._delay, run_delay(pid)
        return max(0.0, self._delay - before) if before is not None and self._delay is not None else 0.0

    def _beat(self) -> Any:
        return self._worker.process.last_beat if self._worker.process is not None else None


def told(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what there is to tell: without what is not known."""
    return {key: value for key, value in facts.items() if value not in (None, "", [])}
