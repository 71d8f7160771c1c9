"""Which alerts go out: repeats are counted instead of sent, and no more than so many a minute. Pure.

The same finding within a window is counted and told with the next one; where none follows, `expire` gives
the count up for a summary, so that no alert vanishes without a trace.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from garrison.ipc.pacing import TokenBucket

MAX_KEYS: Final = 1024
"""Most different findings that are remembered."""


class Key(NamedTuple):
    """What makes two findings the same."""

    rule: str
    executable: str
    parent: str
    uid: int


class _Entry:
    __slots__ = ("held", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.held = 0


class AlertGate:
    """Decides on alerts.

    Args:
        window: Seconds within which a finding counts as a repeat.
        per_minute: Most alerts a minute, and the burst.
        high: Severity from which a second allowance of the same size is used, so that a storm of lesser
            findings cannot hide a reverse shell.
    """

    def __init__(self, window: float, per_minute: float, high: int) -> None:
        self._window = window
        self._high = high
        self._buckets = (TokenBucket(per_minute / 60, per_minute), TokenBucket(per_minute / 60, per_minute))
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._overdue: dict[Key, int] = {}
        self.forgotten = 0
        """Alerts held back whose finding could not even be remembered for a summary."""

    def limit(self, window: float, per_minute: float) -> None:
        """Change the window (seconds) and the rate; findings already there keep their window."""
        self._window = window
        for bucket in self._buckets:
            bucket.limit(per_minute / 60, per_minute)

    def admit(self, key: Key, severity: int, now: float) -> int | None:
        """Return how many alerts of this finding were held back before it, or None: hold it back too.

        Args:
            key: The finding.
            severity: Its rule's severity.
            now: Monotonic seconds.
        """
        entry = self._entries.get(key)
        if entry is not None and now < entry.until:
            entry.held += 1
            return None
        if not self._buckets[severity >= self._high].admit(1, now):
            if entry is None:
                # Nothing was sent, so the next one is no repeat.
                entry = self._remember(key, now - self._window)
            entry.held += 1
            return None
        held = entry.held if entry is not None else 0
        fresh = self._remember(key, now)
        fresh.held = 0
        return held + self._overdue.pop(key, 0)

    def expire(self, now: float) -> dict[Key, int]:
        """Return what was held back of findings that have not come again for a whole further window."""
        given, self._overdue = self._overdue, {}
        for key, entry in list(self._entries.items()):
            if now < entry.until + self._window:
                continue
            if entry.held:
                given[key] = given.get(key, 0) + entry.held
            del self._entries[key]
        return given

    def _remember(self, key: Key, now: float) -> _Entry:
        entry = self._entries[key] = _Entry(now + self._window)
        self._entries.move_to_end(key)
        while len(self._entries) > MAX_KEYS:
            old, evicted = self._entries.popitem(last=False)
            if not evicted.held:
                continue
            if len(self._overdue) < MAX_KEYS or old in self._overdue:
                self._overdue[old] = self._overdue.get(old, 0) + evicted.held
            else:
                self.forgotten += evicted.held
        return entry
