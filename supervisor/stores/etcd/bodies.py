"""Which bodies are wanted, and when each is fetched. Pure: time comes in as an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from garrison.ipc.pacing import spread
from garrison.supervisor.keys import Scope, UnknownKeyError, parse_key
from garrison.supervisor.stores.base import Entry
from garrison.supervisor.stores.values import ValueRefusedError, body_reference

SPREAD_SECONDS = 60.0
"""Over how long a fleet spreads its fetches of a body that a shared key refers to."""

MAX_BODIES = 256


class Wanted:
    """The bodies that are asked for and not here yet.

    Args:
        host: For the spread.
        prefix: What all keys start with.
        spread_seconds: See `SPREAD_SECONDS`.
    """

    def __init__(self, host: str, prefix: str, spread_seconds: float = SPREAD_SECONDS) -> None:
        self._host = host
        self._prefix = prefix
        self._spread = spread_seconds
        self._due: dict[str, float | None] = {}  # None: asked for, absent, and watched

    def ask(self, ids: Iterable[str], entries: Mapping[str, Entry], now: float) -> None:
        """Replace what is asked for.

        One that only keys of shared scopes refer to has its time by host hash; one that a key of this host alone
        refers to is fetched at once.

        Args:
            ids: At most `MAX_BODIES` are taken.
            entries: The keys as they are known.
            now: Monotonic seconds.
        """
        wanted = sorted(set(ids))[:MAX_BODIES]
        shared = _only_shared(entries, self._prefix) if any(sha256 not in self._due for sha256 in wanted) else set()
        self._due = {
            sha256: self._due[sha256]
            if sha256 in self._due
            else now + (self._spread * spread(self._host, "body", sha256) if sha256 in shared else 0.0)
            for sha256 in wanted
        }

    def due(self, now: float) -> str | None:
        """Return one body whose time has come."""
        return next((sha256 for sha256, at in self._due.items() if at is not None and at <= now), None)

    def next_at(self) -> float:
        """Return when the next one is due; infinity where none is."""
        return min((at for at in self._due.values() if at is not None), default=float("inf"))

    def done(self, sha256: str) -> bool:
        """Note that a body has come; tell whether it was still wanted."""
        if sha256 not in self._due:
            return False
        del self._due[sha256]
        return True

    def absent(self, sha256: str) -> None:
        """Note that a body is not there: from now on it is watched, not fetched."""
        if sha256 in self._due:
            self._due[sha256] = None

    def again(self, now: float) -> None:
        """Note that nothing is watched any more: what was absent is fetched once more."""
        self._due = {sha256: now if at is None else at for sha256, at in self._due.items()}


def _only_shared(entries: Mapping[str, Entry], prefix: str) -> set[str]:
    """Return the bodies that keys of shared scopes refer to, and no key of this host alone."""
    shared: set[str] = set()
    own: set[str] = set()
    for key, entry in entries.items():
        try:
            sha256 = body_reference(entry.value)
            scope = getattr(parse_key(key, prefix), "scope", None) if sha256 else None
        except (ValueRefusedError, UnknownKeyError):
            continue
        if sha256 is not None and isinstance(scope, Scope):
            (shared if scope.shared else own).add(sha256)
    return shared - own
