"""The breaker of one worker as its supervisor uses it: kept on disk, told with its numbers. No I/O of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec

from garrison.ipc.messages import Beat, Hold, last_work_of
from garrison.supervisor import breaker as circuit
from garrison.supervisor.breaker import Breaker, Cause, Record
from garrison.supervisor.budget import watch as watching
from garrison.supervisor.budget.watch import Look, Verdict, Watch
from garrison.supervisor.cgroups.base import Limits, Usage
from garrison.supervisor.sampler import Sample
from garrison.supervisor.settings import Budget
from garrison.supervisor.worker.node import limits_of
from garrison.supervisor.worker.services import Services

AT_ONCE: frozenset[Cause] = frozenset({"oom", "protocol", "pids", "aggregate"})
"""Breaches that are ended without a polite request first: it could not be read, or it would take too long."""


class Guard:
    """Judges one worker.

    Args:
        name: The worker's name.
        services: The agent around it.
        record: What is known of it from before this master's start; None: nothing.

    Attributes:
        breaker: The state of its breaker.
        watch: What is remembered of the samples of its process.
        verdict: The last breach that had a consequence; None before the first.
        held: What its last process knew of its modules' own breakers.
        trips: How often the circuit has opened since the master started, by cause.
        throttles: How often the CPU quota was lowered since then.
        share_percent: What it may use while all workers together want more than they may, percent of one core;
            None: its budget holds.
    """

    def __init__(self, name: str, services: Services, record: Record | None) -> None:
        record = record or Record()
        self.breaker: Breaker = record.breaker
        self.watch = Watch()
        self.verdict: Verdict | None = None
        self.held: dict[str, Hold] = dict(record.held)
        self.trips: Counter[Cause] = Counter()
        self.throttles = 0
        self.share_percent: float | None = None
        self._configured = record.configured
        self._reset_token = record.reset_token
        self._heard_at: float | None = None
        self._allowed: tuple[float, float] = (0.0, 0.0)
        self._name = name
        self._services = services

    # What is asked

    @property
    def record(self) -> Record:
        """What is to be kept on disk."""
        return Record(
            breaker=self.breaker, configured=self._configured, reset_token=self._reset_token, held=dict(self.held)
        )

    @property
    def throttled(self) -> bool:
        """Whether the worker runs with less CPU than its budget says."""
        return self.breaker.phase == "throttled"

    @property
    def degraded(self) -> bool:
        """Whether the worker should be told to do less."""
        return self.throttled or watching.strained(self.watch)

    def limits(self, budget: Budget, *, essential: bool = False) -> Limits:
        """Return the caps of the worker's node: its budget's, with less CPU while it is throttled or shares."""
        cap = self.quota_percent(budget)
        if self.share_percent is not None:
            cap = min(cap, self.share_percent)
        return replace(limits_of(budget, essential=essential), cpu_quota_percent=cap)

    def quota_percent(self, budget: Budget) -> float:
        """Return what it may use by itself, percent of one core: its budget's quota, or less while it is throttled."""
        return min(budget.cpu_quota_percent, self.breaker.cap_percent) if self.throttled else budget.cpu_quota_percent

    def start_in(self, now: float) -> float | None:
        """Return the seconds until a start is allowed, 0 for at once, None for never."""
        self._set(circuit.settled(self.breaker, now, self._services.policy))
        return circuit.may_start_in(self.breaker, now)

    def retry_in(self, now: float) -> float | None:
        """Return the same for people."""
        wait = circuit.may_start_in(self.breaker, now)
        return None if wait is None else round(wait, 3)

    def settle(self, now: float) -> None:
        """Let time pass: probation, quiet hours."""
        self._set(circuit.settled(self.breaker, now, self._services.policy))

    def settle_level(self, now: float) -> None:
        """Let a quiet hour take a level off, while it runs with its whole budget."""
        if self.breaker.phase == "closed":
            self.settle(now)

    def held_at(self, now: float) -> dict[str, Hold]:
        """Return what the next process has to know of its modules, the time since the last one taken off."""
        passed = max(0.0, now - self._heard_at) if self._heard_at is not None else 0.0
        return {
            name: msgspec.structs.replace(hold, retry_in_seconds=max(0.0, hold.retry_in_seconds - passed))
            for name, hold in self.held.items()
        }

    # What is wanted

    def configure(self, configured: str, reset_token: str) -> bool:
        """Take note of what the worker is to run and of the newest reset key. True: an open circuit is to be closed."""
        reset = self._reset_token is not None and reset_token != self._reset_token
        # A changed configuration is a new attempt: what tripped may be gone with it.
        changed = self._configured not in ("", configured)
        if changed:
            self.held = {}
        if changed or reset or self._configured != configured or self._reset_token != reset_token:
            self._configured, self._reset_token = configured, reset_token
            self._services.remember()
        return reset or (changed and self.breaker.phase in ("latched", "open"))

    def allow(self, percent: float, until: float) -> None:
        """Let a task use more CPU than usual, percent of one core up to the quota, until a monotonic time."""
        self._allowed = (percent, until)

    def reset(self) -> None:
        """Close the circuit, and forgive the modules."""
        self.held = {}
        self._set(circuit.reset(self.breaker), always=True)

    # What happens

    def begin(self) -> None:
        """A new process: nothing of the one before counts against it."""
        self.watch = Watch()
        self._allowed = (0.0, 0.0)

    def look(self, sample: Sample, look: Look, budget: Budget, now: float) -> Verdict | None:
        """Take a sample; returns the breach that it completes. What follows from it is for the caller to ask for."""
        percent, until = self._allowed
        look = msgspec.structs.replace(
            look, allowance_percent=percent if now < until else 0.0, throttled=self.throttled
        )
        self.watch, verdict = watching.judge(self.watch, sample, look, budget, self._services.policy)
        return verdict

    def may_throttle(self, now: float) -> bool:
        """Return whether a breach of CPU would only throttle."""
        self.settle(now)
        return circuit.may_throttle(self.breaker, now)

    def throttle(self, verdict: Verdict, budget: Budget, now: float) -> None:
        """Begin a throttle; ask `may_throttle` before."""
        self.verdict = verdict
        self.throttles += 1
        self.watch = watching.throttle_begins(self.watch)
        cap = watching.throttle_cap(budget)
        self._set(circuit.throttled(self.breaker, verdict.cause, cap, now, self._services.policy))

    def end_throttle(self, now: float) -> Verdict | None:
        """End a throttle whose time is over; returns the breach where the worker did not do with less."""
        services, breaker = self._services, self.breaker
        share = self.watch.throttled_percent
        after = circuit.unthrottled(breaker, share, now, services.policy, services.host, self._name)
        if after.phase in ("throttled", "closed"):
            self._set(after)
            return None
        limit = services.policy.throttled_percent
        self.verdict = Verdict(
            cause=breaker.cause or "cpu",
            detail=f"stood at its lowered quota of {breaker.cap_percent:g} % in {share:.0f} % of its periods "
            f"for {services.policy.throttle:g} s",
            resource="throttled_periods_percent",
            value=round(share, 1),
            limit=limit,
            window_seconds=services.policy.throttle,
        )
        self._set(after)
        return self.verdict

    def breached(self, verdict: Verdict, now: float) -> None:
        """Open the circuit."""
        services = self._services
        self.verdict = verdict
        self._set(circuit.breached(self.breaker, verdict.cause, now, services.policy, services.host, self._name))

    def crashed(self, now: float, ran: float, verdict: Verdict) -> bool:
        """Note a crash after `ran` seconds of being ready. True: it opens the circuit."""
        services, before = self._services, self.breaker.trips
        self._set(circuit.crashed(self.breaker, now, ran, services.policy, services.host, self._name))
        if self.breaker.trips > before:
            self.verdict = verdict
        return self.breaker.trips > before

    def refused(self, now: float) -> None:
        """Note a start that came to nothing through no fault of the worker's."""
        services = self._services
        self._set(circuit.refused(self.breaker, now, services.policy, services.host, self._name))

    def ready(self, now: float) -> None:
        """Note that the modules run."""
        self._set(circuit.started(self.breaker, now, self._services.policy))

    def ended(self, now: float) -> None:
        """Note an end through no fault of the worker's."""
        self._set(circuit.ended(self.breaker, now, self._services.policy))

    def stood(self, seconds: float) -> None:
        """Note that the worker had been frozen for so long."""
        self._set(circuit.extended(self.breaker, seconds))

    def heard(self, held: dict[str, Hold], now: float) -> None:
        """Note what the worker's process knew of its modules when it ended."""
        self._heard_at = now
        if held != self.held:
            self.held = held
            self._services.remember()

    # What is told

    def facts(
        self, verdict: Verdict, now: float, usage: Usage | None, beat: Beat | None, *, retry: bool = True
    ) -> dict[str, Any]:
        """Return what an event tells of a breach.

        Args:
            verdict: The breach.
            now: Monotonic seconds.
            usage: The kernel's counters of the process; None where they are not known.
            beat: Its last sign of life, which names the module and task that ran last; a claim.
            retry: Whether it says when the next start is.
        """
        module, task = last_work_of(beat)
        facts: dict[str, Any] = {
            "cause": verdict.cause,
            "reason": verdict.detail,
            "resource": verdict.resource,
            "value": verdict.value if verdict.resource else None,
            "limit": verdict.limit if verdict.resource else None,
            "window_seconds": verdict.window_seconds or None,
            "module": module,
            "task": task,
            "trips": self.breaker.trips,
            "level": self.breaker.level or None,
        }
        if usage is not None:
            facts |= {
                "periods": usage.periods,
                "throttled_periods": usage.throttled_periods,
                "throttled_seconds": round(usage.throttled_seconds, 3),
                "oom_kills": usage.oom_kills,
                "pids_refused": usage.pids_refused,
            }
        if self.throttled:
            facts["cap_percent"] = self.breaker.cap_percent
            facts["until_seconds"] = round(max(0.0, self.breaker.throttled_until - now), 1)
        elif retry:
            facts["retry_in_seconds"] = self.retry_in(now)
        return facts

    def _set(self, breaker: Breaker, *, always: bool = False) -> None:
        if always or breaker != self.breaker:
            if breaker.trips > self.breaker.trips and breaker.cause is not None:
                self.trips[breaker.cause] += 1
            self.breaker = breaker
            self._services.remember()
