"""One slot at a time: which key decides, whether its value holds, and what stays where it does not.

A slot is one thing that can be decided: the action of a worker, its budget, the master's settings. Rules:

1. The most specific key that is there decides.
2. If its value fails its check it is refused, and what was in force stays, until that key changes or goes.
3. Where nothing was in force, the next less specific valid value holds, and without any the default.
4. Where the store's history has changed, a key that is gone still counts as there with its last value: nobody
   is known to have deleted it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from garrison.supervisor.desired.model import MAX_PROBLEMS, Accepted, Context, Memory
from garrison.supervisor.stores.base import Entry, Refusal, RefusalKind, Snapshot
from garrison.supervisor.stores.values import (
    MAX_BODY_BYTES,
    MAX_INLINE_BYTES,
    ValueRefusedError,
    body_reference,
)

T = TypeVar("T")

Check = Callable[[bytes, int], T]
"""Takes a value and the most bytes it may have; returns what it means or raises `ValueError`."""


class Decision(Generic[T]):
    """The outcome for one slot."""

    __slots__ = ("key", "revision", "value")

    def __init__(self, value: T, key: str, revision: int) -> None:
        self.value = value
        self.key = key
        self.revision = revision


class _PendingError(Exception):
    """The body that a value refers to is not here yet."""


class Slots:
    """Decides slots against one snapshot and gathers what is wrong and what is to be remembered."""

    def __init__(self, snapshot: Snapshot, context: Context, memory: Memory) -> None:
        self.entries = snapshot.entries
        self.problems: list[Refusal] = []
        self.missing: set[str] = set()
        self.accepted: dict[str, Accepted] = {}
        self._context = context
        self._memory = memory
        self._same_history = memory.history in ("", snapshot.history)

    def decide(
        self, slot: str, keys: Sequence[str], check: Check[T], *, limit: int, document: bool = False
    ) -> Decision[T] | None:
        """Return what holds in a slot, or None where that is the default.

        Args:
            slot: Its name in the memory.
            keys: Those that can decide it, the most specific first.
            check: Of the value.
            limit: Most bytes of a value.
            document: The value may be ``id:<sha256>``, and inside the key it has at most 4 KiB.
        """
        before = self._memory.slots.get(slot)
        held = self._held(before, keys)
        present = [key for key in keys if key in self.entries or (held is not None and held.key == key)]
        for position, key in enumerate(present):
            if held is not None and key == held.key:
                decision = self._recall(slot, held, check)
            else:
                decision = self._try(slot, key, check, limit, document)
            if decision is None and position == 0 and before is not None:
                old = held or before
                decision = self._recall(slot, old, check)
                if decision is not None and old.key in present[1:]:
                    # What stands between the two was refused when the old value was chosen, and still is.
                    for skipped in present[1 : present.index(old.key)]:
                        self._try(slot, skipped, check, limit, document)
                    self.accepted[slot] = old
            if decision is not None:
                return decision
        return None

    def refuse(self, key: str, reason: str, kind: RefusalKind = "refused") -> None:
        """Note something wrong with a key."""
        entry = self.entries.get(key)
        self.problems.append(Refusal(key, 0 if entry is None else entry.revision, reason, kind))

    def _held(self, before: Accepted | None, keys: Sequence[str]) -> Accepted | None:
        if before is None or before.key in self.entries or before.key not in keys:
            return None
        if self._same_history and not before.held:
            return None  # deleted in the ordinary way
        return msgspec.structs.replace(before, held=True)

    def _recall(self, slot: str, accepted: Accepted, check: Check[T]) -> Decision[T] | None:
        """Take what was accepted before, if it still passes: the file below it may have changed."""
        try:
            value = check(accepted.value, MAX_BODY_BYTES)
        except ValueError as error:
            self.refuse(accepted.key, f"its last accepted value does not pass any more: {error}")
            return None
        if accepted.held:
            reason = (
                "the store was replaced or emptied and has no such key, nobody was seen to delete it: its last value "
                "stays. Write the key again, and delete it then if it is not wanted"
            )
            self.problems.append(Refusal(accepted.key, accepted.revision, reason, "held"))
        self.accepted[slot] = accepted
        return Decision(value, accepted.key, accepted.revision)

    def _try(self, slot: str, key: str, check: Check[T], limit: int, document: bool) -> Decision[T] | None:
        entry = self.entries[key]
        try:
            content, limit = self._content(entry, limit, document)
            value = check(content, limit)
        except _PendingError as error:
            self.refuse(key, str(error), "pending")
            return None
        except ValueError as error:
            self.refuse(key, str(error))
            return None
        self.accepted[slot] = Accepted(key, entry.revision, content)
        return Decision(value, key, entry.revision)

    def _content(self, entry: Entry, limit: int, document: bool) -> tuple[bytes, int]:
        if entry.error:
            raise ValueRefusedError(entry.error)
        if not document:
            return entry.value, limit
        sha256 = body_reference(entry.value)
        if sha256 is None:
            if len(entry.value) > MAX_INLINE_BYTES:
                raise ValueRefusedError(
                    f"{len(entry.value)} bytes; at most {MAX_INLINE_BYTES} are allowed in the key: store it as a body "
                    "and write id:<sha256> here"
                )
            return entry.value, MAX_INLINE_BYTES
        body = self._context.bodies.get(sha256)
        if body is None:
            self.missing.add(sha256)
            raise _PendingError(f"body {sha256} is not available yet")
        if len(body) > MAX_BODY_BYTES:
            raise ValueRefusedError(f"body {sha256} has {len(body)} bytes; at most {MAX_BODY_BYTES} are allowed")
        found = hashlib.sha256(body).hexdigest()
        if found != sha256:
            raise ValueRefusedError(f"body {sha256} does not match its name: its SHA-256 is {found}")
        return body, MAX_BODY_BYTES


def bounded(problems: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """Return problems sorted, each once, at most `MAX_PROBLEMS` and one that counts the rest."""
    whole = sorted(set(problems))
    if len(whole) <= MAX_PROBLEMS:
        return tuple(whole)
    rest = len(whole) - MAX_PROBLEMS
    return (*whole[:MAX_PROBLEMS], Refusal("", 0, f"and {rest} more problems", "store"))
