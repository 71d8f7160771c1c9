"""What has happened to the workers lately: the agent's own events, kept across restarts. Bounded; no I/O of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

MAX_PER_WORKER = 64
"""Entries of one worker, and of the agent itself; the oldest goes first."""
MAX_NAMES = 96
"""Workers whose entries are kept: more than can be defined, so that those of a removed one stay for a while."""
MAX_TEXT = 500
"""Longest text of an entry, characters."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the agent.

    Attributes:
        at: When, seconds since the epoch; for people, nothing is computed from it.
        number: Counts up over all entries, so that their order does not hang on a clock.
        worker: Whom it is about; empty: the agent itself.
        action: What happened, such as ``worker-tripped``.
        facts: The event's other fields.
    """

    at: float
    number: int
    worker: str
    action: str
    facts: dict[str, Any] = {}


class HistoryState(msgspec.Struct, kw_only=True):
    """The file: every entry that is kept, oldest first."""

    entries: list[Entry] = []


class History:
    """Keeps the last entries of each worker.

    Args:
        state: What was kept before; more of it than fits is forgotten.
    """

    def __init__(self, state: HistoryState | None = None) -> None:
        self._by_worker: dict[str, deque[Entry]] = {}
        self._number = 0
        for entry in sorted((state or HistoryState()).entries, key=lambda entry: entry.number):
            self._put(entry)

    def add(self, at: float, action: str, fields: dict[str, Any]) -> None:
        """Take an event.

        Args:
            at: Seconds since the epoch.
            action: What happened.
            fields: Whatever JSON can carry; ``worker`` says whom it is about. Long texts are cut.
        """
        facts = {key: _short(value) for key, value in fields.items() if key != "worker" and value not in (None, "")}
        worker = str(fields.get("worker", ""))[:MAX_TEXT]
        self._put(Entry(at=at, number=self._number + 1, worker=worker, action=action, facts=facts))

    def last(self, worker: str | None, count: int) -> list[Entry]:
        """Return the last entries of a worker, or of all and the agent, oldest first."""
        chosen: Iterable[Entry]
        if worker is not None:
            chosen = self._by_worker.get(worker, ())
        else:
            everything = [entry for entries in self._by_worker.values() for entry in entries]
            chosen = sorted(everything, key=lambda entry: entry.number)
        return list(chosen)[-count:] if count else []

    def knows(self, worker: str) -> bool:
        """Return whether anything is kept of a worker."""
        return worker in self._by_worker

    def state(self) -> HistoryState:
        """Return all that is kept, for the disk."""
        return HistoryState(entries=self.last(None, MAX_PER_WORKER * MAX_NAMES))

    def _put(self, entry: Entry) -> None:
        self._number = max(self._number, entry.number)
        entries = self._by_worker.pop(entry.worker, None)
        if entries is None:
            while len(self._by_worker) >= MAX_NAMES:
                # The one that nothing has happened to for the longest time.
                del self._by_worker[next(iter(self._by_worker))]
            entries = deque(maxlen=MAX_PER_WORKER)
        entries.append(entry)
        self._by_worker[entry.worker] = entries


def _short(value: Any, depth: int = 2) -> Any:
    """Return a value that is bounded in size, and that JSON can carry."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict) and depth:
        return {str(key)[:MAX_TEXT]: _short(item, depth - 1) for key, item in list(value.items())[:16]}
    if isinstance(value, list | tuple) and depth:
        return [_short(item, depth - 1) for item in value[:16]]
    text = str(value)
    # A lone surrogate, from a file name say, cannot be encoded.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
