"""Takes the breakers of all workers over from an earlier master. Pure."""

from __future__ import annotations

import msgspec

from garrison.supervisor.breaker import Policy, Record, carried_over, suspect
from garrison.supervisor.state import BreakersState


class Carried:
    """The records of an earlier master as they stand now.

    Args:
        state: What it left; None: nothing was there.
        lost: Whether there was something that could not be read. Then no worker is taken for a good one: each may run,
            on probation, and its next breach latches it.
        boot: The kernel's boot id now; empty where it cannot be read.
        now: Monotonic seconds.
        policy: The breaker's numbers.
    """

    def __init__(self, state: BreakersState | None, *, lost: bool, boot: str, now: float, policy: Policy) -> None:
        self._lost = Record(breaker=suspect(now, policy)) if lost else None
        self._records: dict[str, Record] = {}
        if state is None:
            return
        if boot and boot == state.boot:
            shift = 0.0
        elif boot:
            shift = state.clock
        else:
            # Nobody knows whether the clock is the same one: every wait begins again, so that none is cut short.
            shift = state.clock - now
        for name, record in state.records.items():
            breaker = carried_over(record.breaker, shift, now, policy)
            self._records[name] = msgspec.structs.replace(record, breaker=breaker)

    def of(self, worker: str) -> Record | None:
        """Return what is known of a worker; None where nothing is and nothing was lost."""
        return self._records.get(worker, self._lost)

    def all(self) -> dict[str, Record]:
        """Return everything that is known."""
        return dict(self._records)
