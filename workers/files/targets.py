"""Which paths are tracked, and which directories lie on the way to them. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from garrison.workers.files.entry import DIRECTORY, LINK
from garrison.workers.files.rules import Rule

_GLOB: Final = re.compile(r"[*?\[]")


class Target(NamedTuple):
    """A place that is tracked, with all below it.

    Attributes:
        path: Absolute, with globs; without symbolic links in front of its first glob.
        key: The setting or preset entry it comes from. New homes bring new paths of a known key.
        rule: Its rule, or None.
        filtered: Whether `include` applies.
    """

    path: str
    key: str
    rule: Rule | None
    filtered: bool

    @property
    def alert(self) -> bool:
        """Whether a change is an alert."""
        return self.rule is not None and self.rule.alert


class Node:
    """One name on the way to targets."""

    __slots__ = ("alert", "first", "globs", "literal", "target")

    def __init__(self) -> None:
        self.literal: dict[str, Node] = {}
        self.globs: dict[str, tuple[re.Pattern[str], Node]] = {}
        self.target: Target | None = None
        self.first: Target | None = None
        self.alert = False


class State(NamedTuple):
    """What the map knows of one path.

    Attributes:
        nodes: Where targets further down may be.
        target: The target that covers the path, or None: it only lies on the way.
        depth: Levels below the target.
    """

    nodes: tuple[Node, ...]
    target: Target | None
    depth: int

    @property
    def alert(self) -> bool:
        """Whether an alert's place is here or below."""
        return (self.target is not None and self.target.alert) or any(node.alert for node in self.nodes)

    @property
    def owner(self) -> Target | None:
        """The target whose business this is, also where it only lies on the way."""
        if self.target is not None:
            return self.target
        return next((node.first for node in self.nodes if node.first is not None), None)


class Map:
    """Answers for each path whether it is tracked.

    Args:
        targets: What is tracked.
        include: Globs for files of filtered targets; none: all.
        exclude: Globs of what is not tracked.
    """

    def __init__(self, targets: Iterable[Target], include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self.keys: frozenset[str] = frozenset()
        self._include = _Globs(include)
        self._exclude = _Globs(exclude)
        root = Node()
        keys = set()
        for target in targets:
            keys.add(target.key)
            node = root
            node.alert |= target.alert
            node.first = _stronger(node.first, target)
            for part in parts(target.path):
                node = _child(node, part)
                node.alert |= target.alert
                node.first = _stronger(node.first, target)
            node.target = _stronger(node.target, target)
        self.keys = frozenset(keys)
        self.root = State((root,), root.target, 0)

    def step(self, state: State, path: str, name: str) -> State | None:
        """Return what is known of an entry, or None where it is nobody's business.

        Args:
            state: Of the directory.
            path: Of the entry.
            name: Its last part.
        """
        nodes: list[Node] = []
        found: Target | None = None
        for node in state.nodes:
            child = node.literal.get(name)
            if child is not None:
                nodes.append(child)
                found = _stronger(found, child.target)
            for pattern, other in node.globs.values():
                if pattern.match(name):
                    nodes.append(other)
                    found = _stronger(found, other.target)
        target, depth = state.target, state.depth + 1
        if found is not None and (target is None or found.alert or not target.alert):
            target, depth = found, 0
        deeper = tuple(node for node in nodes if node.literal or node.globs)
        if target is None and not deeper:
            return None
        if self._exclude.match(path, name):
            return None
        return State(deeper, target, depth if target is not None else 0)

    def state(self, path: str) -> State | None:
        """Return what is known of a path."""
        state = self.root
        at = ""
        for name in parts(path):
            at = f"{at}/{name}"
            following = self.step(state, at, name)
            if following is None:
                return None
            state = following
        return state

    def wanted(self, state: State, path: str, name: str, kind: str) -> bool:
        """Tell whether an entry of this state and `Entry.kind` is tracked itself."""
        if state.target is None:
            # On the way there should be a directory. A link in its place leads to files of somebody's choice.
            return kind == LINK
        return kind == DIRECTORY or not state.target.filtered or self._include.empty or self._include.match(path, name)


def parts(path: str) -> list[str]:
    """Return the names in a path."""
    return [part for part in path.split("/") if part]


def literal_prefix(path: str) -> tuple[str, str]:
    """Return the part of a pattern in front of the first name with a glob, and the rest."""
    names = parts(path)
    for index, name in enumerate(names):
        if _GLOB.search(name):
            return "/" + "/".join(names[:index]), "/".join(names[index:])
    return "/" + "/".join(names), ""


def below(path: str, folder: str) -> bool:
    """Tell whether a path is a folder or lies in it."""
    return path == folder or folder == "/" or path.startswith(f"{folder}/")


def _child(node: Node, part: str) -> Node:
    if _GLOB.search(part) is None:
        return node.literal.setdefault(part, Node())
    if part not in node.globs:
        node.globs[part] = (re.compile(fnmatch.translate(part)), Node())
    return node.globs[part][1]


def _stronger(one: Target | None, other: Target | None) -> Target | None:
    if one is None or other is None:
        return one or other
    return other if other.alert and not one.alert else one


class _Globs:
    """Globs without a slash look at the name, those with one at the whole path."""

    def __init__(self, globs: Iterable[str]) -> None:
        names: list[str] = []
        paths: list[str] = []
        for glob in globs:
            (paths if "/" in glob else names).append(fnmatch.translate(glob))
        self._names = re.compile("|".join(names)) if names else None
        self._paths = re.compile("|".join(paths)) if paths else None

    @property
    def empty(self) -> bool:
        return self._names is None and self._paths is None

    def match(self, path: str, name: str) -> bool:
        return (self._names is not None and self._names.match(name) is not None) or (
            self._paths is not None and self._paths.match(path) is not None
        )
