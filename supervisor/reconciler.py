"""From what the store says to what each worker is asked for.

The only place where keys, the configuration file and local decisions meet: it keeps the last snapshot and
what was accepted of it, resolves on every change, and hands the result on. Called from the loop only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from garrison.supervisor.desired import Change, Context, Desired, Memory, WorkerBase, changes, resolve
from garrison.supervisor.settings import AggregateBudget, Budget, Settings, aggregate_from, budget_from
from garrison.supervisor.state import Override
from garrison.supervisor.stores.base import Snapshot, Store
from garrison.supervisor.stores.values import ValueRefusedError, body_reference

EMPTY = Snapshot(entries={}, revision=0, history="")
"""What holds before any store has spoken: the configuration file alone."""


class Reconciler:
    """Keeps the desired state.

    Args:
        settings: The configuration file.
        store: Where groups and bodies are asked for.
        overrides: Local decisions, by worker.
        kill_groups: Returns groups whose killswitch is still of interest.
        on_desired: Called with each new desired state and what has changed since the one before.
        on_store_error: Called with what is wrong with a request to the store.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        overrides: Mapping[str, Override],
        kill_groups: Callable[[], tuple[str, ...]],
        on_desired: Callable[[Desired, list[Change]], None],
        on_store_error: Callable[[str], None],
    ) -> None:
        self.desired: Desired | None = None
        self.snapshot: Snapshot | None = None
        self.memory: Memory | None = None
        self.overrides: dict[str, Override] = dict(overrides)
        self._settings = settings
        self._store = store
        self._kill_groups = kill_groups
        self._on_desired = on_desired
        self._on_store_error = on_store_error
        self._bodies: dict[str, bytes] = {}
        self._asked: tuple[str, ...] = ()

    def restore(self, snapshot: Snapshot | None, memory: Memory | None) -> None:
        """Take up what was cached; nothing is resolved yet.

        The bodies in force are part of what was accepted. They are not fetched again, neither by a fleet that is
        restarted together nor while the store is away.
        """
        self.snapshot, self.memory = snapshot, memory
        if snapshot is not None and memory is not None:
            wanted = _references(snapshot)
            values = {hashlib.sha256(one.value).hexdigest(): one.value for one in memory.slots.values()}
            self._bodies = {sha256: value for sha256, value in values.items() if sha256 in wanted}

    def take_snapshot(self, snapshot: Snapshot) -> None:
        """Take what the store says now."""
        self.snapshot = snapshot
        self.resolve()

    def take_bodies(self, bodies: Mapping[str, bytes | None]) -> None:
        """Take bodies that were asked for; those that no key refers to any more are let go."""
        wanted = _references(self.snapshot if self.snapshot is not None else EMPTY)
        found = {**self._bodies, **bodies}
        self._bodies = {name: body for name, body in found.items() if body is not None and name in wanted}
        self.resolve()

    def override(self, worker: str, override: Override | None) -> None:
        """Take a local decision about a worker; None takes it back."""
        if override is None:
            self.overrides.pop(worker, None)
        else:
            self.overrides[worker] = override
        self.resolve()

    def reload(self, settings: Settings) -> None:
        """Take a new configuration file."""
        self._settings = settings
        self.resolve()

    def resolve(self) -> None:
        """Work out the desired state anew and hand it on."""
        snapshot = self.snapshot if self.snapshot is not None else EMPTY
        desired, memory = resolve(snapshot, self._context(), self.memory)
        self._ask_for(desired)
        if not desired.complete:
            return  # a snapshot that covers the groups follows
        self.memory = memory
        old, self.desired = self.desired, desired
        self._on_desired(desired, changes(old, desired))

    def _ask_for(self, desired: Desired) -> None:
        try:
            self._store.set_groups(desired.groups, self._kill_groups())
        except ValueError as error:
            self._on_store_error(str(error))
        if desired.missing_bodies != self._asked:
            self._asked = desired.missing_bodies
            self._store.fetch_bodies(desired.missing_bodies)

    def _context(self) -> Context:
        settings = self._settings
        aggregate = settings.agent.budget

        def check_budget(document: object, base: Budget) -> Budget:
            return budget_from(document, base, aggregate=aggregate)

        def check_aggregate(document: object, base: AggregateBudget) -> AggregateBudget:
            return aggregate_from(document, base)

        return Context(
            host=settings.agent.hostname,
            workers={
                name: WorkerBase(settings=worker.settings, budget=worker.budget, log_level=settings.log.level)
                for name, worker in settings.workers.items()
            },
            check_budget=check_budget,
            check_aggregate=check_aggregate,
            groups=settings.agent.groups,
            prefix=settings.agent.prefix,
            aggregate=aggregate,
            local=self.overrides,
            bodies=self._bodies,
        )


def _references(snapshot: Snapshot) -> set[str]:
    """Return the bodies that keys refer to, by SHA-256."""
    found = set()
    for entry in snapshot.entries.values():
        try:
            found.add(body_reference(entry.value))
        except ValueRefusedError:
            continue  # reported by the resolution
    return {sha256 for sha256 in found if sha256 is not None}
