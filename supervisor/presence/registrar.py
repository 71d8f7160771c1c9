"""Reads and writes the keys of one host: registration, status, alivehost. Used from the presence thread only.

Every write has the condition that the registration is still the one that this process wrote. So a double that has
taken the key is noticed by the next write, and a duplicate writes nothing at all. A write whose answer was lost may
have been done: the registration is then looked at again, and `Registration.instance` tells whose it is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from garrison.supervisor.events.own import timestamp
from garrison.supervisor.keys import AliveKey, RegistrationKey, StatusKey, format_key
from garrison.supervisor.presence.document import HostStatus, Registration, alive_value, decode_registration, encode
from garrison.supervisor.presence.publisher import Facts
from garrison.supervisor.presence.takeover import Decision, Existing, decide
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.results import Compare, Delete, Op, Put

if TYPE_CHECKING:
    from garrison.supervisor.stores.etcd.connection import Connection


class DisplacedError(Exception):
    """The registration is not ours any more: nothing was written. Look at it again."""


class Registrar:
    """Writes what it is given, under its condition.

    Args:
        host: The hostname.
        prefix: What all keys start with.
    """

    def __init__(self, host: str, prefix: str) -> None:
        self._host = host
        self._key = format_key(RegistrationKey(host), prefix)
        self._status_key = format_key(StatusKey(host), prefix)
        self._prefix = prefix
        self._alive_key = ""
        self._mod_revision = 0
        self._held = False
        self._displaced = False
        self._waited = False

    @property
    def registered(self) -> bool:
        """True while the key is ours for all we know, and what it says can be relied on for a condition."""
        return self._mod_revision > 0

    def lost(self) -> None:
        """Note that the key went with its lease."""
        self._mod_revision = 0
        self._held = False
        self._alive_key = ""

    def doubt(self) -> None:
        """Note that the key has to be looked at before the next write."""
        self._mod_revision = 0

    def waited(self) -> None:
        """Note that the wait which a decision asked for is over."""
        self._waited = True

    def register(
        self, connection: Connection, lease_id: int, registration: Registration, status: HostStatus | None
    ) -> Decision:
        """Look at the key and do what follows; `registered` tells what came of it.

        Args:
            connection: To etcd.
            lease_id: Our living lease.
            registration: To be written.
            status: To be written with it; None where none is known yet.

        Returns:
            The decision. ``keep``: nothing was written, what stands there was written by this process.

        Raises:
            EtcdError: It is not known to be done.
            DisplacedError: Somebody else was faster.
        """
        existing = self._look(connection, lease_id)
        if self._held and existing is not None and not _written_by(registration, existing):
            self._displaced, self._held = True, False
        decision = decide(self._host, registration, lease_id, existing, displaced=self._displaced, waited=self._waited)
        if decision.action == "keep":
            assert existing is not None
            self._take(existing.mod_revision)
        elif decision.action in ("create", "take over"):
            condition = (
                Compare(self._key, "create", "=", 0)
                if existing is None
                else Compare(self._key, "mod", "=", existing.mod_revision)
            )
            operations = [self._registration(registration, lease_id)]
            if status is not None:
                operations.append(self._status(status, lease_id))
            self._take(self._write(connection, condition, operations))
        return decision

    def publish(self, connection: Connection, lease_id: int, facts: Facts, written: Facts | None) -> None:
        """Write what differs from what stands there.

        Raises:
            EtcdError: It is not known to be done.
            DisplacedError: The registration is another's.
        """
        operations: list[Op] = []
        moved = written is None or facts.registration != written.registration
        if moved:
            operations.append(self._registration(facts.registration, lease_id))
        if written is None or facts.status != written.status:
            operations.append(self._status(facts.status, lease_id))
        revision = self._write(connection, self._condition(), operations)
        if moved:
            self._take(revision)

    def alive(self, connection: Connection, lease_id: int, ip: str, seconds: float) -> None:
        """Write the key of the older layout.

        Args:
            connection: To etcd.
            lease_id: Our living lease.
            ip: The host's address.
            seconds: Since the epoch.

        Raises:
            EtcdError: It is not known to be done.
            DisplacedError: The registration is another's.
        """
        key = format_key(AliveKey(self._host, ip), self._prefix)
        operations: list[Op] = [Put(key, alive_value(seconds), lease_id)]
        if self._alive_key not in ("", key):
            operations.append(Delete(self._alive_key))
        self._write(connection, self._condition(), operations)
        self._alive_key = key

    def verify(self, connection: Connection) -> bool:
        """Tell whether the registration still stands as this process wrote it.

        Read from the member's own database, which may be behind: False only says that a proper look is due.

        Raises:
            EtcdError: It is not known.
        """
        found, _ = connection.get(self._key, serializable=True)
        return found is not None and found.mod_revision == self._mod_revision

    def _look(self, connection: Connection, lease_id: int) -> Existing | None:
        found, _ = connection.get(self._key)
        if found is None:
            return None
        if found.lease == lease_id:
            seconds = float("inf")
        else:
            seconds = float(connection.lease_ttl(found.lease)) if found.lease else 0.0
        return Existing(decode_registration(found.value), found.lease, seconds, found.mod_revision)

    def _condition(self) -> Compare:
        return Compare(self._key, "mod", "=", self._mod_revision)

    def _registration(self, registration: Registration, lease_id: int) -> Op:
        return Put(self._key, encode(registration), lease_id)

    def _status(self, status: HostStatus, lease_id: int) -> Op:
        written = msgspec.structs.replace(status, written=timestamp(time.time()))
        return Put(self._status_key, encode(written), lease_id)

    def _write(self, connection: Connection, condition: Compare, operations: list[Op]) -> int:
        try:
            result = connection.txn((condition,), operations)
        except EtcdError:
            self.doubt()
            raise
        if not result.succeeded:
            self.doubt()
            raise DisplacedError(self._key)
        return result.header.revision

    def _take(self, mod_revision: int) -> None:
        self._mod_revision = mod_revision
        self._held = True
        self._displaced = self._waited = False


def _written_by(registration: Registration, existing: Existing) -> bool:
    return existing.document is not None and existing.document.instance == registration.instance
