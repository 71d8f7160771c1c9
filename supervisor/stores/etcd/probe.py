"""What the doctor asks a cluster: how each member is, and what this host's user may do there. Changes nothing.

Everything has a time limit, and a member that hangs delays no other: each is looked at by a thread of its own, which is
not waited for beyond the limit.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.unknown_fields import UnknownFieldSet

from garrison.supervisor.keys import RegistrationKey, StatusKey, format_key
from garrison.supervisor.presence.document import Registration, decode_registration
from garrison.supervisor.stores.etcd.aim import aim_at
from garrison.supervisor.stores.etcd.connection import Access, Connection
from garrison.supervisor.stores.etcd.endpoints import Address, Endpoint
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.library import rpc
from garrison.supervisor.stores.etcd.resolver import look_up
from garrison.supervisor.stores.etcd.results import Compare, MemberStatus, Put, Range

DIAL_SECONDS: Final = 5.0
CALL_SECONDS: Final = 5.0
LIMIT_SECONDS: Final = 20.0
"""Most time for all members together: a name that does not resolve, a dial, a login and a read fit in."""

_ERRORS_FIELD: Final = 8
"""Of StatusResponse since etcd 3.4, ``errors``; the stubs are older."""
_ALARM: Final = re.compile(r"alarm:\s*(\w+)")


@dataclass(slots=True)
class Look:
    """What was found out about one member; filled in while it is looked at.

    Attributes:
        endpoint: As configured.
        connection: Open, where it could be opened; its owner closes it.
        status: What the member says of itself.
        alarms: Of the cluster: ``NOSPACE``, ``CORRUPT``.
        milliseconds: One round trip on the open connection.
        quorum_milliseconds: One linearizable read, which takes a majority; 0: none was answered.
        error: What went wrong, at the step where it did.
    """

    endpoint: Endpoint
    connection: ProbeConnection | None = None
    status: MemberStatus | None = None
    alarms: tuple[str, ...] = ()
    milliseconds: float = 0.0
    quorum_milliseconds: float = 0.0
    error: EtcdError | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """What the user of this host may do, as far as it was found out.

    Attributes:
        unread: What it has to read and may not.
        unwritten: What it has to write and may not.
        too_much: It may write what other hosts obey.
        registration: Who is registered under the name of this host; None: nobody, or it cannot be read.
        registered: There is a registration.
        error: Why it could not be found out.
    """

    unread: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()
    too_much: bool = False
    registration: Registration | None = None
    registered: bool = False
    error: EtcdError | None = None


class ProbeConnection(Connection):
    """A connection that also asks a member for its alarms."""

    def alarms(self) -> tuple[str, ...]:
        """Return the alarms that the member knows of, without asking the other members.

        Raises:
            EtcdError: It does not answer.
        """
        answer: Any = self._call(
            "asking for its state", lambda **how: self._stub(rpc.MaintenanceStub).Status(rpc.StatusRequest(), **how)
        )
        return alarms_of(answer)


def alarms_of(message: Any) -> tuple[str, ...]:
    """Return the alarms in the answer to a Status request; none from etcd before 3.4."""
    texts = [
        field.data.decode("utf-8", "replace")
        for field in UnknownFieldSet(message)
        if field.field_number == _ERRORS_FIELD and isinstance(field.data, bytes)
    ]
    return tuple(sorted({found[1] for text in texts if (found := _ALARM.search(text))}))


def look_at_all(
    endpoints: Sequence[Endpoint], access: Access, probe_key: str, seconds: float = LIMIT_SECONDS
) -> list[Look]:
    """Look at every member at the same time; one that takes too long has an error of the kind ``timeout``.

    Args:
        endpoints: The members.
        access: How to connect; its limits are replaced by those of a look.
        probe_key: A key that this host may read.
        seconds: Most time.
    """
    access = access._replace(dial_seconds=DIAL_SECONDS, call_seconds=CALL_SECONDS)
    looks = [Look(endpoint) for endpoint in endpoints]
    threads = [
        threading.Thread(target=_look, args=(look, access, probe_key), name=f"look at {look.endpoint}", daemon=True)
        for look in looks
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for look, thread in zip(looks, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            look.error = EtcdError("timeout", f"no answer within {seconds:g} s", str(look.endpoint))
    return looks


def _look(look: Look, access: Access, probe_key: str) -> None:
    try:
        connection = look.connection = ProbeConnection(_resolved(look.endpoint), access)
        look.status = connection.open()
        began = time.monotonic()
        look.alarms = connection.alarms()
        look.milliseconds = (time.monotonic() - began) * 1000
        look.quorum_milliseconds = _read(connection, probe_key)
    except EtcdError as error:
        look.error = error
    except Exception as error:  # noqa: BLE001  in a thread it would be lost, and the member be called well
        look.error = EtcdError("other", repr(error), str(look.endpoint))


def _read(connection: Connection, key: str) -> float:
    """Return the milliseconds that a read through the majority takes; a change of leaders is waited for once."""
    for last in (False, True):
        began = time.monotonic()
        try:
            connection.get(key)
        except EtcdError as error:
            if error.kind == "permission":
                pass  # what the user may not do is no fault of the member
            elif last or error.kind not in ("unavailable", "no_leader"):
                raise
            else:
                time.sleep(1.0)
                continue
        return (time.monotonic() - began) * 1000
    raise AssertionError


def _resolved(endpoint: Endpoint) -> Address:
    if endpoint.is_ip:
        return Address(endpoint.host, endpoint.port, endpoint.host)
    try:
        found = look_up(endpoint.host)
    except OSError as error:
        raise EtcdError(
            "unavailable", f"the name {endpoint.host} does not resolve: {error.strerror or error}", str(endpoint)
        ) from error
    return Address(endpoint.host, endpoint.port, found[0])


def rights_of(connection: Connection, prefix: str, host: str, groups: Sequence[str], *, alive: bool) -> Rights:
    """Try what an agent has to do, and one thing that it should not be able to do; nothing is written.

    A write is tried as a transaction whose condition never holds: etcd checks what its writes would need, and then
    does none of them.

    Args:
        connection: Open.
        prefix: What all keys start with.
        host: The hostname.
        groups: Its groups.
        alive: The alivehost key is written, too.
    """
    own = format_key(RegistrationKey(host), prefix)
    try:
        item, _ = connection.get(own)
    except EtcdError as error:
        if error.kind != "permission":
            return Rights(error=error)
        # Without this one there is nothing that a condition could be tied to.
        return Rights(unread=(own,))
    keys = [own, format_key(StatusKey(host), prefix)] + ([f"{prefix}/alivehost/{host}--127.0.0.1"] if alive else [])
    try:
        unread = tuple(_unread(connection, prefix, host, groups))
        unwritten = tuple(key for key in keys if not _may_write(connection, own, key))
        # A name that nothing obeys, in a place where agents obey.
        too_much = _may_write(connection, own, f"{prefix}/server/config/@all/garrison-doctor")
    except EtcdError as error:
        return Rights(error=error)
    registration = decode_registration(item.value) if item is not None else None
    return Rights(unread, unwritten, too_much, registration, item is not None)


def _unread(connection: Connection, prefix: str, host: str, groups: Sequence[str]) -> Iterable[str]:
    for start, end in (*aim_at(prefix, host, groups).ranges, (f"{prefix}/config/body/" + "0" * 64, "")):
        try:
            connection.range(Range(start, end, limit=1, count_only=True, serializable=True))
        except EtcdError as error:
            if error.kind != "permission":
                raise
            yield start if end else start.rpartition("/")[0] + "/"


def _may_write(connection: Connection, own: str, key: str) -> bool:
    try:
        connection.txn((Compare(own, "version", "<", 0),), (Put(key, b""),))
    except EtcdError as error:
        if error.kind != "permission":
            raise
        return False
    return True
