"""Presences on a real etcd, as one agent or several would have them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from garrison.supervisor.presence.document import HostStatus, Registration, WorkerFacts
from garrison.supervisor.presence.identity import own_registration
from garrison.supervisor.presence.lease import LeaseMemory
from garrison.supervisor.presence.presence import Presence, PresenceStatus
from garrison.supervisor.stores.etcd.connection import Access, Address, Connection
from tests.etcd.cluster import Cluster, until

HOST = "web1"


def connect(cluster: Cluster, access: Access | None = None) -> Connection:
    """Return an open connection to the first member."""
    ip, _, port = cluster.members[0].endpoint.rpartition(":")
    connection = Connection(Address(ip, int(port), ip), access)
    connection.open()
    return connection


def status(state: str = "running", desired: str = "start", by: str = "default") -> HostStatus:
    """Return a status with one worker."""
    return HostStatus(
        host=HOST, workers=(WorkerFacts(name="process", state=state, desired=desired, desired_by=by),), groups=("web",)
    )


class OneHost:
    """The presence of one agent process, and all that it has said.

    Args:
        cluster: Where it registers.
        prefix: What its keys start with; another one for each test that shares a server.
        machine: Changes to its identity (``machine_id``, ``boot_id``).
        seconds: The lease's time.
        remembered: The lease from before the start.
    """

    def __init__(
        self,
        cluster: Cluster,
        prefix: str,
        *,
        machine: dict[str, str] | None = None,
        seconds: int = 5,
        alive_key: bool = False,
        remembered: LeaseMemory | None = None,
        access: Access | None = None,
    ) -> None:
        self.cluster = cluster
        self.prefix = prefix
        self.access = access
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.statuses: list[PresenceStatus] = []
        self.saved: list[LeaseMemory] = [] if remembered is None else [remembered]
        self.registration: Registration = msgspec.structs.replace(
            own_registration("hybrid", (), ()), **{"machine_id": "m1", "boot_id": "b1", **(machine or {})}
        )
        self.presence = Presence(
            host=HOST,
            prefix=prefix,
            registration=self.registration,
            lease_seconds=seconds,
            alive_key=alive_key,
            remembered=remembered,
            save=self.saved.append,
            on_event=lambda action, fields: self.events.append((action, fields)),
            on_status=self.statuses.append,
        )
        self.connection: Connection | None = None

    def begin(self, *, offered: HostStatus | None = None) -> OneHost:
        """Start it, in a session."""
        if offered is not None:
            self.presence.offer(offered)
        self.presence.start()
        self.connection = connect(self.cluster, self.access)
        self.presence.on_session(self.connection)
        return self

    def reconnect(self) -> None:
        """Begin another session."""
        self.presence.on_session_end()
        old, self.connection = self.connection, connect(self.cluster, self.access)
        if old is not None:
            old.close()
        self.presence.on_session(self.connection)

    def crash(self) -> LeaseMemory:
        """Vanish, as a killed process does; return what is on its disk."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self.presence.on_session_end()
        assert self.presence.stop(60)
        return self.saved[-1]

    def end(self) -> None:
        """Stop in good order."""
        assert self.presence.stop(60)
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    @property
    def key(self) -> str:
        """Of the registration."""
        return f"{self.prefix}/agent/master/{HOST}"

    @property
    def status_key(self) -> str:
        """Of the status."""
        return f"{self.prefix}/agent/status/{HOST}"

    def read(self, key: str) -> dict[str, Any] | None:
        """Return a JSON document in etcd."""
        value = self.cluster.get(key)
        return None if value is None else json.loads(value)

    def facts(self, key: str) -> dict[str, int] | None:
        """Return a key's create_revision, mod_revision, version and lease."""
        answer = json.loads(self.cluster.etcdctl("get", "-w", "json", "--", key))
        if not answer.get("kvs"):
            return None
        found = answer["kvs"][0]
        return {name: int(found.get(name, 0)) for name in ("create_revision", "mod_revision", "version", "lease")}

    def holds(self) -> bool:
        """Tell whether the key is this process's."""
        document = self.read(self.key)
        return document is not None and document["instance"] == self.registration.instance

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for something; say what the presence thought of it where it never came."""
        try:
            return until(condition, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.presence.status()}\n{self.events}") from None

    def wait_registered(self) -> OneHost:
        """Wait until it is registered and says so."""
        self.wait(lambda: self.presence.status().registered and self.holds(), "registered")
        return self

    def wait_event(self, action: str) -> dict[str, Any]:
        """Wait for an event of its own; return the fields of the last one."""
        found: dict[str, Any] = self.wait(
            lambda: [fields or {"": ""} for name, fields in self.events if name == action], f"the event {action}"
        )[-1]
        return found

    def wait_problem(self, text: str) -> str:
        """Wait until its status has a problem with this text in it; return it."""
        found: str = self.wait(
            lambda: next((line for line in self.presence.status().problems if text in line), ""), f"a problem: {text}"
        )
        return found

    def wait_well(self) -> None:
        """Wait until there is no problem."""
        self.wait(lambda: not self.presence.status().problems, "no problem")


@contextmanager
def hosts() -> Iterator[Callable[..., OneHost]]:
    """Make presences that are ended with the test, however it ends."""
    made: list[OneHost] = []

    def make(*arguments: Any, **keywords: Any) -> OneHost:
        made.append(OneHost(*arguments, **keywords))
        return made[-1]

    try:
        yield make
    finally:
        for host in reversed(made):
            host.end()


def counts() -> tuple[int, int]:
    """Return how many threads of Python's and how many descriptors this process has."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))
