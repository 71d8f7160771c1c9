"""Revisions and histories for a store that has none of its own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from garrison.supervisor.stores.base import Entry, Refusal, Snapshot


class Value(NamedTuple):
    """What was read for a key: bytes, or why there are none."""

    data: bytes
    error: str = ""


class Ledger:
    """Numbers the changes of a directory, as etcd numbers its own.

    A key gets a new revision when its value differs, not when its file was touched: configuration management that
    rewrites the same files resets no breaker. Values survive a change of history, and their revisions with them.

    Args:
        seed: The last snapshot of the process before, so that revisions go on and nothing looks new.
    """

    def __init__(self, seed: Snapshot | None = None) -> None:
        self.entries: dict[str, Entry] = {} if seed is None else dict(seed.entries)
        self.revision = 0 if seed is None else seed.revision
        self._identity, self._generation = _parse(seed.history if seed is not None else "")

    @property
    def history(self) -> str:
        """Which directory this is, and the how-manieth life of it."""
        return f"dir-{self._identity}-{self._generation}"

    def start(self, identity: str) -> None:
        """Take the identity of the root directory before the first look; does nothing where one is known."""
        self._identity = self._identity or identity

    def forget(self, concerns: Callable[[str], bool]) -> None:
        """Drop what is not looked at any more: that it does not show up says nothing about the directory."""
        for key in [key for key in self.entries if not concerns(key)]:
            del self.entries[key]

    def put(self, key: str, value: Value) -> Entry:
        """Note a value that was read ahead of the others."""
        entry = self.entries.get(key)
        if entry is None or (entry.value, entry.error) != value:
            self.revision += 1
            entry = self.entries[key] = Entry(value.data, self.revision, value.error)
        return entry

    def take(
        self, values: Mapping[str, Value], identity: str, directories: AbstractSet[str], *, replaced: bool = False
    ) -> None:
        """Note all values of one look.

        Args:
            values: By key; a key that is not there is absent.
            identity: Of the root directory.
            directories: The directories that are there, as key prefixes.
            replaced: The root directory was seen to go, even if another one has the same identity by now.
        """
        if replaced or identity != self._identity or self._emptied(values, directories):
            self._generation += bool(self._identity)  # the first identity is no change of anything
            self._identity = identity
        changed = {
            key
            for key, value in values.items()
            if key not in self.entries or (self.entries[key].value, self.entries[key].error) != value
        }
        gone = self.entries.keys() - values.keys()
        if not changed and not gone:
            return
        self.revision += 1
        for key in gone:
            del self.entries[key]
        for key in changed:
            self.entries[key] = Entry(values[key].data, self.revision, values[key].error)

    def _emptied(self, values: Mapping[str, Value], directories: AbstractSet[str]) -> bool:
        """Tell whether every key is gone, and its directory too: nobody deletes keys like that one by one."""
        if values or not self.entries:
            return False
        return not any(key in directories or key.rpartition("/")[0] in directories for key in self.entries)

    def snapshot(self, groups: tuple[str, ...], problems: tuple[Refusal, ...]) -> Snapshot:
        """Return the keys as they are."""
        return Snapshot(dict(self.entries), self.revision, self.history, groups, problems)


def _parse(history: str) -> tuple[str, int]:
    parts = history.split("-")
    if len(parts) == 3 and parts[0] == "dir" and parts[2].isdecimal():
        return parts[1], int(parts[2])
    return "", 0
