"""Looks at each worker when its next sample is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from garrison.supervisor import logs
from garrison.supervisor.lifecycle import ALIVE
from garrison.supervisor.sampler import SAMPLE_SECONDS, Sampler
from garrison.supervisor.worker.supervisor import WorkerSupervisor

MIN_PAUSE_SECONDS = 0.05
"""Shortest pause between two rounds, whatever is due."""

_log = logs.get("looking")


class Looker:
    """Has every worker judged by its own period, `Budget.sample_seconds`.

    Args:
        workers: By name.
        sampler: Forgets the processes that are gone.
        factor: Returns by how much longer than asked for the periods are, at least 1: more while the master saves work.
        enforce: Called once a second with the time; does what the kernel does not (unprivileged mode). None: nothing.
    """

    def __init__(
        self,
        workers: Mapping[str, WorkerSupervisor],
        sampler: Sampler,
        factor: Callable[[], float] = lambda: 1.0,
        enforce: Callable[[float], None] | None = None,
    ) -> None:
        self._workers = workers
        self._sampler = sampler
        self._factor = factor
        self._enforce = enforce
        self._enforced_at = -1.0
        self._due: dict[str, float] = {}

    async def run(self) -> None:
        """Look until cancelled. A look that fails costs that worker its sample and is logged."""
        loop = asyncio.get_running_loop()
        while True:
            pause = self.look(loop.time())
            await asyncio.sleep(pause)

    def look(self, now: float) -> float:
        """Look at whoever is due; returns the seconds until the next one is.

        Args:
            now: Monotonic seconds.
        """
        living = set()
        most = SAMPLE_SECONDS
        for name, worker in list(self._workers.items()):
            process = worker.process
            planned = float(worker.desired.budget.sample_seconds) * max(1.0, self._factor())
            # Of one that does not run, too: it may start at any time, and is to be looked at in its own period then.
            most = min(most, planned)
            if process is None or worker.state not in ALIVE:
                # The first look at its next process is a whole period after its start.
                self._due.pop(name, None)
                continue
            living.add((name, process.epoch))
            due = self._due.setdefault(name, now + planned)
            if now >= due:
                self._look_at(worker, planned)
                # Late is late: what was missed is not made up for.
                due = self._due[name] = now + planned
            most = min(most, due - now)
        for name in self._due.keys() - self._workers.keys():
            del self._due[name]
        self._sampler.keep(living)
        if self._enforce is not None:
            most = min(most, 1.0)
            if now - self._enforced_at >= 0.9:
                self._enforced_at = now
                self._enforce(now)
        return max(MIN_PAUSE_SECONDS, most)

    def _look_at(self, worker: WorkerSupervisor, planned: float) -> None:
        try:
            worker.observe(planned)
        except Exception:  # noqa: BLE001  one worker's mistake must not blind the agent to the others
            _log.exception("looking at %s failed", worker.name)
