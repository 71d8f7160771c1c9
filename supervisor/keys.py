"""The key grammar: text of a key to a typed value and back. Pure.

A key is ``<prefix>/<area>/…``; most areas carry a **scope**: ``@all``, ``@group/<name>`` (two components) or a
hostname. Prefix, scopes and names are plain text; nothing in a key is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

DEFAULT_PREFIX = "/hids"

MAX_COMPONENT_BYTES = 255
"""Longest component of a key, bytes: what a file name may have, so that every key fits a directory store."""

MAX_GROUPS = 64
"""Most groups of one host: each costs three watches and a lookup for every slot."""

PLUGIN_NAMES = ("settings", "budget", "rules")
KAFKA_NAMES = ("host", "topic")
VALUE_FILE = "@value"
"""The file that holds a key's own value where the key is also a directory; never a component of a key."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN_LENGTH = 300


class KeyGrammarError(ValueError):
    """A prefix, a scope or a name cannot stand in a key. The text says which and why."""


class UnknownKeyError(ValueError):
    """The text is no key of ours. The text names the nearest one; the operator renames or deletes the key.

    Attributes:
        key: The text as it was found.
        nearest: The nearest valid key, or an empty string where nothing is near.
    """

    def __init__(self, key: str, nearest: str = "") -> None:
        super().__init__(f"unknown key {shown(key)}" + (f", nearest {shown(nearest)}" if nearest else ""))
        self.key = key
        self.nearest = nearest


def shown(text: str, limit: int = _SHOWN_LENGTH) -> str:
    """Return text from outside in a form fit for a log line: printable, at most `limit` characters."""
    clipped = text[:limit]
    safe = clipped if clipped.isprintable() else ascii(clipped)[1:-1][:limit]
    return safe if len(text) <= limit else safe[: limit - 1] + "…"


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return the candidate most like `word`, or an empty string where none is near."""
    from difflib import get_close_matches

    # The comparison is quadratic in the length: what is looked at of a hostile word is bounded.
    found = get_close_matches(word[:_SHOWN_LENGTH], list(candidates), n=1, cutoff=0.6)
    return found[0] if found else ""


def check_component(text: str, what: str) -> str:
    """Return `text` where it can be one component of a key.

    It is not empty, holds no slash, whitespace or control character, does not start with ``@`` (scopes) or
    ``.`` (files that a directory store does not look at), and has at most 255 bytes.

    Raises:
        KeyGrammarError: It cannot; `what` names it in the text.
    """
    if not text:
        raise KeyGrammarError(f"{what} is empty")
    if text[0] in "@.":
        raise KeyGrammarError(f"{what} {shown(text)!r} starts with {text[0]!r}")
    if "/" in text or not text.isprintable() or any(character.isspace() for character in text):
        raise KeyGrammarError(f"{what} {shown(text)!r} holds a slash, a space or an unprintable character")
    if len(text.encode()) > MAX_COMPONENT_BYTES:
        raise KeyGrammarError(f"{what} {shown(text, 40)!r} is longer than {MAX_COMPONENT_BYTES} bytes")
    return text


def check_prefix(prefix: str) -> str:
    """Return `prefix` where all keys can start with it: ``/`` and components, no slash at the end.

    Raises:
        KeyGrammarError: It cannot.
    """
    if not prefix.startswith("/") or prefix.endswith("/"):
        raise KeyGrammarError(f"the prefix {shown(prefix)!r} must start with a slash and not end with one")
    for part in prefix[1:].split("/"):
        check_component(part, "a component of the prefix")
    return prefix


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Whom a key is for. ``name`` is empty for ``all``."""

    kind: Literal["all", "group", "host"]
    name: str = ""

    def __str__(self) -> str:
        """Return the scope as it stands in a key."""
        if self.kind == "all":
            return "@all"
        return f"@group/{self.name}" if self.kind == "group" else self.name

    @property
    def shared(self) -> bool:
        """True where other hosts have the same scope, so that work it starts must be spread."""
        return self.kind != "host"


ALL = Scope("all")


def host_scope(name: str) -> Scope:
    """Return the scope of one host.

    Raises:
        KeyGrammarError: The hostname cannot stand in a key.
    """
    return Scope("host", check_component(name, "the hostname"))


def group_scope(name: str) -> Scope:
    """Return the scope of a group.

    Raises:
        KeyGrammarError: The name cannot stand in a key.
    """
    return Scope("group", check_component(name, "the group name"))


def parse_scope(text: str) -> Scope:
    """Return the scope that `text` names.

    Raises:
        KeyGrammarError: It names none.
    """
    if text == "@all":
        return ALL
    if text.startswith("@group/"):
        return group_scope(text.removeprefix("@group/"))
    return host_scope(text)


def scopes_of(host: str, groups: Sequence[str]) -> tuple[Scope, ...]:
    """Return the scopes that concern a host, from the most to the least specific.

    Raises:
        KeyGrammarError: The hostname or a group name cannot stand in a key, or there are too many groups.
    """
    if len(groups) > MAX_GROUPS:
        raise KeyGrammarError(f"{len(groups)} groups; at most {MAX_GROUPS} are allowed")
    return (host_scope(host), *(group_scope(name) for name in dict.fromkeys(groups)), ALL)


@dataclass(frozen=True, slots=True)
class KillswitchKey:
    """Stops every worker in the scope."""

    scope: Scope

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/server/config/{self.scope}/killswitch"


@dataclass(frozen=True, slots=True)
class WorkerKey:
    """``start``, ``stop`` or ``freeze`` of one worker."""

    scope: Scope
    worker: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/server/config/{self.scope}/worker/{self.worker}"


@dataclass(frozen=True, slots=True)
class WorkerLogLevelKey:
    """The log level of one worker."""

    scope: Scope
    worker: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/server/config/{self.scope}/worker/{self.worker}/log_level"


@dataclass(frozen=True, slots=True)
class WorkerResetKey:
    """Any new value unlatches the worker's breaker."""

    scope: Scope
    worker: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/server/config/{self.scope}/worker/{self.worker}/reset"


@dataclass(frozen=True, slots=True)
class MasterKey:
    """Settings of the master itself."""

    scope: Scope

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/server/config/{self.scope}/master"


@dataclass(frozen=True, slots=True)
class TaskKey:
    """One piece of work for a worker."""

    scope: Scope
    id: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/server/config/{self.scope}/task/{self.id}"


@dataclass(frozen=True, slots=True)
class PluginKey:
    """A document for a worker: one of `PLUGIN_NAMES`."""

    scope: Scope
    worker: str
    name: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/agent/config/{self.scope}/plugin/{self.worker}/{self.name}"


@dataclass(frozen=True, slots=True)
class BodyKey:
    """An immutable body, named by the SHA-256 of its bytes in lower-case hexadecimal."""

    sha256: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/config/body/{self.sha256}"


@dataclass(frozen=True, slots=True)
class KafkaKey:
    """Where events go: one of `KAFKA_NAMES`."""

    name: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/kafka/{self.name}"


@dataclass(frozen=True, slots=True)
class RegistrationKey:
    """Written by the agent of a host, on its lease."""

    host: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/agent/master/{self.host}"


@dataclass(frozen=True, slots=True)
class StatusKey:
    """Slow facts about a host, written by its agent, on its lease."""

    host: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/agent/status/{self.host}"


@dataclass(frozen=True, slots=True)
class AliveKey:
    """The registration of the older layout: ``<hostname>--<ip>``. An address never holds two hyphens in a row."""

    host: str
    ip: str

    def path(self) -> str:
        """Return the key without its prefix."""
        return f"/alivehost/{self.host}--{self.ip}"


ScopedKey: TypeAlias = KillswitchKey | WorkerKey | WorkerLogLevelKey | WorkerResetKey | MasterKey | TaskKey | PluginKey
Key: TypeAlias = ScopedKey | BodyKey | KafkaKey | RegistrationKey | StatusKey | AliveKey


def format_key(key: Key, prefix: str = DEFAULT_PREFIX) -> str:
    """Return the full text of a key."""
    return prefix + key.path()


def parse_key(text: str, prefix: str = DEFAULT_PREFIX) -> Key:
    """Return the key that `text` is.

    Raises:
        UnknownKeyError: It is none of ours; the text names the nearest key.
    """
    if text.startswith(prefix + "/"):
        parts = text[len(prefix) + 1 :].split("/")
        try:
            key = _parse(parts)
        except KeyGrammarError:
            key = None
        if key is not None:
            return key
    raise UnknownKeyError(text, nearest(text, _candidates(text, prefix)))


def _parse(parts: list[str]) -> Key | None:
    match parts:
        case ["server" | "agent" as area, "config", *rest] if rest:
            scope, tail = _take_scope(rest)
            return _parse_server(scope, tail) if area == "server" else _parse_agent(scope, tail)
        case ["config", "body", sha256] if _SHA256.fullmatch(sha256):
            return BodyKey(sha256)
        case ["kafka", name] if name in KAFKA_NAMES:
            return KafkaKey(name)
        case ["agent", "master", host]:
            return RegistrationKey(check_component(host, "the hostname"))
        case ["agent", "status", host]:
            return StatusKey(check_component(host, "the hostname"))
        case ["alivehost", name] if "--" in name:
            check_component(name, "the name")
            host, _, ip = name.rpartition("--")
            return AliveKey(host, ip) if host and ip else None
    return None


def _take_scope(parts: list[str]) -> tuple[Scope, list[str]]:
    taken = 2 if parts[0] == "@group" else 1
    return parse_scope("/".join(parts[:taken])), parts[taken:]


def _parse_server(scope: Scope, tail: list[str]) -> Key | None:
    match tail:
        case ["killswitch"]:
            return KillswitchKey(scope)
        case ["master"]:
            return MasterKey(scope)
        case ["task", name]:
            return TaskKey(scope, check_component(name, "the task id"))
        case ["worker", worker]:
            return WorkerKey(scope, check_component(worker, "the worker name"))
        case ["worker", worker, "log_level"]:
            return WorkerLogLevelKey(scope, check_component(worker, "the worker name"))
        case ["worker", worker, "reset"]:
            return WorkerResetKey(scope, check_component(worker, "the worker name"))
    return None


def _parse_agent(scope: Scope, tail: list[str]) -> Key | None:
    match tail:
        case ["plugin", worker, name] if name in PLUGIN_NAMES:
            return PluginKey(scope, check_component(worker, "the worker name"), name)
    return None


def _candidates(text: str, prefix: str) -> list[str]:
    """Return keys that somebody who wrote `text` may have meant, made of its own scope and names."""
    parts = text.removeprefix(prefix).strip("/").split("/")
    scope = "@all"
    tail: list[str] = []
    if len(parts) > 2:
        taken = 2 if parts[2].startswith("@g") else 1
        scope = "/".join(parts[2 : 2 + taken])
        tail = parts[2 + taken :]
        try:
            parse_scope(scope)
        except KeyGrammarError:
            scope = "@group/" + parts[3] if taken == 2 and len(parts) > 3 else "@all"
    middle = tail[1] if len(tail) > 1 else "<name>"
    server, agent = f"{prefix}/server/config/{scope}", f"{prefix}/agent/config/{scope}"
    return [
        f"{server}/killswitch",
        f"{server}/master",
        f"{server}/worker/{middle}",
        f"{server}/worker/{middle}/log_level",
        f"{server}/worker/{middle}/reset",
        f"{server}/task/{middle}",
        *(f"{agent}/plugin/{middle}/{name}" for name in PLUGIN_NAMES),
        *(f"{prefix}/kafka/{name}" for name in KAFKA_NAMES),
    ]


def watch_prefixes(prefix: str, host: str, groups: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes whose keys concern a host; each ends in a slash, none contains another.

    Those with killswitches come first. Bodies are not among them: they are fetched by name.

    Raises:
        KeyGrammarError: The hostname or a group name cannot stand in a key, or there are too many groups.
    """
    scopes = scopes_of(host, groups)
    return (
        *(f"{prefix}/server/config/{scope}/" for scope in scopes),
        *(f"{prefix}/agent/config/{scope}/" for scope in scopes),
        f"{prefix}/kafka/",
    )


def killswitch_keys(prefix: str, host: str, groups: Sequence[str], also: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the killswitch keys that concern a host.

    Args:
        prefix: What all keys start with.
        host: The hostname.
        groups: The host's groups.
        also: Groups that the host has left while their killswitch was engaged: still looked at, so that an
            ``off`` is seen.

    Raises:
        KeyGrammarError: The hostname or a group name cannot stand in a key, or there are too many groups.
    """
    scopes = dict.fromkeys((*scopes_of(host, groups), *(group_scope(name) for name in also)))
    return tuple(format_key(KillswitchKey(scope), prefix) for scope in scopes)
