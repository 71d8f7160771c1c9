"""Brings a store's news from its thread to the master: the killswitch at once, everything else to the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from garrison.supervisor.killswitch import KillSwitch
from garrison.supervisor.reconciler import Reconciler
from garrison.supervisor.stores.base import KillObservation, Snapshot, StoreStatus


class Master(Protocol):
    """What the bridge needs of the agent."""

    killswitch: KillSwitch
    reconciler: Reconciler

    def call_in_loop(self, call: Callable[[], None]) -> None:
        """Have something called from the loop; from any thread."""

    def take_snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot (loop)."""

    def take_store_status(self) -> None:
        """Look at the store's status (loop)."""


class StoreBridge:
    """A `StoreListener` for the agent. Its methods run in the store's thread."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._newest: Snapshot | None = None
        self._lock = threading.Lock()

    def on_killswitch(self, observation: KillObservation) -> None:
        """Set the flag and kill, here and now."""
        self._master.killswitch.update_store(observation)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Pass the newest snapshot to the loop; those that it has not come round to are skipped."""
        with self._lock:
            waiting, self._newest = self._newest is not None, snapshot
        if not waiting:
            self._master.call_in_loop(self._deliver)

    def on_bodies(self, bodies: Mapping[str, bytes | None]) -> None:
        """Pass bodies to the loop."""
        taken = dict(bodies)
        self._master.call_in_loop(lambda: self._master.reconciler.take_bodies(taken))

    def on_status(self, status: StoreStatus) -> None:
        """Have the loop look at the status."""
        self._master.call_in_loop(self._master.take_store_status)

    def _deliver(self) -> None:
        with self._lock:
            snapshot, self._newest = self._newest, None
        if snapshot is not None:
            self._master.take_snapshot(snapshot)
