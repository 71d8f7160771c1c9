"""The keys that concern this host, as they are in etcd: filled from a listing, kept by the events of the watch. Pure.

Everything is bounded as in the directory store. What is left out or not read is reported and never silent; a key
that cannot be held at all leaves a mark that the mirror is incomplete, so that its owner lists anew when there is
room again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from garrison.supervisor.keys import UnknownKeyError, parse_key, shown
from garrison.supervisor.stores.base import Entry, KillObservation, Refusal, Snapshot
from garrison.supervisor.stores.etcd.aim import Aim
from garrison.supervisor.stores.etcd.results import Event, KeyValue
from garrison.supervisor.stores.values import MAX_VALUE_BYTES

MAX_KEYS = 10_000
"""Most keys that are held; what concerns the host most was read first, the rest is reported."""

MAX_TOTAL_BYTES = 8 * 1024 * 1024
"""Most bytes of values that are held."""

_MAX_PROBLEMS = 100


class Taken(NamedTuple):
    """What events have changed.

    Attributes:
        kills: A killswitch key.
        keys: Any key that is part of a snapshot.
    """

    kills: bool
    keys: bool


class Mirror:
    """See the module. Not thread-safe.

    Args:
        aim: What concerns the host.
        prefix: What all keys start with.
    """

    def __init__(self, aim: Aim, prefix: str) -> None:
        self.aim = aim
        self.revision = 0
        self.incomplete = False
        self._prefix = prefix
        self._kill_keys = frozenset(aim.kill_keys)
        self._lone = frozenset(aim.lone_keys)
        self._kills: dict[str, Entry] = {}
        self._entries: dict[str, Entry] = {}
        self._bytes = 0
        self._left_out = 0
        self._unread: tuple[str, ...] = ()

    def obey(self, items: Iterable[KeyValue], revision: int) -> None:
        """Take the killswitch keys as they were at a revision; those that are not among `items` are absent."""
        self._kills = {item.key: _kill_entry(item.value, item.mod_revision) for item in items}
        self.revision = revision

    def fill(self, items: Sequence[KeyValue], revision: int, unread: Sequence[str] = ()) -> None:
        """Take everything as it was at a revision.

        Args:
            items: The keys, the most important first, killswitch keys among them.
            revision: Of the listing.
            unread: Prefixes of which not everything could be read.
        """
        self.obey((item for item in items if item.key in self._kill_keys), revision)
        self._entries, self._bytes, self._left_out = {}, 0, 0
        self._unread = tuple(unread)
        for item in items:
            if item.key not in self._lone:
                self._put(item.key, item.value, item.mod_revision)
        self.incomplete = bool(self._left_out or unread)

    def take_kills(self, events: Iterable[Event]) -> bool:
        """Take those events that concern killswitch keys; tell whether anything changed."""
        changed = False
        for event in events:
            if event.key not in self._kill_keys:
                continue
            entry = None if event.deleted else _kill_entry(event.value, event.mod_revision)
            changed |= self._kills.get(event.key) != entry
            if entry is None:
                self._kills.pop(event.key, None)
            else:
                self._kills[event.key] = entry
            self.revision = max(self.revision, event.mod_revision)
        return changed

    def take(self, events: Iterable[Event]) -> bool:
        """Take the events of one message, in their order; tell whether a snapshot would look different."""
        changed = False
        for event in events:
            self.revision = max(self.revision, event.mod_revision)
            if event.key in self._lone or not event.key.startswith(self.aim.prefixes):
                continue
            before = self._entries.get(event.key)
            if event.deleted:
                self._remove(event.key)
            else:
                self._put(event.key, event.value, event.mod_revision)
            changed |= self._entries.get(event.key) != before
        return changed

    def kills(self, history: str) -> KillObservation:
        """Return what is known of the killswitch keys."""
        return KillObservation(dict(self._kills), self._kill_keys, self.revision, history)

    def snapshot(self, history: str, term: int = 0) -> Snapshot:
        """Return the keys as they are now."""
        entries = {key: entry for key, entry in self._entries.items() if key.isprintable()}
        return Snapshot(entries, self.revision, history, self.aim.groups, self._problems(), term)

    def tally(self) -> tuple[tuple[int, int], ...]:
        """Return, for each prefix of the aim and then each lone key, how many keys there are and the newest revision.

        The same numbers that a count in etcd gives.
        """
        counts = dict.fromkeys(self.aim.prefixes, (0, 0))
        for key, entry in self._entries.items():
            for prefix in self.aim.prefixes:
                if key.startswith(prefix):
                    count, newest = counts[prefix]
                    counts[prefix] = (count + 1, max(newest, entry.revision))
                    break
        alone = (self._kills.get(key) for key in self.aim.lone_keys)
        return (*counts.values(), *((0, 0) if entry is None else (1, entry.revision) for entry in alone))

    def _put(self, key: str, value: bytes, revision: int) -> None:
        self._remove(key)
        if len(self._entries) >= MAX_KEYS and key not in self._kill_keys:
            self._left_out += 1
            self.incomplete = True
            return
        error = ""
        if not self._known(key):
            value = b""  # reported by the resolution, as from any store; what it holds is nobody's business
        elif len(value) > MAX_VALUE_BYTES:
            value, error = b"", f"{len(value)} bytes; at most {MAX_VALUE_BYTES} are allowed"
        elif self._bytes + len(value) > MAX_TOTAL_BYTES:
            value, error = b"", f"not read: the keys of this host hold more than {MAX_TOTAL_BYTES} bytes"
            self.incomplete = True
        self._bytes += len(value)
        self._entries[key] = Entry(value, revision, error)

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry.value)

    def _known(self, key: str) -> bool:
        try:
            parse_key(key, self._prefix)
        except UnknownKeyError:
            return False
        return True

    def _problems(self) -> tuple[Refusal, ...]:
        found = [
            Refusal(shown(key), entry.revision, "its name holds characters that no key has; it is not read", "store")
            for key, entry in self._entries.items()
            if not key.isprintable()
        ][:_MAX_PROBLEMS]
        if self._left_out:
            text = f"more than {MAX_KEYS} keys concern this host: {self._left_out} of them are not read"
            found.append(Refusal("", 0, text, "store"))
        found += [
            Refusal(prefix, 0, "there are more keys below it than are read: remove those that are not needed", "store")
            for prefix in self._unread
        ]
        return tuple(found)


def _kill_entry(value: bytes, revision: int) -> Entry:
    """Return the entry of a killswitch key; what is wrong with its value counts as engaged, so nothing is judged."""
    if len(value) > MAX_VALUE_BYTES:
        return Entry(b"", revision, f"{len(value)} bytes; at most {MAX_VALUE_BYTES} are allowed")
    return Entry(value, revision)
