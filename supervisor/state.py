"""What the agent keeps on disk across restarts, and the thread that writes it.

Five files: what was decided on this host (killswitch, local stops), what was last known from the store, the breakers,
what has happened lately, and the counts of events.
Writing happens behind the loop's back; the latest document of each file wins. A disk that is full or
read-only costs the memory of the last documents and a line in the status, nothing else.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec

from garrison.ipc.pacing import backoff
from garrison.supervisor import statefile
from garrison.supervisor.breaker import Record
from garrison.supervisor.desired import Memory
from garrison.supervisor.killswitch import KillState
from garrison.supervisor.stores.base import Snapshot
from garrison.supervisor.worker.configuration import Offer

LOCAL_FILE = "local.json"
CACHE_FILE = "cache.json"
BREAKERS_FILE = "breakers.json"
HISTORY_FILE = "history.json"
COUNTS_FILE = "counts.json"
MAX_BYTES = 16 * 1024 * 1024
"""Largest state file; a store that says more to one host is not cached, and the status says so."""
RETRY_BASE_SECONDS = 1.0
RETRY_CAP_SECONDS = 60.0

T = TypeVar("T", bound=msgspec.Struct)
Override = Literal["stop", "freeze"]


class LocalState(msgspec.Struct, kw_only=True):
    """What operators decided on this host, and the killswitch as it was last known."""

    killswitch: KillState = msgspec.field(default_factory=KillState)
    overrides: dict[str, Override] = {}


class CachedState(msgspec.Struct, kw_only=True):
    """What the store last said, what was accepted of it, and the numbers that must not start again.

    ``saved_at`` is in seconds since the epoch: for people, who ask how old the cache is.
    """

    snapshot: Snapshot | None = None
    memory: Memory | None = None
    taken: dict[str, Offer] = {}
    epochs: dict[str, int] = {}
    saved_at: float = 0.0


class BreakersState(msgspec.Struct, kw_only=True):
    """The breakers of all workers.

    ``boot`` is the kernel's boot id and ``clock`` the monotonic time of the save, seconds: the times in the records are
    of that clock, which starts anew with each boot.
    """

    boot: str = ""
    clock: float = 0.0
    records: dict[str, Record] = {}


def read(folder: str, name: str, kind: type[T]) -> tuple[T | None, str]:
    """Return a state file's document, or None and why it cannot be used ("" where there simply is none)."""
    path = os.path.join(folder, name)
    try:
        return statefile.read(path, kind, max_bytes=MAX_BYTES), ""
    except statefile.StateFileError as error:
        return None, "" if error.reason == "missing" else str(error)


class StateWriter:
    """Writes state files from a thread of its own.

    Args:
        folder: Where they are.
        host: Host name, for the jitter of retries.
        on_trouble: Called from the thread with the text of a failure, and with "" when it is over.
    """

    def __init__(self, folder: str, host: str, on_trouble: Callable[[str], None]) -> None:
        self._folder = folder
        self._host = host
        self._on_trouble = on_trouble
        self._pending: dict[str, msgspec.Struct] = {}
        self._errors: dict[str, str] = {}
        self._tries: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closing = False
        self._hurry = False
        self._busy = ""
        self._thread = threading.Thread(target=self._run, name="garrison-state", daemon=True)

    @property
    def error(self) -> str:
        """What cannot be written and why; "" where everything can."""
        return "; ".join(self._errors[name] for name in sorted(self._errors))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def save(self, name: str, document: msgspec.Struct) -> None:
        """Have a document written soon; it must not be changed any more."""
        with self._changed:
            self._pending[name] = document
            self._changed.notify_all()

    def settle(self, name: str, seconds: float) -> str:
        """Wait until the last document of a file is written. Not for the loop's thread.

        Where the writer waits for its next try it tries at once, since somebody asks.

        Returns:
            "" or what is wrong.
        """
        with self._changed:
            # A write that is under way may be of an older document: then the one after it counts.
            wanted = self._tries[name] + 1 + (self._busy == name and name in self._pending)
            self._hurry = name in self._pending
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: (name not in self._pending and self._busy != name) or self._tries[name] >= wanted, seconds
            )
            if not done:
                return f"the state was not written within {seconds:g} s and may be lost in a restart"
            return self._errors.get(name, "")

    def close(self, seconds: float) -> None:
        """Write what is pending within `seconds` and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                # What operators decided goes first: the cache can be had again from the store.
                name = LOCAL_FILE if self._hurry and LOCAL_FILE in self._pending else next(iter(self._pending))
                document = self._pending.pop(name)
                self._busy = name
            error = self._write(name, document)
            with self._changed:
                before = self.error
                if error:
                    self._errors[name] = error
                    if not self._closing:
                        self._pending.setdefault(name, document)
                else:
                    self._errors.pop(name, None)
                after = self.error
                self._tries[name] += 1
                self._busy = ""
                self._hurry = self._hurry and bool(self._pending) and not error
                self._changed.notify_all()
            if after != before:
                self._on_trouble(after)
            if not error:
                failures = 0
                continue
            wait = backoff(failures, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, identity=(self._host, "state"))
            failures += 1
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._hurry, wait)

    def _write(self, name: str, document: msgspec.Struct) -> str:
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            statefile.write(os.path.join(self._folder, name), document, max_bytes=MAX_BYTES)
        except (OSError, statefile.StateFileError) as error:
            return f"state is not saved and would be lost in a restart: {error}"
        except Exception as error:  # noqa: BLE001  without this thread nothing would be saved any more
            return f"state is not saved, {name} cannot be written, a mistake in the agent: {error!r}"
        return ""
