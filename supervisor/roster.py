"""The roster: which workers there are. Made when wanted, retired when no longer wanted, closed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from garrison.supervisor import logs
from garrison.supervisor.desired import WorkerDesired
from garrison.supervisor.settings import Worker as Definition
from garrison.supervisor.worker.supervisor import WorkerSupervisor

SETTLE_SECONDS = 10.0
"""How long a worker is waited for that has something to do, a start for one."""

_log = logs.get("agent")


class Roster:
    """Holds the workers' supervisors. All methods are called from the master's loop.

    Args:
        make: Makes the supervisor of a worker that is wanted for the first time.
        retired: Called with its name when the last of a retired worker is gone: another of that name may be wanted.

    Attributes:
        workers: By name; the same object for good.
    """

    def __init__(
        self, make: Callable[[str, Definition, WorkerDesired], WorkerSupervisor], retired: Callable[[str], None]
    ) -> None:
        self.workers: dict[str, WorkerSupervisor] = {}
        self._make = make
        self._retired = retired
        self._retiring: dict[str, asyncio.Task[None]] = {}

    def want(self, desired: Mapping[str, WorkerDesired], definitions: Mapping[str, Definition]) -> None:
        """Have these workers, as they are wanted, and no others."""
        for name, wanted in desired.items():
            logs.set_level(wanted.log_level, f"worker.{name}")
            worker = self.workers.get(name)
            if worker is not None:
                worker.want(wanted, definitions[name])
            elif name not in self._retiring:
                # A predecessor that is not gone yet still has the node; when it is, this comes round again.
                self.workers[name] = self._make(name, definitions[name], wanted)
        for name in self.workers.keys() - desired.keys():
            self._retire(name)

    def poke(self) -> None:
        """Have all look at everything again."""
        for worker in self.workers.values():
            worker.poke()

    async def settle(self) -> None:
        """Wait until every worker has done what there is to do for now, starts included; bounded."""
        await asyncio.gather(*(worker.settle(SETTLE_SECONDS) for worker in self.workers.values()))

    async def close(self, seconds: float, cut: Callable[[], object]) -> None:
        """Stop all workers in good order.

        Args:
            seconds: How long that may take.
            cut: Called when it took longer, to kill all that is left.
        """
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(worker.close(), name=f"close {name}") for name, worker in self.workers.items()}
        tasks |= set(self._retiring.values())
        if not tasks:
            return
        done, pending = await asyncio.wait(tasks, timeout=seconds)
        for task in done:
            if error := task.exception():
                _log.error("%s failed: %r", task.get_name(), error)
        if pending:
            names = ", ".join(sorted(task.get_name() for task in pending))
            _log.error("not over within %g s and cut off: %s", seconds, names)
            cut()
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=1.0)

    def _retire(self, name: str) -> None:
        worker = self.workers.pop(name)
        task = asyncio.get_running_loop().create_task(worker.close(), name=f"retire {name}")
        self._retiring[name] = task
        task.add_done_callback(lambda _task: self._gone(name))

    def _gone(self, name: str) -> None:
        del self._retiring[name]
        self._retired(name)
