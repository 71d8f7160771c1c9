"""Carries out what `budget.pressure` decides: workers are frozen and thawed, ended and let start again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from garrison.ipc.pacing import spread
from garrison.supervisor import logs
from garrison.supervisor.budget import pressure
from garrison.supervisor.budget.pressure import Action, Member, Reading, State
from garrison.supervisor.lifecycle import ALIVE
from garrison.supervisor.problems import Problems
from garrison.supervisor.sampler import Sampler
from garrison.supervisor.settings import Pressure
from garrison.supervisor.worker.supervisor import WorkerSupervisor

TOTAL_SHARE = 0.1
"""Most of the host's memory that the bound of available memory may be: 128 MiB would be much on a host of 512."""

_log = logs.get("pressure")


class GivingWay:
    """Holds workers for the host's sake.

    Args:
        host: Host name, for the spread of running turns.
        sampler: Where the workers' usage is known.
        problems: Where it is said that something is held.
        emit_state: Emits the agent's own events.
    """

    def __init__(
        self, host: str, sampler: Sampler, problems: Problems, emit_state: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self.state = State()
        self._host = host
        self._sampler = sampler
        self._problems = problems
        self._emit_state = emit_state
        self._held: dict[str, Action] = {}
        self._running: dict[str, bool] = {}

    def take(
        self,
        reading: Reading,
        workers: Mapping[str, WorkerSupervisor],
        settings: Pressure,
        total: int | None,
    ) -> None:
        """Judge a reading and act on it; for a worker with `dry_run` only say what would be done.

        Args:
            reading: What the host does without us.
            workers: By name.
            settings: The bounds.
            total: The host's memory, bytes; None where it is not known.
        """
        policy = policy_of(settings, total)
        members = [self._member(worker) for worker in workers.values() if worker.desired.action == "start"]
        self.state = pressure.judge(self.state, reading, members, policy)
        held = pressure.holds(self.state, members)
        if held != self._held:
            self._tell(held, reading, policy, {name for name, worker in workers.items() if worker.dry_run})
        self._held = held
        reason = self._reason()
        for name, worker in workers.items():
            action = None if worker.dry_run else held.get(name)
            if action is None and worker.held_reason:
                worker.hold(None, "")
            elif action is not None:
                worker.hold(action, reason)

    def breathe(self, workers: Mapping[str, WorkerSupervisor], settings: Pressure, now: float) -> float:
        """Let frozen workers run for their minimum of time; returns the seconds until that has to be looked at again.

        Args:
            workers: By name.
            settings: The share of the time.
            now: Monotonic seconds.
        """
        policy = policy_of(settings, None)
        wait = policy.duty_period
        frozen = {name for name, action in self._held.items() if action == "freeze" and name in workers}
        for name in frozen:
            running, rest = pressure.runs_while_frozen(now, spread(self._host, name, "duty"), policy)
            wait = min(wait, rest)
            if running != self._running.get(name, False) and workers[name].held_reason:
                workers[name].breathe(running)
                self._running[name] = running
        for name in self._running.keys() - frozen:
            del self._running[name]
        return wait

    def _member(self, worker: WorkerSupervisor) -> Member:
        process = worker.process
        memory = 0
        if process is not None and worker.state in ALIVE:
            sample = self._sampler.last(worker.name, process.epoch)
            memory = sample.usage.memory_working_bytes if sample is not None else 0
        definition = worker.definition
        return Member(name=worker.name, rank=(definition.essential, definition.priority), memory_bytes=memory)

    def _reason(self) -> str:
        memory = "available memory is low" if self.state.stopped else ""
        load = self.state.reason if self.state.frozen is not None else ""
        return "host pressure: " + ", ".join(text for text in (memory, load) if text)

    def _tell(self, held: Mapping[str, Action], reading: Reading, policy: pressure.Policy, dry: set[str]) -> None:
        changed = {
            "freeze": [name for name in held if held[name] == "freeze" and self._held.get(name) != "freeze"],
            "stop": [name for name in held if held[name] == "stop" and self._held.get(name) != "stop"],
            "release": [name for name in self._held if name not in held],
        }
        facts = {
            "cpu_percent": _rounded(reading.cpu_percent),
            "cpu_limit": policy.cpu_percent,
            "io_percent": _rounded(reading.io_percent),
            "io_limit": policy.io_percent,
            "memory_percent": _rounded(reading.memory_percent),
            "memory_limit": policy.memory_percent,
            "available_bytes": reading.available,
            "available_limit": policy.available,
        }
        for action, names in changed.items():
            if not names:
                continue
            reason = self._reason() if action != "release" else "the host has room again"
            spared = sorted(dry & set(names))
            would = "would " if len(spared) == len(names) else ""
            _log.warning("%s%s: %s: %s", would, action, ", ".join(sorted(names)), reason)
            self._emit_state(
                f"pressure-{action}",
                {"workers": sorted(names), "reason": reason, "dry_run": bool(would) or None, "spared": spared, **facts},
            )
        texts = []
        for action in ("freeze", "stop"):
            names = sorted(name for name in held if held[name] == action)
            if names:
                done = "frozen" if action == "freeze" else "ended"
                would = "would be " if dry.issuperset(names) else ""
                texts.append(
                    f"{self._reason()}: {would}{done}: {', '.join(names)}; they go on by themselves when it is over "
                    "(bounds: agent.pressure)"
                )
        self._problems.replace("pressure", texts)


def policy_of(settings: Pressure, total: int | None) -> pressure.Policy:
    """Return the policy's numbers for the settings. Pure.

    Args:
        settings: The bounds; 100 % and 0 bytes are never passed.
        total: The host's memory, bytes; None where it is not known.
    """
    available = settings.available_min if total is None else min(settings.available_min, int(total * TOTAL_SHARE))
    return pressure.Policy(
        cpu_percent=settings.cpu_percent,
        io_percent=settings.io_percent,
        memory_percent=settings.memory_percent,
        available=available,
        above=settings.above_seconds,
        below=settings.below_seconds,
        low=min(pressure.Policy().low, settings.above_seconds),
        step=min(pressure.Policy().step, settings.above_seconds / 2, settings.below_seconds / 2),
        duty_percent=settings.minimum_duty_percent,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
