"""The cgroup node of one worker, as its supervisor uses it.

What the kernel refuses here is reported and the supervision goes on: a node that cannot be read, frozen or
removed now may be so later, and a dead worker must be wound up in any case.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import replace

from garrison.supervisor.cgroups.base import Limits, OomWatch, Usage
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.settings import Budget
from garrison.supervisor.worker.launch import Place

REMOVE_SECONDS = 2.0
REMOVE_STEP_SECONDS = 0.01
FREEZE_RETRY_SECONDS = 1.0
FREEZE_RETRY_CAP_SECONDS = 60.0
"""Each try may hold the loop for a second where a task hangs in the kernel, so there are fewer and fewer."""
REFUSED_RETRY_SECONDS = 60.0
"""Time between two tries to bring in a budget that was refused: what did not fit may fit by then."""
OOM_QUIET_SECONDS = 0.2
"""How long the notifier of OOM kills is not listened to once it has spoken. On v2 it speaks of everything that
``memory.events`` counts, and a worker held at its ``memory.high`` has it speak up to 100 times a second."""


ESSENTIAL_WEIGHT = 10
"""An essential worker has so many times the CPU weight of its budget: it goes first where all share little."""
MAX_WEIGHT = 10_000


def limits_of(budget: Budget, *, essential: bool = False) -> Limits:
    """Return the caps of a node for a worker's budget."""
    return Limits(
        cpu_quota_percent=budget.cpu_quota_percent,
        cpu_weight=min(MAX_WEIGHT, budget.cpu_weight * (ESSENTIAL_WEIGHT if essential else 1)),
        memory_high=budget.memory_high,
        memory_max=budget.memory_max,
        pids_max=budget.pids_max,
    )


class WorkerNode:
    """One worker's node.

    Args:
        name: The worker's name.
        place: Cgroups, their lock and the killswitch.
        on_oom: Called with the counters when the kernel has killed in the node for want of memory.
        on_problem: Called with what was refused and why, and with "" when a refused budget is no longer wanted.

    Attributes:
        limits: The caps in force; None before the first start.
        frozen: Whether it was frozen by `freeze`.
        left: Whether there may be something in the cgroup tree that nobody supervises: `sweep` it.
    """

    def __init__(
        self, name: str, place: Place, on_oom: Callable[[Usage], None], on_problem: Callable[[str], None]
    ) -> None:
        self.limits: Limits | None = None
        self.frozen = False
        self.left = False
        self._name = name
        self._place = place
        self._on_oom = on_oom
        self._on_problem = on_problem
        self._refused: Limits | None = None
        self._refused_until = 0.0
        self._freeze_wait = FREEZE_RETRY_SECONDS
        self._oom: OomWatch | None = None
        self._oom_rest: asyncio.TimerHandle | None = None

    def started(self, limits: Limits) -> None:
        """Note that a process runs in a fresh node with these caps; watch it for OOM kills."""
        self.limits = limits
        self._forget_refusal()
        self.frozen, self.left = False, False
        # v1 kills one process of the node and leaves the rest half alive; and everybody likes to hear of it at once.
        try:
            self._oom = self._place.cgroups.oom_watch(self._name)
        except (CgroupError, OSError) as error:
            self._on_problem(f"no notice of an OOM kill, it is seen when the process ends: {error}")
        if self._oom is not None:
            asyncio.get_running_loop().add_reader(self._oom.fileno(), self._oom_seen)

    def limit(self, wanted: Limits) -> bool:
        """Bring the node to these caps. False: not all of them are in force; why was reported.

        A memory cap below what the worker uses is refused without being written, because the kernel would kill to make
        it fit; the other caps are changed all the same. What was refused is tried again now and then.
        """
        now = asyncio.get_running_loop().time()
        if wanted == self._refused and now < self._refused_until:
            return False
        refusal = ""
        fitting = wanted
        if self.limits is not None and (refusal := self._misfit(wanted, self.limits)):
            fitting = replace(wanted, memory_high=self.limits.memory_high, memory_max=self.limits.memory_max)
        if fitting != self.limits:
            try:
                self._place.cgroups.limit(self._name, fitting)
                self.limits = fitting
            except CgroupError as error:
                refusal = refusal or str(error)
        if not refusal:
            self._forget_refusal()
            return True
        if wanted != self._refused:
            self._on_problem(f"the new budget is refused, the old one stays: {refusal}")
        self._refused, self._refused_until = wanted, now + REFUSED_RETRY_SECONDS
        return False

    def retry_due(self, now: float) -> bool:
        """Return whether a budget that was refused should be tried again."""
        return self._refused is not None and now >= self._refused_until

    def limit_files(self, nofile: int) -> None:
        """Change the cap on open files of every process that is in the node."""
        failed = 0
        for pid in self.members():
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (nofile, nofile))
            except ProcessLookupError:
                continue
            except (OSError, ValueError):
                failed += 1
        if failed:
            self._on_problem(f"the new nofile of {nofile} takes effect at its next start: the kernel refuses it now")

    def members(self) -> list[int]:
        """Return the processes in the node; none where that cannot be read, which is reported."""
        try:
            return list(self._place.cgroups.members(self._name))
        except CgroupError as error:
            self._on_problem(str(error))
            return []

    def _misfit(self, wanted: Limits, now: Limits) -> str:
        """Return why a smaller memory cap does not hold what the worker uses; empty where it does."""
        if wanted.memory_max is None or (now.memory_max is not None and wanted.memory_max >= now.memory_max):
            return ""
        used = self.usage().memory_working_bytes
        if used <= wanted.memory_max:
            return ""
        return f"{used} bytes are in use, more than the new memory_max of {wanted.memory_max}"

    def _forget_refusal(self) -> None:
        if self._refused is not None:
            self._refused = None
            self._on_problem("")

    def freeze(self, frozen: bool) -> float:
        """Stop or continue everything in the node. Returns 0, or the seconds until another try is due."""
        try:
            self._place.cgroups.freeze(self._name, frozen)
            if frozen and self._place.engaged():
                # A kill in another thread came between: on v1 the frozen keep their SIGKILL pending.
                self._place.cgroups.freeze(self._name, False)
                return FREEZE_RETRY_SECONDS
        except CgroupError as error:
            self._on_problem(str(error))
            if frozen:
                self._thaw_what_was_frozen()
            wait, self._freeze_wait = self._freeze_wait, min(FREEZE_RETRY_CAP_SECONDS, self._freeze_wait * 2)
            return wait
        self.frozen, self._freeze_wait = frozen, FREEZE_RETRY_SECONDS
        return 0.0

    def kill(self) -> bool:
        """SIGKILL everything in the node. False: that could not be carried out, and was reported."""
        with self._place.lock:
            try:
                self._place.cgroups.kill(self._name)
            except CgroupError as error:
                self._on_problem(str(error))
                return False
        return True

    def usage(self) -> Usage:
        """Return the kernel's counters of the node; zeros where they cannot be read, which is reported."""
        try:
            return self._place.cgroups.usage(self._name)
        except CgroupError as error:
            self._on_problem(str(error))
            return Usage()

    def unwatch(self) -> None:
        """End the watch for OOM kills. Idempotent."""
        if self._oom_rest is not None:
            self._oom_rest.cancel()
            self._oom_rest = None
        if self._oom is not None:
            asyncio.get_running_loop().remove_reader(self._oom.fileno())
            self._oom.close()
            self._oom = None

    async def remove(self) -> bool:
        """Remove the node once it is empty. False: something is left, reported and noted for `sweep`."""
        cgroups = self._place.cgroups
        self.left = True
        try:
            for _ in range(int(REMOVE_SECONDS / REMOVE_STEP_SECONDS)):
                if cgroups.remove(self._name):
                    self.left = False
                    return True
                await asyncio.sleep(REMOVE_STEP_SECONDS)
            members = list(cgroups.members(self._name))[:10]
        except CgroupError as error:
            self._on_problem(str(error))
        else:
            self._on_problem(
                f"processes are left in {cgroups.path(self._name)}: {members}; they may hang in the kernel (state D): "
                "look at /proc/PID/stack"
            )
        return False

    async def sweep(self) -> bool:
        """Kill and remove what a failed start or an end that hung has left. True: there is nothing any more."""
        self.kill()
        return await self.remove()

    def _thaw_what_was_frozen(self) -> None:
        # Half frozen it could neither work nor stop, and nobody would ever thaw it.
        try:
            self._place.cgroups.freeze(self._name, False)
        except CgroupError as error:
            self._on_problem(str(error))

    def _oom_seen(self) -> None:
        if self._oom is None:
            return
        self._oom.drain()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._oom.fileno())
        self._oom_rest = loop.call_later(OOM_QUIET_SECONDS, self._oom_again)
        self._look_for_oom()

    def _oom_again(self) -> None:
        self._oom_rest = None
        if self._oom is not None:
            asyncio.get_running_loop().add_reader(self._oom.fileno(), self._oom_seen)
            # v1 speaks before it kills: what the first look came too early for is there by now.
            self._look_for_oom()

    def _look_for_oom(self) -> None:
        usage = self.usage()
        if usage.oom_kills:
            self._on_oom(usage)
