"""The thread that keeps this host present in etcd: lease, registration, status, alivehost.

It comes last in a session and stands apart from it: what is refused here (no space, no permission, a duplicate
host) is reported and tried again, and neither delays nor stops the reading of the killswitch and of desired state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from garrison.ipc.pacing import spread
from garrison.supervisor import logs
from garrison.supervisor.presence.document import HostStatus, Registration
from garrison.supervisor.presence.identity import ip_addresses
from garrison.supervisor.presence.lease import LeaseKeeper, LeaseMemory
from garrison.supervisor.presence.publisher import Facts, Publisher
from garrison.supervisor.presence.registrar import DisplacedError, Registrar
from garrison.supervisor.presence.retries import DUPLICATE, Duty, Retries
from garrison.supervisor.stores.etcd.errors import EtcdError

if TYPE_CHECKING:
    from garrison.supervisor.stores.etcd.connection import Connection

REGRANT_SPREAD_SECONDS = 60.0
"""After an outage that ended the leases of a whole fleet, new ones are asked for spread over this time."""
VERIFY_SECONDS = 600.0
"""Between two looks at our own registration: a stray delete is put right. At 1,000,000 hosts 1,700 reads a second,
each from one member's memory."""
OVERSLEPT_SECONDS = 5.0
"""A wait that lasts this much longer than asked for: this process was stopped, the cluster was not."""
PAUSE_SECONDS = 0.02
"""Least time between two turns, whatever is due."""

_NOW = float("-inf")
_NEVER = float("inf")
_NAMES: dict[Duty, str] = {
    "lease": "the lease of this host:",
    "registration": "the registration of this host:",
    "status": "the status of this host in etcd:",
    "alivehost": "the alivehost key of this host:",
}

_log = logs.get("presence")


class PresenceStatus(msgspec.Struct, frozen=True):
    """How the host stands in etcd.

    Attributes:
        lease_id: In hexadecimal, as etcdctl shows it; empty without one.
        registered: Whether the registration is ours.
        problems: What is wrong and what to do.
    """

    lease_id: str = ""
    registered: bool = False
    problems: tuple[str, ...] = ()


class Presence:
    """Keeps the keys of one host. All methods may be called from any thread; none waits but `stop`.

    Args:
        host: The hostname.
        prefix: What all keys start with.
        registration: Of this process; addresses and groups are filled in here.
        lease_seconds: Time of the lease.
        alive_key: Whether to write the key of the older layout too.
        remembered: The lease kept on disk.
        save: Keeps a lease on disk, without waiting for it.
        on_event: Takes an action and its fields, for a ``state`` event. Called from the presence thread.
        on_status: Told when `status` has changed. Called from the presence thread.
    """

    def __init__(
        self,
        *,
        host: str,
        prefix: str,
        registration: Registration,
        lease_seconds: int,
        alive_key: bool,
        remembered: LeaseMemory | None,
        save: Callable[[LeaseMemory], None],
        on_event: Callable[[str, dict[str, Any]], None],
        on_status: Callable[[PresenceStatus], None],
    ) -> None:
        self._host = host
        self._registration = registration
        self._wants_alive = alive_key
        self._on_event = on_event
        self._on_status = on_status
        self._lease = LeaseKeeper(host, lease_seconds, registration.machine_id, registration.boot_id, remembered, save)
        self._registrar = Registrar(host, prefix)
        self._publisher = Publisher(host, prefix)
        self._retries = Retries(host)
        self._problems: dict[Duty, str] = {}
        self._status = PresenceStatus()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # Under the condition:
        self._connection: Connection | None = None
        self._offered: HostStatus | None = None
        self._sessions = 0
        self._closing = False
        # Of the thread:
        self._host_status: HostStatus | None = None
        self._session_seen = 0
        self._session_renewed = 0
        self._overslept = False
        self._announced = False
        self._waiting = False
        self._duplicate = False
        self._regrant_at = _NOW
        self._verify_at = _NOW
        self._alive_at = _NOW

    # From other threads

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system gives no thread.
        """
        self._thread = threading.Thread(target=self._run, name="garrison-presence", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> bool:
        """Take the host's keys out of etcd, if it answers, and end the thread.

        Returns:
            False: it was not over within `timeout` seconds; the keys go with the lease.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def on_session(self, connection: Connection) -> None:
        """Take a connection that is good now; the keys that this host obeys are read and watched already."""
        with self._changed:
            self._connection = connection
            self._sessions += 1
            self._changed.notify_all()

    def on_session_end(self) -> None:
        """Let go of the connection; what is under way with it fails by itself."""
        with self._changed:
            self._connection = None

    def offer(self, status: HostStatus) -> None:
        """Take the host's status as it is now; it must not be changed any more."""
        with self._changed:
            if status != self._offered:
                self._offered = status
                self._changed.notify_all()

    def status(self) -> PresenceStatus:
        """Return how the host stands in etcd."""
        return self._status

    # The thread

    def _run(self) -> None:
        duties: tuple[tuple[Duty, Callable[[Connection], None]], ...] = (
            ("lease", self._keep_lease),
            ("registration", self._register),
            ("status", self._publish),
            ("alivehost", self._show_alive),
        )
        while True:
            connection = self._wait()
            if self._closing:
                break
            if connection is None:
                self._tell()
                continue
            for duty, act in duties:
                if self._due(duty) <= time.monotonic() and not self._closing:
                    self._do(duty, act, connection)
            self._tell()
        if connection is not None:
            self._leave(connection)

    def _wait(self) -> Connection | None:
        """Wait for news, or until something is due; return the connection, None without a session."""
        with self._changed:
            begin = time.monotonic()
            seconds = max(PAUSE_SECONDS, min(map(self._due, _NAMES)) - begin) if self._connection is not None else None
            self._changed.wait_for(self._news, None if seconds == _NEVER else seconds)
            now = time.monotonic()
            if seconds is not None and now - begin > seconds + OVERSLEPT_SECONDS:
                self._overslept = True
            if self._connection is None:
                for duty in self._retries.relink():
                    self._problems.pop(duty, None)
            elif self._session_seen != self._sessions:
                self._session_seen = self._sessions
                self._retries.relink()
                self._registrar.doubt()
            self._host_status = self._offered
            connection = self._connection
        self._refresh(time.monotonic())
        return connection

    def _news(self) -> bool:
        fresh = self._connection is not None and self._session_seen != self._sessions
        return self._closing or fresh or self._host_status is not self._offered

    def _due(self, duty: Duty) -> float:
        """Return when a duty is to be done, monotonic seconds; infinity where something else has to come first."""
        if duty == "lease":
            at = self._lease.due() if self._lease.id else self._regrant_at
        elif not self._lease.id:
            return _NEVER
        elif duty == "registration":
            at = self._verify_at if self._registrar.registered else _NOW
        elif not self._registrar.registered:
            return _NEVER
        elif duty == "status":
            at = self._publisher.due()
        else:
            at = self._alive_at if self._wants_alive else _NEVER
        return max(at, self._retries.at(duty))

    def _do(self, duty: Duty, act: Callable[[Connection], None], connection: Connection) -> None:
        """Do a duty, and keep the books."""
        try:
            act(connection)
        except EtcdError as error:
            if error.kind == "lease_gone":
                self._lease_ended()
            self._fail(duty, error.kind, f"{_NAMES[duty]} {error}")
        except DisplacedError as error:
            self._fail(duty, "other", f"{_NAMES[duty]} {error} was changed by somebody else; it is looked at again")
        except _HeldUpError as error:
            self._problems[duty] = str(error)
            if error.until is None:
                self._retries.failed(duty, DUPLICATE, time.monotonic())
            else:
                self._retries.wait(duty, error.until)
        except Exception as error:  # noqa: BLE001  without this thread the host would be shown as gone
            _log.exception("%s failed", duty)
            self._fail(duty, "other", f"{_NAMES[duty]} a mistake in the agent: {error!r}")
        else:
            self._retries.done(duty)
            if self._problems.pop(duty, None):
                _log.notice("%s: well again", duty)

    def _fail(self, duty: Duty, kind: str, text: str) -> None:
        self._retries.failed(duty, kind, time.monotonic())
        if self._problems.get(duty) != text:
            _log.warning("%s", text)
        self._problems[duty] = text

    # Duties

    def _keep_lease(self, connection: Connection) -> None:
        if not self._lease.id:
            self._lease.hold(connection)
        elif not self._lease.renew(connection):
            self._lease_ended()
            return
        self._session_renewed, self._overslept = self._session_seen, False
        self._alive_at = _NOW
        addresses = ip_addresses(connection.address.ip)
        if addresses != self._registration.ip_addresses:
            self._registration = msgspec.structs.replace(self._registration, ip_addresses=addresses)

    def _register(self, connection: Connection) -> None:
        if self._registrar.registered:
            self._verify_at = time.monotonic() + VERIFY_SECONDS * (0.5 + spread(self._host, "verify"))
            if self._registrar.verify(connection):
                return
            self._registrar.doubt()
        if self._waiting:
            self._waiting = False
            self._registrar.waited()
        registration, status = self._own(), self._host_status
        decision = self._registrar.register(connection, self._lease.id, registration, status)
        now = time.monotonic()
        if decision.action == "wait":
            self._waiting = True
            raise _HeldUpError(decision.text, now + decision.seconds)
        if decision.action == "duplicate":
            self._publisher.forget(now)
            self._lose(decision.text)
            if not self._duplicate:
                self._duplicate = True
                _log.error("%s", decision.text)
                self._on_event("duplicate-host", {"reason": decision.text})
            raise _HeldUpError(decision.text)
        self._verify_at = now + VERIFY_SECONDS * (0.5 + spread(self._host, "verify"))
        self._duplicate = False
        if decision.action != "keep" and status is not None:
            self._publisher.wrote(Facts(registration, status), now)
        elif decision.action != "keep":
            self._publisher.forget(now)
        if not self._announced:
            self._announced = True
            _log.notice("registered in etcd (%s), lease %x", decision.action, self._lease.id)
            self._on_event("registered", {"lease_id": f"{self._lease.id:x}", "how": decision.action})

    def _publish(self, connection: Connection) -> None:
        facts = self._publisher.wanted
        assert facts is not None
        self._registrar.publish(connection, self._lease.id, facts, self._publisher.written)
        self._publisher.wrote(facts, time.monotonic())

    def _show_alive(self, connection: Connection) -> None:
        addresses = self._registration.ip_addresses
        self._registrar.alive(connection, self._lease.id, addresses[0] if addresses else "127.0.0.1", time.time())
        self._alive_at = _NEVER  # until the next renewal

    def _leave(self, connection: Connection) -> None:
        try:
            self._lease.give_back(connection)
        except EtcdError as error:
            _log.warning("the host's keys stay in etcd until its lease ends: %s", error)

    # What follows

    def _lease_ended(self) -> None:
        now = time.monotonic()
        self._lease.lost()
        self._registrar.lost()
        self._publisher.forget(now)
        self._lose("the lease has ended")
        # A lease that ended while there was no session probably ended for the whole fleet.
        outage = self._session_renewed != self._session_seen and not self._overslept
        self._regrant_at = now + REGRANT_SPREAD_SECONDS * spread(self._host, "regrant") if outage else _NOW

    def _lose(self, reason: str) -> None:
        if self._announced:
            self._announced = False
            _log.warning("the registration is lost: %s", reason)
            self._on_event("registration-lost", {"reason": reason})

    def _own(self) -> Registration:
        groups = self._host_status.groups if self._host_status is not None else self._registration.groups
        return msgspec.structs.replace(self._registration, groups=groups)

    def _refresh(self, now: float) -> None:
        if self._host_status is not None:
            self._publisher.offer(Facts(self._own(), self._host_status), now)

    def _tell(self) -> None:
        problems = [self._problems[duty] for duty in _NAMES if duty in self._problems]
        if not self._lease.id and self._regrant_at > time.monotonic():
            problems.append(
                "lease: it ended during an outage; a new one is asked for within "
                f"{REGRANT_SPREAD_SECONDS:.0f} s, spread over the fleet"
            )
        lease_id = f"{self._lease.id:x}" if self._lease.id else ""
        status = PresenceStatus(lease_id, self._announced, tuple(problems))
        if status != self._status:
            self._status = status
            self._on_status(status)


class _HeldUpError(Exception):
    """The registration has to wait: until a time (monotonic seconds), or as long as a duplicate waits (None)."""

    def __init__(self, text: str, until: float | None = None) -> None:
        super().__init__(text)
        self.until = until
