"""Values that may be half written: seen twice before they count. Pure.

``echo stop > file`` empties the file before it writes, and an editor moves the old file away before the new one
is there. What looks like that is read once more after `SETTLE_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import msgspec

from garrison.supervisor.keys import (
    KillswitchKey,
    UnknownKeyError,
    WorkerKey,
    WorkerLogLevelKey,
    WorkerResetKey,
    parse_key,
)
from garrison.supervisor.stores.ledger import Value
from garrison.supervisor.stores.values import ValueRefusedError, action_of, killswitch_of, log_level_of

SETTLE_SECONDS = 0.05
MAX_ROUNDS = 4
"""After so many looks a value counts, however often it changes."""


def unfinished(key: str, value: Value, prefix: str) -> bool:
    """Tell whether a value looks half written: empty, unreadable for its key, or the beginning of a document."""
    try:
        parsed = parse_key(key, prefix)
    except UnknownKeyError:
        return False
    if isinstance(parsed, KillswitchKey) and value.error:
        return True
    if value.error:
        return False
    if not value.data.strip():
        return True
    try:
        if isinstance(parsed, KillswitchKey):
            killswitch_of(value.data)
        elif isinstance(parsed, WorkerKey):
            action_of(value.data)
        elif isinstance(parsed, WorkerLogLevelKey):
            log_level_of(value.data)
        elif not isinstance(parsed, WorkerResetKey) and value.data.lstrip()[:1] in (b"{", b"["):
            msgspec.json.decode(value.data)
    except (ValueRefusedError, msgspec.MsgspecError, ValueError, RecursionError):
        return True
    return False


class Settling:
    """Holds back a look at the keys until what is doubtful in it was seen twice."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._doubtful: dict[str, Value | None] = {}
        self._rounds = 0

    def settled(self, before: Mapping[str, Value], now: Mapping[str, Value], vital: AbstractSet[str]) -> bool:
        """Tell whether `now` can be believed; if not, look again after `SETTLE_SECONDS`.

        Args:
            before: The values that count so far.
            now: The values of this look.
            vital: Keys whose absence must be seen twice too: killswitches.
        """
        doubtful: dict[str, Value | None] = {
            key: value
            for key, value in now.items()
            if before.get(key) != value and unfinished(key, value, self._prefix)
        }
        doubtful.update(dict.fromkeys(key for key in vital if key in before and key not in now))
        unknown = {key for key, value in doubtful.items() if key not in self._doubtful or self._doubtful[key] != value}
        self._rounds += 1
        if unknown and self._rounds < MAX_ROUNDS:
            self._doubtful = doubtful
            return False
        self._doubtful = {}
        self._rounds = 0
        return True
