"""The node above all workers: their common caps, and the kill that ends everything in it at once.

A kill may come from any thread and lifts the caps, so that the dying are not throttled; the next start puts
them back. One lock is held around every kill and around what a start does in the tree.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from garrison.supervisor.budget.aggregate import ACT_AT
from garrison.supervisor.cgroups.base import Cgroups, Limits
from garrison.supervisor.cgroups.errors import CgroupError, LimitError
from garrison.supervisor.settings import AggregateBudget
from garrison.supervisor.worker.launch import Place


def aggregate_limits(budget: AggregateBudget) -> Limits:
    """Return the caps of the node for the budget of all workers.

    ``memory_high`` is where the agent acts: from there on the kernel (v2) slows them down and tells us, so that the
    agent chooses who has to go before the kernel does.
    """
    return Limits(
        cpu_quota_percent=budget.cpu_quota_percent,
        memory_high=int(ACT_AT * budget.memory_max),
        memory_max=budget.memory_max,
    )


class WorkersNode:
    """The ``workers`` node of a tree that `Cgroups.prepare` has prepared.

    Args:
        cgroups: The tree.
        budget: The caps in force.
        on_failure: Called, in the thread that kills, with why not everything could be killed at once.
    """

    def __init__(self, cgroups: Cgroups, budget: AggregateBudget, on_failure: Callable[[str], None]) -> None:
        self.budget = budget
        self._cgroups = cgroups
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._engagements = 0
        self._lifted = False

    def place(self, engaged: Callable[[], bool]) -> Place:
        """Return what a start needs of this node; `engaged` tells whether the killswitch is."""
        return Place(
            cgroups=self._cgroups,
            lock=self._lock,
            generation=lambda: self._engagements,
            engaged=engaged,
            restore=self._restore,
        )

    def limit(self, budget: AggregateBudget) -> None:
        """Change the caps.

        Raises:
            CgroupError: Refused; the old ones stay. A smaller memory cap that does not hold what the workers use is not
                even written, because the kernel would kill to make it fit.
        """
        with self._lock:
            if budget.memory_max < self.budget.memory_max:
                used = self._cgroups.usage(None).memory_working_bytes
                if used > budget.memory_max:
                    raise LimitError(
                        f"the workers use {used} bytes, more than the new memory_max of {budget.memory_max}: "
                        "stop one first"
                    )
            self._cgroups.limit_aggregate(aggregate_limits(budget))
            self.budget = budget

    def engage(self) -> None:
        """Kill everything because the killswitch is engaged, its flag being set already. From any thread."""
        self.kill(engaged=True)

    def kill(self, *, engaged: bool = False) -> None:
        """Kill everything in the node. From any thread."""
        with self._lock:
            self._engagements += engaged
            self._lifted = True
            try:
                self._cgroups.kill(None)
            except CgroupError as error:
                # Each worker's own task goes on killing its node; nothing starts meanwhile.
                self._on_failure(f"not everything could be killed at once: {error}")

    def _restore(self) -> None:
        if self._lifted:
            self._cgroups.limit_aggregate(aggregate_limits(self.budget))
            self._lifted = False
