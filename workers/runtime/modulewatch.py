"""The watch over the modules of one process: measures their CPU time and carries out what their breakers decide.

It runs in the main thread, which only tells: a module is stopped by being asked to, and starts again when its
cool-down is over. One that does not come back has the worker leave, to be started again without it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from garrison.ipc.messages import Beat, Config, Hold
from garrison.workers.runtime.catcher import ModuleThread
from garrison.workers.runtime.logs import PipeLogger
from garrison.workers.runtime.modulebreaker import (
    HELD_INTERPRETER,
    Circuit,
    Policy,
    Use,
    held,
    judge,
    released,
    reset,
    settled,
    tripped,
)
from garrison.workers.runtime.stallguard import StallGuard

STOP_SECONDS: Final = 5.0
"""How long a module may take to return after it was told to."""
LOOK_SECONDS: Final = 0.25
"""Time between two looks at a module that was told to return. A look that comes late, because the process was frozen
or throttled, counts as this much."""

MIN_SAMPLE_SECONDS: Final = 0.1
"""Looking more often would cost more than it finds."""


class ModuleWatch:
    """Judges the modules of a worker that has several; with a single one it only tells it what it may use.

    Args:
        modules: The modules that could be loaded.
        identity: Host and worker, for the jitter.
        state_dir: The worker's own directory.
        log: The runtime's own logger.
    """

    def __init__(
        self, modules: Sequence[ModuleThread], identity: tuple[str, str], state_dir: str, log: PipeLogger
    ) -> None:
        self._modules = {module.name: module for module in modules}
        self._identity = identity
        self._log = log
        self._policy = Policy()
        self._sample_seconds = 5.0
        self._circuits = {name: Circuit() for name in self._modules} if len(self._modules) > 1 else {}
        self._used: dict[str, float] = {}
        self._used_by_all = 0.0
        self._sampled_at: float | None = None
        self._percent: dict[str, float] = {}
        self._beat_used: dict[str, float] = {}
        self._patience: dict[str, float] = {}
        self._looked_at = 0.0
        self._guard = StallGuard(state_dir) if self._circuits else None
        self._turn_seconds = 5.0
        self._quota_percent = 10.0
        self._dry_run = False
        self._would_trips: dict[str, int] = {}
        self.given_up = ""
        """Name of a module that did not return within `STOP_SECONDS`: the worker is to leave."""

    def configure(self, config: Config) -> None:
        """Take the numbers of a configuration."""
        self._turn_seconds = max(config.sample_seconds, config.beat_seconds, 1.0)
        self._quota_percent = config.cpu_quota_percent
        self._dry_run = config.dry_run
        self._policy = Policy(trip_percent=config.cpu_trip_percent, samples=config.cpu_trip_samples)
        sample_seconds = max(config.sample_seconds, MIN_SAMPLE_SECONDS)
        if sample_seconds != self._sample_seconds:
            self._sample_seconds, self._sampled_at = sample_seconds, None
        share = config.cpu_trip_percent / max(1, len(self._modules))
        for module in self._modules.values():
            module.mailbox.allowance.budget(share, config.cpu_quota_percent, sample_seconds)

    def begin(self, holds: dict[str, Hold], now: float) -> None:
        """Take what an earlier process knew; to be called before the modules are started."""
        for name, hold in holds.items():
            if name in self._circuits:
                self._becomes(name, held(hold, now, self._policy), now)
        guard = self._guard
        if guard is None:
            return
        for module in self._modules.values():
            module.began = guard.enrol
        guard.begin()
        self._wind_up(now)
        if not guard.stack:
            return
        name = guard.stalled
        self._log.error(
            "the process before was ended: %s held the interpreter's lock at %s",
            f"module {name}" if name else "a thread that is no module's",
            guard.stack,
        )
        if name in self._circuits:
            circuit = self._circuits[name]
            identity = (*self._identity, name)
            self._becomes(name, tripped(circuit, HELD_INTERPRETER, now, self._policy, identity), now)

    def reset(self, now: float) -> None:
        """Close every breaker, as an operator asked."""
        for name in self._circuits:
            self._becomes(name, reset(self._circuits[name], now), now)

    def settings_changed(self, name: str) -> None:
        """A stopped module has other settings: a new attempt, what it was stopped for may be gone with them."""
        if name in self._circuits and self._circuits[name].stopped:
            now = time.monotonic()
            self._becomes(name, reset(self._circuits[name], now), now)

    def step(self, now: float) -> None:
        """Do what is due: take a sample, start whose wait is over, look after who was told to return."""
        if not self._circuits:
            return
        self._wind_up(now)
        if self._sampled_at is None:
            self._begin_sample(now)
        elif now - self._sampled_at >= self._sample_seconds:
            self._sample(now)
        for name, circuit in self._circuits.items():
            self._becomes(name, released(circuit, now, self._policy), now)
        self._look_after(now)

    def deadline(self) -> float | None:
        """Return when `step` is to be called at the latest (monotonic seconds), or None."""
        if self._sampled_at is None:
            return None
        times = [self._sampled_at + self._sample_seconds]
        times += [circuit.retry_at for circuit in self._circuits.values() if circuit.phase == "open"]
        if self._patience:
            times.append(self._looked_at + LOOK_SECONDS)
        return min(times)

    def describe(self, beat: Beat, now: float) -> None:
        """Put what is known of the modules into a beat."""
        busiest, most = "", 0.0
        for module in beat.modules:
            used = module.cpu_seconds - self._beat_used.get(module.name, 0.0)
            self._beat_used[module.name] = module.cpu_seconds
            if used > most:
                busiest, most = module.name, used
            module.would_trips = self._would_trips.get(module.name, 0)
            module.cpu_percent = round(self._percent.get(module.name, 0.0), 3)
            circuit = self._circuits.get(module.name)
            if circuit is None:
                continue
            circuit = settled(circuit, now, self._policy)
            module.level, module.trips, module.cause = circuit.level, circuit.trips, circuit.cause
            module.probation = circuit.phase == "probation"
            if circuit.stopped:
                module.state = "latched" if circuit.phase == "latched" else "tripped"
                module.retry_in_seconds = None if circuit.phase == "latched" else max(0.0, circuit.retry_at - now)
        only = beat.modules[0].name if len(beat.modules) == 1 else ""
        beat.last_module = only or busiest

    def _wind_up(self, now: float) -> None:
        if self._guard is None:
            return
        if self._dry_run:
            self._guard.end()
            return
        self._guard.wind_up(now, self._turn_seconds, self._quota_percent)

    def end(self) -> None:
        """The worker is stopping: nothing is judged any more."""
        if self._guard is not None:
            self._guard.end()

    # Samples

    def _begin_sample(self, now: float) -> None:
        self._used = {name: module.cpu_seconds() for name, module in self._modules.items()}
        self._used_by_all = time.process_time()
        self._sampled_at = now

    def _sample(self, now: float) -> None:
        assert self._sampled_at is not None
        elapsed = now - self._sampled_at
        before, before_all = self._used, self._used_by_all
        self._begin_sample(now)
        use: dict[str, Use] = {}
        limit = self._policy.trip_percent
        for name, module in self._modules.items():
            percent = max(0.0, self._used[name] - before[name]) / elapsed * 100
            allowance = module.mailbox.allowance
            share = allowance.percent(now)
            limit += share - allowance.share  # what a task was allowed is nobody's breach
            use[name] = Use(percent, share)
            self._percent[name] = percent
        total = (self._used_by_all - before_all) / elapsed * 100
        after = judge(self._circuits, use, total, limit, now, self._policy, self._identity)
        for name, circuit in after.items():
            self._becomes(name, self._only_told(name, circuit, now) if self._dry_run else circuit, now)

    def _only_told(self, name: str, circuit: Circuit, now: float) -> Circuit:
        """Say what would follow from a sample, and return a circuit from which nothing does."""
        before = settled(self._circuits[name], now, self._policy)
        if circuit.trips > before.trips:
            self._would_trips[name] = self._would_trips.get(name, 0) + 1
            self._log.warning("dry_run: module %s would be stopped: %s", name, self._usage(self._modules[name], now))
            return msgspec.structs.replace(before, over=0, under=0)
        if circuit.phase == "degraded" and before.phase != "degraded":
            if circuit.over == self._policy.degrade_after:
                usage = self._usage(self._modules[name], now)
                self._log.warning("dry_run: module %s would be asked to do less: %s", name, usage)
            return msgspec.structs.replace(circuit, phase=before.phase)
        return circuit

    # What follows

    def _becomes(self, name: str, circuit: Circuit, now: float) -> None:
        """Take a new state of a module's breaker, and carry out what it means."""
        before = self._circuits[name]
        self._circuits[name] = circuit
        if circuit.phase == before.phase:
            return
        module = self._modules[name]
        module.mailbox.breaker_degraded = circuit.phase == "degraded"
        if circuit.stopped and not before.stopped:
            self._patience[name] = 0.0
            self._looked_at = now
            module.mailbox.hold()
        elif before.stopped and not circuit.stopped:
            self._patience.pop(name, None)
            module.mailbox.release()
        self._tell(module, before, circuit, now)

    def _tell(self, module: ModuleThread, before: Circuit, circuit: Circuit, now: float) -> None:
        used = self._usage(module, now)
        match circuit.phase:
            case "degraded":
                self._log.warning("module %s is asked to do less: %s", module.name, used)
            case "open":
                wait = max(0.0, circuit.retry_at - now)
                self._log.error("module %s is stopped for %.0f s (%s): %s", module.name, wait, circuit.cause, used)
            case "latched":
                self._log.error(
                    "module %s is stopped (%s) until a reset or other settings: %s", module.name, circuit.cause, used
                )
            case "probation":
                self._log.notice("module %s starts again, on probation", module.name)
            case "closed":
                self._log.notice("module %s is back to normal (%s)", module.name, before.phase)

    def _usage(self, module: ModuleThread, now: float) -> str:
        return (
            f"{self._percent.get(module.name, 0.0):.1f} % of a core in the last {self._sample_seconds:g} s, "
            f"its share is {module.mailbox.allowance.percent(now):.3g} %, last work: {module.mailbox.last_task or '-'}"
        )

    def _look_after(self, now: float) -> None:
        if not self._patience:
            return
        spent = min(now - self._looked_at, LOOK_SECONDS)
        self._looked_at = now
        for name in list(self._patience):
            module = self._modules[name]
            if module.parked or not module.alive:
                del self._patience[name]
                continue
            self._patience[name] += spent
            if self._patience[name] > STOP_SECONDS and not self.given_up:
                self.given_up = name
                self._log.error(
                    "module %s does not return although it was told to %.0f s ago, last work: %s; "
                    "the worker starts again without it",
                    name,
                    STOP_SECONDS,
                    module.mailbox.last_task or "-",
                )
