"""The lease that everything of this host in etcd hangs on: taken up again, granted, renewed, given back.

Its id is this host's choice and is kept on disk. So a restart within the lease's time goes on with it and nobody sees
the host as gone, and a grant whose answer was lost is found again instead of leaving a second lease behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from garrison.ipc.pacing import spread
from garrison.supervisor.stores.etcd.errors import EtcdError

if TYPE_CHECKING:
    from garrison.supervisor.stores.etcd.connection import Connection

LEASE_FILE = "lease.json"
RENEWALS = 3
"""How often a lease is renewed in its time: two may fail before it is lost."""
JITTER = 0.1
"""Share of the interval by which a renewal is early or late, by hash of the host and the renewal's number."""


class LeaseMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept on disk of a lease.

    Attributes:
        lease_id: 0: none, it was given back.
        seconds: That were asked for.
        machine_id: Of the machine that got it; on a copy of its disk the lease is another's.
        boot_id: Of the boot: a lease of an earlier one may have been copied and is left to run out.
    """

    lease_id: int = 0
    seconds: int = 0
    machine_id: str = ""
    boot_id: str = ""


class LeaseKeeper:
    """Holds one lease. Used from the presence thread only.

    Args:
        host: The hostname, for the jitter.
        seconds: The lease's time to ask for.
        machine_id: Of this machine.
        boot_id: Of this boot.
        remembered: What was kept on disk; None for nothing.
        save: Keeps it on disk; must not wait for that.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        host: str,
        seconds: int,
        machine_id: str,
        boot_id: str,
        remembered: LeaseMemory | None,
        save: Callable[[LeaseMemory], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._seconds = seconds
        self._machine_id = machine_id
        self._boot_id = boot_id
        self._save = save
        self._clock = clock
        self._candidate = self._usable(remembered)
        self._granting = 0
        self._renewals = 0
        self.id = 0
        """Of the lease in use; 0: none."""
        self.granted = 0
        """Its time, seconds, as the server gave it."""
        self.renewed_at = 0.0
        """When it was last renewed for certain."""

    def hold(self, connection: Connection) -> None:
        """Have a lease: the one from before the start where it lives, else a new one.

        Raises:
            EtcdError: There is none to be had now.
        """
        if self.id:
            return
        if self._candidate:
            # Kept until the answer is here: a failure says nothing about the lease.
            candidate = self._candidate
            if self._renewed(connection, candidate):
                self.id = candidate
            self._candidate = 0
            if self.id:
                return
        self._grant(connection)

    def renew(self, connection: Connection) -> bool:
        """Renew the lease; False: it is gone, and another must be had.

        Raises:
            EtcdError: Nothing is known.
        """
        if self._renewed(connection, self.id):
            return True
        self.lost()
        return False

    def lost(self) -> None:
        """Note that the lease is gone."""
        self.id = 0

    def due(self) -> float:
        """Return when to renew, monotonic seconds."""
        interval = self.granted / RENEWALS
        return self.renewed_at + interval * (1 - JITTER + 2 * JITTER * spread(self._host, "renew", str(self._renewals)))

    def give_back(self, connection: Connection) -> None:
        """End the lease: everything on it goes at once.

        Raises:
            EtcdError: It may still be there, and ends by itself.
        """
        lease_id, self.id = self.id, 0
        if lease_id:
            connection.lease_revoke(lease_id)
            self._save(LeaseMemory())

    def _renewed(self, connection: Connection, lease_id: int) -> bool:
        now = self._clock()
        granted = connection.lease_keepalive(lease_id)
        if granted <= 0:
            return False
        self.granted, self.renewed_at = granted, now
        self._renewals += 1
        return True

    def _grant(self, connection: Connection) -> None:
        # The same id until one answer is here: see above.
        self._granting = self._granting or int.from_bytes(os.urandom(8), "big") >> 1 or 1
        now = self._clock()
        try:
            granted = connection.lease_grant(self._seconds, id=self._granting).ttl
        except EtcdError as error:
            if error.kind != "lease_exists":
                raise
            now = self._clock()
            granted = connection.lease_keepalive(self._granting)
        lease_id, self._granting = self._granting, 0
        if granted <= 0:
            raise EtcdError("lease_gone", "the lease that was just granted has ended already")
        self.id, self.granted, self.renewed_at = lease_id, granted, now
        self._save(
            LeaseMemory(lease_id=lease_id, seconds=self._seconds, machine_id=self._machine_id, boot_id=self._boot_id)
        )

    def _usable(self, remembered: LeaseMemory | None) -> int:
        if remembered is None or not self._boot_id:
            return 0
        ours = (remembered.machine_id, remembered.boot_id, remembered.seconds)
        return remembered.lease_id if ours == (self._machine_id, self._boot_id, self._seconds) else 0
