"""How the etcd store is doing, in words: kept by its thread, read by any."""

from __future__ import annotations

import threading
import time

from garrison.supervisor.stores.base import Snapshot, StoreStatus

NOTICE_SECONDS = 24 * 3600.0
"""How long a new history is shown."""


class Health:
    """See the module. May be used from any thread.

    Args:
        seed: The state that is in force before the first session.
        seed_age: Seconds since it was known to be true.
    """

    def __init__(self, seed: Snapshot | None, seed_age: float) -> None:
        self._lock = threading.Lock()
        self._seeded = seed is not None
        self._connected = False
        self._connected_at = 0.0
        self._endpoint = ""
        self._revision = 0 if seed is None else seed.revision
        self._error = "not connected yet"
        self._fresh_at = time.monotonic() - max(0.0, seed_age)
        self._fresh_time = time.time() - max(0.0, seed_age)
        self._notice = ""
        self._notice_until = 0.0
        self._lesser = ""

    @property
    def notice(self) -> str:
        """What is to be said although the store is connected."""
        return self._notice

    def trying(self, endpoint: str) -> None:
        """Note which endpoint is tried."""
        with self._lock:
            self._endpoint = endpoint

    def connected(self, revision: int) -> None:
        """Note that changes reach us from now on."""
        with self._lock:
            if not self._connected:
                self._connected_at = time.monotonic()
            self._connected, self._error, self._lesser, self._seeded = True, "", "", True
        self.seen(revision)

    def seen(self, revision: int) -> None:
        """Note the newest revision."""
        with self._lock:
            self._revision = revision

    def fresh(self, now: float) -> None:
        """Note that what is held was compared with the store."""
        with self._lock:
            if self._notice and now >= self._notice_until:
                self._notice = ""

    def lost(self, error: str) -> None:
        """Note that changes do not reach us any more, and why."""
        with self._lock:
            if self._connected:
                self._fresh_at, self._fresh_time = time.monotonic(), time.time()
            self._connected, self._error = False, error

    def lesser(self, text: str) -> None:
        """Note something that does not work although the store is connected."""
        with self._lock:
            self._lesser = text

    def new_history(self, reason: str) -> None:
        """Note that the cluster was replaced or restored."""
        with self._lock:
            self._notice_until = time.monotonic() + NOTICE_SECONDS
            self._notice = (
                f"etcd was restored or replaced: {reason}. Its keys are taken as they are now; what only the old ones "
                "said stays in force until it is written again"
            )

    def status(self, now: float) -> StoreStatus:
        """Return the status; `now` in monotonic seconds."""
        with self._lock:
            error = self._error
            if not self._connected and self._seeded:
                when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._fresh_time))
                error = f"etcd is not reachable: {error}. What it said on {when} stays in force"
            elif not self._connected:
                error = f"etcd is not reachable: {error}"
            texts = [text for text in (error, self._lesser if self._connected else "", self._notice) if text]
            return StoreStatus(
                backend="etcd",
                connected=self._connected,
                endpoint=self._endpoint,
                revision=self._revision,
                stale_seconds=0.0 if self._connected else max(0.0, now - self._fresh_at),
                connected_seconds=max(0.0, now - self._connected_at) if self._connected else 0.0,
                error="; ".join(texts),
            )
