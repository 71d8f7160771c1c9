"""What goes into the resolution and what comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from garrison.ipc.messages import LogLevel
from garrison.supervisor.keys import DEFAULT_PREFIX
from garrison.supervisor.stores.base import Refusal
from garrison.supervisor.stores.values import Action, SinkChoice

DEFAULT = "default"
"""Decided by the configuration file or the built-in values: no key says anything."""

LOCAL = "local"
"""Decided by ``garrison stop`` or ``garrison freeze`` on this host."""

MAX_PROBLEMS = 200
"""Most problems that are listed; a last one says how many were left out."""

Override: TypeAlias = Literal["stop", "freeze"]

CheckBudget: TypeAlias = Callable[[Any, Any], Any]
"""Lays a decoded document over a base and returns the result.

Raises:
    ValueError: The document cannot be used; the text says why.
"""


@dataclass(frozen=True, slots=True)
class WorkerBase:
    """A worker as the configuration file defines it: what holds where no key says anything.

    Attributes:
        settings: The settings table of the file.
        budget: Passed to `CheckBudget` as the base, and on as it is.
        log_level: The level of the file.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: Any = None
    log_level: LogLevel = "info"


@dataclass(frozen=True, slots=True)
class Context:
    """What the resolution needs to know of the host.

    Attributes:
        host: The hostname.
        workers: The defined workers, by name.
        check_budget: For the ``budget`` documents of workers.
        check_aggregate: For the ``aggregate`` table of ``master`` documents.
        groups: The groups of the file, from the most to the least specific.
        prefix: What all keys start with.
        aggregate: The aggregate caps of the file: the base for `check_aggregate`.
        local: What was stopped or frozen at this host, by worker.
        bodies: The bodies that are here, by SHA-256. They are hashed again: a body that does not match its name is
            refused.
    """

    host: str
    workers: Mapping[str, WorkerBase]
    check_budget: CheckBudget
    check_aggregate: CheckBudget
    groups: tuple[str, ...] = ()
    prefix: str = DEFAULT_PREFIX
    aggregate: Any = None
    local: Mapping[str, Override] = field(default_factory=dict)
    bodies: Mapping[str, bytes] = field(default_factory=dict)


class Accepted(msgspec.Struct, frozen=True):
    """The value in force of one slot.

    Attributes:
        key: That decided.
        revision: Of that key.
        value: What was accepted: the body itself where the key referred to one.
        held: The key is gone since the store's history changed, which changes nothing.
    """

    key: str
    revision: int
    value: bytes
    held: bool = False


class ResetMemory(msgspec.Struct, frozen=True):
    """The reset keys of a worker that have been seen, by key, and the token that stands for them."""

    token: str = ""
    seen: dict[str, str] = {}


class Memory(msgspec.Struct, frozen=True):
    """What the next resolution needs of this one. Serialisable.

    Its size is bounded by that of the values: one accepted value for each slot of a defined worker (two documents
    of at most `MAX_BODY_BYTES`, one of 4 KiB, two of 64 KiB), and three for the host.

    Attributes:
        history: Of the store that was resolved last.
        slots: The accepted values, by slot.
        resets: By worker.
    """

    history: str = ""
    slots: dict[str, Accepted] = {}
    resets: dict[str, ResetMemory] = {}


class WorkerDesired(msgspec.Struct, frozen=True):
    """What one worker should be. Each ``…_by`` is a key in full, ``local`` or ``default``.

    Attributes:
        action: Start, stop or freeze.
        settings: The file's table with the document's fields over it.
        budget: As `CheckBudget` returned it.
        log_level: Of the worker.
        rules: The ``rules`` document, or None.
        reset_token: Changes with each new value of a reset key, and with nothing else. Empty: never reset.
        revision: The highest revision of the keys that decided; 0 where none did.
        hash: Of settings, rules and log level: equal hashes mean that nothing need be sent.
        problems: What is wrong with the worker's own keys.
    """

    action: Action
    decided_by: str
    settings: dict[str, Any]
    settings_by: str
    budget: Any
    budget_by: str
    log_level: LogLevel
    log_level_by: str
    rules: Any = None
    rules_by: str = DEFAULT
    reset_token: str = ""
    revision: int = 0
    hash: str = ""
    problems: tuple[Refusal, ...] = ()


class MasterDesired(msgspec.Struct, frozen=True):
    """What the master should be. None: as in the file; ``aggregate`` is always complete."""

    log_level: LogLevel | None = None
    heartbeat_seconds: float | None = None
    release_spread: float | None = None
    aggregate: Any = None
    sink: SinkChoice | None = None
    decided_by: str = DEFAULT
    revision: int = 0


class Desired(msgspec.Struct, frozen=True):
    """What this host should do.

    Attributes:
        complete: False where the snapshot does not cover the groups in force: tell the store the groups, keep what
            was desired before, and resolve the snapshot that follows. Only then is anything here to be applied.
        revision: Of the snapshot.
        history: Of the snapshot.
        groups: In force, from the most to the least specific.
        groups_by: The key that decided the groups.
        workers: By name: every defined worker.
        master: The master's own settings.
        kafka_servers: ``host[:port]``; empty where no key names any.
        kafka_topic: Empty where no key names one.
        kafka_by: The keys behind both.
        missing_bodies: What should be fetched, sorted.
        problems: Everything that is wrong, sorted by key.
    """

    complete: bool
    revision: int
    history: str
    groups: tuple[str, ...]
    groups_by: str
    workers: dict[str, WorkerDesired]
    master: MasterDesired
    kafka_servers: tuple[str, ...] = ()
    kafka_topic: str = ""
    kafka_by: tuple[str, ...] = ()
    missing_bodies: tuple[str, ...] = ()
    problems: tuple[Refusal, ...] = ()


def short_hash(*parts: object) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of values in canonical JSON (keys sorted)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(msgspec.json.encode(part, order="sorted", enc_hook=repr))
        digest.update(b"\n")
    return digest.hexdigest()[:16]
