"""What every store of keys offers, and what it hands to the master. `DirectoryStore` is the embedded one.

A store has a thread of its own and calls its listener from there. The order is part of the contract: what
concerns the killswitch is read and delivered before anything else is looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

RefusalKind = Literal["refused", "pending", "unknown", "held", "store"]


class Refusal(msgspec.Struct, frozen=True, order=True):
    """One thing wrong with what a store holds; it changes nothing that is in force.

    Attributes:
        key: The key in question.
        revision: The revision at which the key last changed; 0 where there is none.
        reason: What is wrong, for the operator.
        kind: ``refused``: the value fails its check. ``pending``: it refers to a body that is not here yet.
            ``unknown``: nothing here has such a key. ``held``: the key is gone since the store was replaced,
            its value stays in force. ``store``: the store could not read it properly.
    """

    key: str
    revision: int
    reason: str
    kind: RefusalKind = "refused"


class Entry(msgspec.Struct, frozen=True):
    """A value and the revision at which it last changed.

    Attributes:
        value: The bytes as stored.
        revision: Of the last change; grows within one history.
        error: Why the value could not be read although the key is there; empty where `value` is it.
    """

    value: bytes
    revision: int
    error: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """All keys that concern this host, at one revision. Serialisable: the cache on disk is this.

    Attributes:
        entries: By full key. The keys of bodies are not among them.
        revision: Of the store; 0 in an empty one.
        history: Changes when revisions cannot be compared any more: the store was replaced, emptied or restored.
        groups: The groups whose keys were looked at; None where that is not limited.
        problems: What the store itself could not make sense of.
        term: Of raft, where the store has one: going back tells a restored store from the one before; else 0.
    """

    entries: dict[str, Entry]
    revision: int
    history: str
    groups: tuple[str, ...] | None = None
    problems: tuple[Refusal, ...] = ()
    term: int = 0


class KillObservation(msgspec.Struct, frozen=True):
    """What a store knows of killswitch keys at one revision.

    Attributes:
        entries: The keys that are there.
        covered: The keys that were looked at. One that is covered and not in `entries` is absent; nothing is
            known of the others.
        revision: Of the store.
        history: As in `Snapshot`.
    """

    entries: Mapping[str, Entry]
    covered: frozenset[str]
    revision: int
    history: str


class StoreStatus(msgspec.Struct, frozen=True):
    """How a store is doing, as ``garrison status`` shows it.

    Attributes:
        backend: ``directory`` or ``etcd``.
        connected: True while changes in the store reach us.
        endpoint: The directory, or the server in use.
        revision: Of the last snapshot.
        stale_seconds: Seconds since the store was last known to agree with the snapshot; 0 while connected.
        connected_seconds: For how long changes have reached us without a break; 0 while they do not.
        error: What is wrong and what to do; may be set while connected where the store works in a lesser way.
    """

    backend: str
    connected: bool
    endpoint: str
    revision: int = 0
    stale_seconds: float = 0.0
    connected_seconds: float = 0.0
    error: str = ""


class StoreListener(Protocol):
    """Whom a store tells. Every method is called from the store's thread and returns soon.

    One that raises does not end the store: it is shown as the store's error and told again later.
    """

    def on_killswitch(self, observation: KillObservation) -> None:
        """Take what is known of the killswitch: always before the snapshot that goes with it."""

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Take the keys as they are now. Changes in quick succession come as one."""

    def on_bodies(self, bodies: Mapping[str, bytes | None]) -> None:
        """Take bodies that were asked for, by SHA-256; None: not there (yet), or not what its name says."""

    def on_status(self, status: StoreStatus) -> None:
        """Take the status after it has changed, the passing of time apart."""


class Store(ABC):
    """A place that holds the keys. All methods may be called from any thread and do not wait for I/O."""

    @abstractmethod
    def start(self, listener: StoreListener) -> None:
        """Begin to deliver. Call once.

        Raises:
            RuntimeError: It was started before.
        """

    @abstractmethod
    def stop(self, timeout: float = 5.0) -> bool:
        """End the thread; nothing is delivered afterwards. False: it was not over within `timeout` seconds."""

    @abstractmethod
    def status(self) -> StoreStatus:
        """Return how the store is doing now."""

    @abstractmethod
    def request_refresh(self) -> None:
        """Read everything again and deliver it, changed or not."""

    @abstractmethod
    def set_groups(self, groups: Sequence[str], kill_groups: Iterable[str] = ()) -> None:
        """Look at other groups from now on; a snapshot that covers them follows.

        Args:
            groups: The groups of the host, in its order.
            kill_groups: Groups of which only the killswitch is looked at.

        Raises:
            KeyGrammarError: A name cannot stand in a key; nothing changes.
        """

    @abstractmethod
    def fetch_bodies(self, ids: Iterable[str]) -> None:
        """Ask for bodies by SHA-256; replaces what was asked for before.

        One that is not there is delivered as None at once, and with its bytes when it appears.
        """
