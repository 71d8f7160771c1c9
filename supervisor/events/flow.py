"""What is where on its way out: the queue, what the sink has in its hands, and when which of it goes to the spool.

No threads and no I/O; the pipeline's lock is held by whoever calls. Time comes in as an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

from garrison.ipc.messages import PRIORITIES, Priority
from garrison.supervisor.events.pacing import URGENT, Throttle
from garrison.supervisor.events.queue import Batch, EventQueue

SPILL_SHARE = 0.25
"""Share of the queue's bound above which what cannot go to the sink now goes to the spool without waiting."""
TROUBLE_SECONDS = 1.0
"""How long a sink may fail before what is queued goes to the spool: most failures are over by then."""
STALL_SECONDS = 3.0
"""How long one write of the sink may take before that."""
REFUSED_SECONDS = 5.0
"""How long what the sink holds and the spool has no room for is not offered to it again."""
COMPANY_BYTES = 128 * 1024
"""From so much on nothing waits for company any more."""
COMMIT_SECONDS = 0.05
"""Least time between two commits of events; alerts and states do not wait for company."""


class Backlog(Protocol):
    """The spool, as the flow sees it."""

    @property
    def error(self) -> str:
        """Why it cannot take anything now; empty where it can."""

    @property
    def contents(self) -> Shelf:
        """What is in it."""


class Shelf(Protocol):
    """What is in the spool, as the flow sees it."""

    @property
    def ready(self) -> EventQueue:
        """What was read from it for the sink."""

    def blocks(self, priority: Priority) -> bool:
        """Whether events of a priority are in it, or on their way, that must go to the sink before newer ones."""


class Flow:
    """Everything that is on its way out in memory.

    Args:
        max_bytes: Bound of the queue.
        always: Whether every batch goes to the spool before it goes to the sink.
        throttles: What slows all of it down.
        pace: What slows down what comes from the spool.

    Attributes:
        queue: What waits.
        held: What the sink was offered and has not confirmed.
        spool: Where there is one.
        trouble_since: Since when the sink fails, monotonic seconds; None where it does not.
        busy_since: Since when it writes; None where it does not.
        stored_at: When events went to the spool last.
        company_until: Until when few events wait for more to go with them, monotonic seconds.
        closing: The agent is ending: the sink takes what it can.
        ending: It has had its time: the rest goes to the spool.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        always: bool = False,
        throttles: Sequence[Throttle] = (),
        pace: Throttle | None = None,
    ) -> None:
        self.queue = EventQueue(max_bytes)
        self.held: deque[Batch] = deque()
        self.spool: Backlog | None = None
        self.always = always
        self.trouble_since: float | None = None
        self.busy_since: float | None = None
        self.stored_at = float("-inf")
        self.company_until = float("-inf")
        self.closing = False
        self.ending = False
        self._spill_bytes = int(max_bytes * SPILL_SHARE)
        self._throttles = tuple(throttles)
        self._pace = pace
        self._order = 0
        self._held_from = float("-inf")

    def put(self, batch: Batch) -> bool:
        """Queue a batch and give it its place. False: it was dropped and counted."""
        self._order += 1
        batch.order = self._order
        return self.queue.put(batch)

    def follow(self, order: int) -> None:
        """Have all orders come after one that an earlier master gave."""
        for batch in (*self.queue, *self.held):
            batch.order += order
        self._order += order

    # To the sink

    def take(self, max_bytes: int, now: float) -> tuple[list[Batch], float | None]:
        """Remove and return what should go to the sink now, the most important first, up to about `max_bytes`.

        Of each priority, what is in the spool goes before what is queued.

        Returns:
            The batches, and the seconds until there may be more because of a throttle or the wait for company; None:
            not before something is put.
        """
        if (wait := self.lingers(now)) > 0:
            return [], wait
        taken: list[Batch] = []
        size, soonest = 0, None
        for priority in PRIORITIES:
            source, throttles = self._source(priority)
            if source is None:
                continue
            wait = max((throttle.wait(priority, now) for throttle in throttles), default=0.0)
            if wait > 0:
                soonest = wait if soonest is None else min(soonest, wait)
                continue
            if taken and size >= max_bytes:
                break
            batches = source.take(max_bytes - size, (priority,))
            taken += batches
            amount = sum(batch.size for batch in batches)
            size += amount
            for throttle in throttles:
                throttle.took(priority, amount, now)
        if not taken and now < self.company_until:
            # What is put until then wakes nobody.
            soonest = min(self.company_until - now, float("inf") if soonest is None else soonest)
        return taken, soonest

    def lingers(self, now: float) -> float:
        """Return how long what there is waits for company, seconds; 0: it does not, being urgent, much, or late."""
        if now >= self.company_until:
            return 0.0
        sources = [self.queue] if self.spool is None else [self.queue, self.spool.contents.ready]
        if sum(source.bytes for source in sources) >= COMPANY_BYTES:
            return 0.0
        if any(source.holds(priority) for source in sources for priority in URGENT):
            return 0.0
        return self.company_until - now

    def _source(self, priority: Priority) -> tuple[EventQueue | None, tuple[Throttle, ...]]:
        spool = self.spool
        if spool is not None and spool.contents.ready.holds(priority):
            return spool.contents.ready, (*self._throttles, *([self._pace] if self._pace is not None else []))
        if not self.queue.holds(priority):
            return None, ()
        if spool is not None and (spool.contents.blocks(priority) or (self.always and not spool.error)):
            return None, ()
        return self.queue, self._throttles

    # To the spool

    def store_at(self, now: float) -> float | None:
        """Return when something should go to the spool, monotonic seconds; None: nothing should."""
        waiting = bool(self.queue)
        if self.ending:
            return now if waiting or self._unstored(now) else None
        next_commit = self.stored_at + COMMIT_SECONDS
        if self.always and waiting:
            return now if any(self.queue.holds(priority) for priority in URGENT) else max(next_commit, now)
        times = []
        full = self.queue.bytes > self._spill_bytes
        if self.trouble_since is not None and (waiting or self._unstored(now)):
            times.append(self.trouble_since if full else self.trouble_since + TROUBLE_SECONDS)
        if self.busy_since is not None and waiting:
            times.append(self.busy_since + STALL_SECONDS)
        if waiting and (full or self.closing) and self._behind():
            times.append(now)
        return max(min(times), next_commit) if times else None

    def gather(self, max_bytes: int, now: float) -> list[Batch]:
        """Return what should go to the spool now: taken from the queue; what the sink holds stays there as well."""
        held: list[Batch] = []
        only: Collection[Priority] = self._behind()
        stalled = self.busy_since is not None and now >= self.busy_since + STALL_SECONDS
        if self.ending or self.trouble_since is not None:
            held = self._unstored(now)
        if self.ending or self.always or stalled or self.trouble_since is not None:
            only = PRIORITIES
        gathered = held + self.queue.take(max_bytes, only)
        # Company is waited for only where there is room for it.
        self.stored_at = float("-inf") if any(self.queue.holds(priority) for priority in only) else now
        return gathered

    def put_back(self, batches: Sequence[Batch]) -> None:
        """Take back what could not be stored."""
        held = set(map(id, self.held))
        self.queue.put_back([batch for batch in batches if id(batch) not in held and not batch.done])

    def hold_off(self, now: float) -> None:
        """Note that the spool has no room for what the sink holds."""
        self._held_from = now + REFUSED_SECONDS

    def drop_all(self, reason: str) -> int:
        """Give up everything that is not in the spool; returns the number of events."""
        lost = self.queue.drop_all(reason)
        while self.held:
            batch = self.held.popleft()
            if not batch.stored:
                lost += batch.count
                batch.drop(reason)
        return lost

    def _unstored(self, now: float) -> list[Batch]:
        if now < self._held_from:
            return []
        return [batch for batch in self.held if not batch.stored and not batch.done]

    def _behind(self) -> list[Priority]:
        """Return the priorities whose queued events have to wait for older ones in the spool."""
        if self.spool is None:
            return []
        contents = self.spool.contents
        return [name for name in PRIORITIES if self.queue.holds(name) and contents.blocks(name)]
