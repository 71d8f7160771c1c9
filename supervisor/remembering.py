"""What one agent knows from before its start, and what it leaves for the next one. Used from the loop only."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from garrison.supervisor.breaker import Policy, Record
from garrison.supervisor.carrying import Carried
from garrison.supervisor.desired import Memory
from garrison.supervisor.events.books import BooksState
from garrison.supervisor.history import History, HistoryState
from garrison.supervisor.killswitch import KillState, engage_locally
from garrison.supervisor.linux import boot_id
from garrison.supervisor.state import (
    BREAKERS_FILE,
    CACHE_FILE,
    COUNTS_FILE,
    HISTORY_FILE,
    LOCAL_FILE,
    BreakersState,
    CachedState,
    LocalState,
    Override,
    StateWriter,
    read,
)
from garrison.supervisor.stores.base import Snapshot
from garrison.supervisor.worker.configuration import Offer

HISTORY_DELAY_SECONDS = 2.0
"""What happens within this time goes to the disk with one write."""
CACHE_DELAY_SECONDS = 1.0
"""Changes within this time are cached with one write."""


class Remembering:
    """Reads the state files once, and has them written when something has changed.

    Args:
        folder: Where they are.
        host: Host name, for the jitter of retries.
        on_trouble: Called from the writer's thread with what is wrong, and with "" when it is over.
        policy: The breakers' numbers.

    Attributes:
        errors: Why a file could not be used, by what it holds.
        breakers: What an earlier master knew of each worker's breaker.
        history: What has happened lately.
        counts: The books of events as they were last written; None where there are none.
    """

    def __init__(self, folder: str, host: str, on_trouble: Callable[[str], None], policy: Policy | None = None) -> None:
        local, local_error = read(folder, LOCAL_FILE, LocalState)
        cached, cache_error = read(folder, CACHE_FILE, CachedState)
        breakers, breakers_error = read(folder, BREAKERS_FILE, BreakersState)
        history, history_error = read(folder, HISTORY_FILE, HistoryState)
        self.counts, counts_error = read(folder, COUNTS_FILE, BooksState)
        if breakers_error:
            breakers_error += "; every worker starts on probation, and its next breach latches it"
        self.errors = {
            "local state": local_error,
            "cache": cache_error,
            "breakers": breakers_error,
            "history": history_error,
            "counts": counts_error,
        }
        self._boot = boot_id()
        self.breakers = Carried(
            breakers, lost=bool(breakers_error), boot=self._boot, now=time.monotonic(), policy=policy or Policy()
        )
        self.history = History(history)
        self.local = local or LocalState()
        if local_error:
            # It may have said that nothing is to run here, and a killswitch that cannot be read is engaged.
            reason = f"{os.path.join(folder, LOCAL_FILE)} cannot be read, and it may have held the killswitch"
            self.local = LocalState(killswitch=engage_locally(KillState(), reason, by="garrisond"))
        self.cached = cached or CachedState()
        self.writer = StateWriter(folder, host, on_trouble)
        self._epochs = dict(self.cached.epochs)
        self._timer: asyncio.TimerHandle | None = None
        self._history_timer: asyncio.TimerHandle | None = None

    def seed(self) -> Snapshot | None:
        """Return the cached snapshot, at least as new as the killswitch that was saved beside it.

        The two are written one after the other; revisions that ran backwards between them would make the first look
        at the store seem older than what is remembered.
        """
        snapshot = self.cached.snapshot
        if snapshot is None:
            return None
        causes = self.local.killswitch.store.values()
        known = [cause.revision for cause in causes if cause.history == snapshot.history]
        return msgspec.structs.replace(snapshot, revision=max([snapshot.revision, *known]))

    def age(self) -> float:
        """Return how many seconds ago the cache was written, by the clock of the host; never negative."""
        return max(0.0, time.time() - self.cached.saved_at)

    def next_epoch(self, worker: str) -> int:
        """Return the number of a worker's next process: above every earlier one, also after lost state."""
        epoch = max(self._epochs.get(worker, 0) + 1, int(time.time()))
        self._epochs[worker] = epoch
        return epoch

    def save_local(self, killswitch: KillState, overrides: Mapping[str, Override]) -> None:
        """Have what was decided on this host written at once."""
        self.writer.save(LOCAL_FILE, LocalState(killswitch=killswitch, overrides=dict(overrides)))

    def save_breakers(self, records: Mapping[str, Record], defined: Iterable[str]) -> None:
        """Have the breakers written at once: a crash of ours must not forgive what a worker has done to its host.

        Args:
            records: Of the workers there are.
            defined: The workers of the configuration. Of one that has not been made yet the old record is still good.
        """
        old = self.breakers.all()
        kept = {name: old[name] for name in defined if name in old} | dict(records)
        self.writer.save(BREAKERS_FILE, BreakersState(boot=self._boot, clock=time.monotonic(), records=kept))

    def happened(self, action: str, fields: Mapping[str, Any]) -> None:
        """Take an event of the agent into the history, and have that written soon."""
        self.history.add(time.time(), action, dict(fields))
        if self._history_timer is None:
            self._history_timer = asyncio.get_running_loop().call_later(HISTORY_DELAY_SECONDS, self.save_history)

    def save_history(self) -> None:
        """Have the history written."""
        if self._history_timer is not None:
            self._history_timer.cancel()
            self._history_timer = None
        self.writer.save(HISTORY_FILE, self.history.state())

    def save_counts(self, state: BooksState) -> None:
        """Have the counts of events written."""
        self.writer.save(COUNTS_FILE, state)

    def cache_soon(self, save: Callable[[], None]) -> None:
        """Have `save` called within `CACHE_DELAY_SECONDS`, once for all calls until then."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CACHE_DELAY_SECONDS, save)

    def save_cache(
        self,
        snapshot: Snapshot | None,
        memory: Memory | None,
        defined: Iterable[str],
        taken: Mapping[str, Offer | None],
    ) -> None:
        """Have what the store last said written.

        Args:
            snapshot: Of the store.
            memory: What was accepted of it.
            defined: The workers of the configuration. Of one that has not been made yet (a stop in the middle of a
                start) the old configuration is still good.
            taken: The configuration that each worker last took.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        offers = {name: self.cached.taken.get(name) for name in defined} | dict(taken)
        self.writer.save(
            CACHE_FILE,
            CachedState(
                snapshot=snapshot,
                memory=memory,
                taken={name: offer for name, offer in offers.items() if offer is not None},
                epochs=dict(self._epochs),
                saved_at=time.time(),
            ),
        )
