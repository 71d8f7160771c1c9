"""What is done over one connection: obey, list, watch. One method for each step; the store's thread calls them.

Once the watch has begun the receiving thread keeps the mirror, and is the one that tells of killswitch keys.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Protocol

from garrison.supervisor.keys import BodyKey, format_key
from garrison.supervisor.stores.base import Entry, KillObservation, Snapshot
from garrison.supervisor.stores.etcd import listing
from garrison.supervisor.stores.etcd.aim import Aim
from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.errors import EtcdError, describe, kind_of
from garrison.supervisor.stores.etcd.history import History, contradiction, judge, observed, renewed
from garrison.supervisor.stores.etcd.mirror import Mirror
from garrison.supervisor.stores.etcd.receiver import Receiver
from garrison.supervisor.stores.etcd.results import Event, WatchNews
from garrison.supervisor.stores.values import MAX_BODY_BYTES

WATCH_SECONDS = 10.0
"""Limit for the server to begin every watch."""

RECEIVER_SECONDS = 5.0
"""How long the end of a receiving thread is waited for; whatever it still brings is not taken any more."""


class Owner(Protocol):
    """Whom a session tells."""

    def tell_kills(self, observation: KillObservation) -> None:
        """Take what is known of the killswitch; at once, in the calling thread."""

    def wake(self) -> None:
        """Look at the session: something has changed. From any thread."""


class Session:
    """One session. `close` at the end, whatever happened.

    Args:
        connection: Open.
        prefix: What all keys start with.
        owner: Whom to tell.
        known: The history that the last state came from.

    Attributes:
        history: Of this session.
        new_history: Why the last reading found another one than the one before; empty where it did not.
        failure: Why the watch has ended.
        compacted: The watch fell behind a compaction: begin again with `obey`.
    """

    def __init__(self, connection: Connection, prefix: str, owner: Owner, known: History) -> None:
        self.connection = connection
        self.history = known
        self.new_history = ""
        self.failure: EtcdError | None = None
        self.compacted = False
        self._prefix = prefix
        self._owner = owner
        # Held while killswitch news is told, so that what is told later is never older.
        self._lock = threading.Lock()
        self._begun = threading.Condition(self._lock)
        self._mirror: Mirror | None = None
        self._receiver: Receiver | None = None
        self._created = 0
        self._changed = False
        self._bodies: dict[str, bytes | None] = {}
        self._body_prefix = format_key(BodyKey(""), prefix)

    # -- the steps, in their order --------------------------------------------------------------------------

    def obey(self, aim: Aim, before: Mapping[str, Entry]) -> None:
        """Read the killswitch keys from a quorum and tell those that are there; absent ones wait for `list_keys`.

        Args:
            aim: What concerns the host.
            before: What was known of the keys, to tell another history from this one.

        Raises:
            EtcdError: They could not be read.
        """
        self._end_watch()
        self.new_history = ""
        header, items = listing.read_kills(self.connection, aim)
        self.history, self.new_history = judge(self.history, header)
        self._contradict(contradiction(before, items))
        mirror = Mirror(aim, self._prefix)
        mirror.obey(items, header.revision)
        seen = mirror.kills(str(self.history))
        with self._lock:
            self._mirror = mirror
            self._owner.tell_kills(KillObservation(seen.entries, frozenset(seen.entries), seen.revision, seen.history))

    def list_keys(self, before: Mapping[str, Entry]) -> Snapshot:
        """Read everything, tell the killswitch keys again, absent ones included, and return the snapshot.

        Raises:
            EtcdError: It could not be read.
        """
        mirror = self._mirror
        assert mirror is not None
        found = listing.read_all(self.connection, mirror.aim)
        self._contradict(contradiction(before, found.items))
        with self._lock:
            mirror.fill(found.items, found.header.revision, found.unread)
            self._changed = False
            self._owner.tell_kills(mirror.kills(str(self.history)))
            return mirror.snapshot(str(self.history), self.history.term)

    def watch(self) -> None:
        """Begin the watch where the listing ends, and wait until the server has begun all of it.

        Raises:
            EtcdError: It could not be begun.
        """
        mirror = self._mirror
        assert mirror is not None
        stream = self.connection.watch()
        receiver = Receiver(stream, self._take, self._fail)
        with self._lock:
            self._receiver, self._created, self.compacted = receiver, 0, False
        receiver.start()
        for prefix in mirror.aim.prefixes:
            stream.add_prefix(prefix, mirror.revision + 1)
        for key in mirror.aim.lone_keys:
            stream.add_key(key, mirror.revision + 1)
        wanted = len(mirror.aim.prefixes) + len(mirror.aim.lone_keys)
        with self._begun:
            self._begun.wait_for(lambda: self._created >= wanted or self.failure or self.compacted, WATCH_SECONDS)
            if self.failure is not None:
                raise self.failure
            if self._created < wanted and not self.compacted:
                raise EtcdError("timeout", f"watching: not begun within {WATCH_SECONDS:g} s", self.connection.endpoint)

    # -- while it is up -------------------------------------------------------------------------------------

    def take_changes(self) -> Snapshot | None:
        """Return the snapshot if it has changed since the last one that was returned."""
        with self._lock:
            if not self._changed or self._mirror is None:
                return None
            self._changed = False
            return self._mirror.snapshot(str(self.history), self.history.term)

    @property
    def changed(self) -> bool:
        """Tell whether `take_changes` has something."""
        return self._changed

    @property
    def incomplete(self) -> bool:
        """Tell whether keys were left out that a new listing might have room for."""
        return self._mirror is not None and self._mirror.incomplete

    @property
    def revision(self) -> int:
        """The newest revision that was seen."""
        return 0 if self._mirror is None else self._mirror.revision

    def take_bodies(self) -> dict[str, bytes | None]:
        """Return bodies that have come, by SHA-256; None: what came is not what its name says."""
        with self._lock:
            bodies, self._bodies = self._bodies, {}
        return bodies

    def fetch_body(self, sha256: str) -> bytes | None:
        """Return a body; where it is not there (yet), None, and it is watched from now on.

        Raises:
            EtcdError: It could not be read.
        """
        key = format_key(BodyKey(sha256), self._prefix)
        item, header = self.connection.get(key, serializable=True)
        body = None if item is None else _whole(sha256, item.value)
        with self._lock:
            receiver = self._receiver
        if body is None and receiver is not None:
            receiver.stream.add_key(key, header.revision + 1)
        return body

    def differs(self) -> tuple[tuple[int, int], ...]:
        """Compare with the server, cheaply; return its tally where it is another one than ours, else ().

        Raises:
            EtcdError: It could not be read.
        """
        mirror = self._mirror
        assert mirror is not None
        theirs = listing.tally(self.connection, mirror.aim)
        with self._lock:
            return () if theirs == mirror.tally() else theirs

    def close(self) -> History:
        """End everything; return the history with all that was seen of it."""
        with self._lock:
            receiver, self._receiver = self._receiver, None
        self.connection.close()
        if receiver is not None:
            receiver.stop(RECEIVER_SECONDS)
        return observed(self.history, self.revision)

    # -- the receiving thread -------------------------------------------------------------------------------

    def _take(self, receiver: Receiver, news: WatchNews) -> None:
        with self._lock:
            mirror = self._mirror
            if receiver is not self._receiver or mirror is None:
                return  # of a watch that is over
            if news.events and mirror.take_kills(news.events):
                self._owner.tell_kills(mirror.kills(str(self.history)))
            if news.events:
                self._changed |= mirror.take(news.events)
                self._take_body_events(news.events)
            elif news.created and not news.canceled:
                self._created += 1
            elif news.compact_revision:
                self.compacted = True
            elif news.canceled:
                kind = kind_of("", news.reason)
                text = describe("watching", kind, "canceled by the server", news.reason)
                self.failure = EtcdError(kind, text, self.connection.endpoint)
            else:
                mirror.revision = max(mirror.revision, news.header.revision)
            self._begun.notify_all()
        self._owner.wake()

    def _fail(self, receiver: Receiver, error: EtcdError) -> None:
        with self._lock:
            if receiver is self._receiver:
                self.failure = self.failure or error
            self._begun.notify_all()
        self._owner.wake()

    def _take_body_events(self, events: tuple[Event, ...]) -> None:
        for event in events:
            if event.key.startswith(self._body_prefix) and not event.deleted:
                sha256 = event.key.removeprefix(self._body_prefix)
                self._bodies[sha256] = _whole(sha256, event.value)

    # -- small things ---------------------------------------------------------------------------------------

    def _end_watch(self) -> None:
        with self._lock:
            receiver, self._receiver = self._receiver, None
            self.failure = None
        if receiver is not None:
            receiver.stop(RECEIVER_SECONDS)
            self.history = observed(self.history, self.revision)

    def _contradict(self, reason: str) -> None:
        if reason and not self.new_history:
            self.history, self.new_history = renewed(self.history), reason


def _whole(sha256: str, body: bytes) -> bytes | None:
    """Return a body that is what its name says, or None."""
    if len(body) > MAX_BODY_BYTES or hashlib.sha256(body).hexdigest() != sha256:
        return None
    return body
