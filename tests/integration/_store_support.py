"""A listener that writes down what a store tells it, in the order in which it does, and can be waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from garrison.supervisor.stores.base import KillObservation, Snapshot, StoreStatus

DEADLINE_SECONDS = 30.0


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.bodies: dict[str, bytes | None] = {}
        self.status: StoreStatus | None = None
        self._changed = threading.Condition()
        self.on_kill: Callable[[KillObservation], None] | None = None

    def _note(self, kind: str, what: Any) -> None:
        with self._changed:
            self.calls.append((kind, what))
            if kind == "bodies":
                self.bodies.update(what)
            if kind == "status":
                self.status = what
            self._changed.notify_all()

    def on_killswitch(self, observation: KillObservation) -> None:
        if self.on_kill is not None:
            self.on_kill(observation)
        self._note("killswitch", observation)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        self._note("snapshot", snapshot)

    def on_bodies(self, bodies: Mapping[str, bytes | None]) -> None:
        self._note("bodies", dict(bodies))

    def on_status(self, status: StoreStatus) -> None:
        self._note("status", status)

    def wait(self, condition: Callable[[], Any], what: str = "") -> Any:
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._changed:
            while not (result := condition()):
                left = deadline - time.monotonic()
                assert left > 0, f"did not happen: {what or condition}; last calls: {self.calls[-5:]}"
                self._changed.wait(min(left, 0.5))
        return result

    @property
    def snapshots(self) -> list[Snapshot]:
        return [what for kind, what in self.calls if kind == "snapshot"]

    @property
    def kills(self) -> list[KillObservation]:
        return [what for kind, what in self.calls if kind == "killswitch"]

    def value(self, key: str) -> bytes | None:
        snapshot = self.snapshots[-1] if self.snapshots else None
        entry = snapshot.entries.get(key) if snapshot is not None else None
        return None if entry is None or entry.error else entry.value

    def error(self, key: str) -> str:
        snapshot = self.snapshots[-1] if self.snapshots else None
        entry = snapshot.entries.get(key) if snapshot is not None else None
        return "" if entry is None else entry.error

    def wait_value(self, key: str, value: bytes | None) -> Snapshot:
        self.wait(lambda: self.snapshots and self.value(key) == value, f"{key} = {value!r}")
        return self.snapshots[-1]
