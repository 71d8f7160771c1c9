"""One look at the directories of a store: which keys of ours are there, with which values.

Only paths that concern this host are visited, by name: a backup of a million hosts beside them is never listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from garrison.supervisor.keys import VALUE_FILE, Scope, UnknownKeyError, parse_key, shown
from garrison.supervisor.stores.base import Refusal
from garrison.supervisor.stores.reading import UnreadableError, read_file
from garrison.supervisor.stores.values import MAX_VALUE_BYTES
from garrison.supervisor.stores.watching import SWAPPED_LINK, ignored_name

MAX_ENTRIES = 10_000
"""Most names that are looked at. What concerns the host most comes first; the rest is reported, not read."""

MAX_TOTAL_BYTES = 8 * 1024 * 1024
"""Most bytes of values that are held."""

MAX_DEPTH = 6
"""Deepest directory below a scope: two levels more than any key has."""

_MAX_PROBLEMS = 100

Interest: TypeAlias = "dict[str, Interest] | None"
"""What concerns us in a directory: some names, each with its own interest, or (None) everything below it."""


class Enter(Protocol):
    """Is told of each directory before it is listed; False: there is no such directory."""

    def __call__(self, path: str, names: frozenset[str] | None) -> bool:
        """Watch the directory, or look whether it is there."""


@dataclass(slots=True)
class Found:
    """What a look has found.

    Attributes:
        values: By key; bytes, or the reason why they could not be had.
        directories: The keys' directories that are there, as key prefixes without a slash at the end.
        links: Where key files that are symbolic links lead to: names by directory.
        problems: What could not be made sense of.
    """

    values: dict[str, bytes | UnreadableError] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    links: dict[str, set[str]] = field(default_factory=dict)
    problems: list[Refusal] = field(default_factory=list)
    names: int = 0
    total_bytes: int = 0

    def note(self, key: str, reason: str) -> None:
        """Note a problem; over a bound only that there are more."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(Refusal(key, 0, reason, "store"))


def interest_of(prefix: str, scopes: Sequence[Scope], bodies: Iterable[str] = ()) -> dict[str, Interest]:
    """Return the tree of what concerns a host, in the order in which it is read.

    Args:
        prefix: What all keys start with.
        scopes: The host's, from the most to the least specific.
        bodies: Bodies that are being waited for.
    """
    tree: dict[str, Interest] = {}
    for area in ("server", "agent"):
        for scope in scopes:
            _plant(tree, f"{prefix}/{area}/config/{scope}")
    _plant(tree, f"{prefix}/kafka")
    for sha256 in bodies:
        _plant(tree, f"{prefix}/config/body/{sha256}", everything=False)
    return tree


def _plant(tree: dict[str, Interest], path: str, *, everything: bool = True) -> None:
    *above, last = path[1:].split("/")
    for part in above:
        below = tree.setdefault(part, {})
        if below is None:
            return  # everything there concerns us already
        tree = below
    tree.setdefault(last, None if everything else {})


def look(root: str, prefix: str, interest: dict[str, Interest], enter: Enter) -> Found:
    """Visit what concerns us below `root` and read it.

    Raises:
        OSError: A directory could not be listed for another reason than that it is not there: what is absent is then
            not known, and nothing of the look can be used.
    """
    found = Found()
    files: list[tuple[str, str]] = []
    _visit(root, "", interest, enter, found, files)
    for key, path in files:
        _read(key, path, prefix, found)
    return found


def _visit(path: str, key: str, interest: Interest, enter: Enter, found: Found, files: list[tuple[str, str]]) -> None:
    if interest is None:
        _walk(path, key, 0, enter, found, files)
        return
    if not enter(path, frozenset(interest)):
        if os.path.lexists(path) and interest:
            found.note(key, "it is no directory; remove it or make it one")
        return
    found.directories.add(key)
    for name, below in interest.items():
        if below is None or below:
            _visit(f"{path}/{name}", f"{key}/{name}", below, enter, found, files)


def _walk(path: str, key: str, depth: int, enter: Enter, found: Found, files: list[tuple[str, str]]) -> None:
    if not enter(path, None):
        if os.path.lexists(path):
            found.note(key, "it is no directory; remove it or make it one")
        return
    try:
        names = _names(path)
    except (FileNotFoundError, NotADirectoryError):
        return  # gone since: that is an event of its own
    found.directories.add(key)
    for name in names:
        if name == SWAPPED_LINK or ignored_name(name):
            continue
        if found.names >= MAX_ENTRIES:
            found.note(key, f"more than {MAX_ENTRIES} names concern this host: from here on they are not read")
            return
        found.names += 1
        if not name.isprintable():
            found.note(f"{key}/{shown(name)}", "its name holds characters that no key has; it is not read")
            continue
        here = f"{path}/{name}"
        if os.path.isdir(here):
            if depth < MAX_DEPTH:
                _walk(here, f"{key}/{name}", depth + 1, enter, found, files)
            else:
                found.note(f"{key}/{name}", f"more than {MAX_DEPTH} directories deep; it is not read")
            continue
        if os.path.islink(here):
            directory, _, target = os.path.realpath(here).rpartition("/")
            found.links.setdefault(directory or "/", set()).add(target)
        files.append((key if name == VALUE_FILE else f"{key}/{name}", here))


def _names(path: str) -> list[str]:
    """Return the names in a directory, tasks last: what floods a host must not hide what stops its workers."""
    names: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if len(names) > MAX_ENTRIES:
                break  # reported where the names are counted
            names.append(entry.name)
    return sorted(names, key=lambda name: (name == "task", name))


def _read(key: str, path: str, prefix: str, found: Found) -> None:
    try:
        parse_key(key, prefix)
    except UnknownKeyError:
        # Reported by the resolution, as from any store; what it holds is nobody's business.
        found.values[key] = b""
        return
    try:
        if found.total_bytes >= MAX_TOTAL_BYTES:
            raise UnreadableError(f"not read: the keys of this host hold more than {MAX_TOTAL_BYTES} bytes")
        value = read_file(path, MAX_VALUE_BYTES)
    except FileNotFoundError:
        return  # gone since it was listed
    except UnreadableError as error:
        found.values[key] = error
        return
    found.total_bytes += len(value)
    found.values[key] = value
