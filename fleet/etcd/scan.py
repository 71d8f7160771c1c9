"""Reads a fleet from etcd page by page, all as of one revision, and yields its hosts in the order of their names.

Memory is bounded by the number of hosts that have keys of their own (about 200 bytes each) and by that of registered
machines (one machine id each), never by the size of the fleet's documents. Only the first read passes raft; the rest
comes from the database of the member that answered it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from garrison.fleet.etcd.hosts import FleetKeys, Host, gone, is_host, judge, split_scope
from garrison.supervisor.presence.document import decode_registration, decode_status
from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.results import KeyValue

PAGE_KEYS = 1000


@dataclass(slots=True)
class Scan:
    """One look at a fleet.

    Attributes:
        connection: Open.
        prefix: What all keys start with.
        expected: Hosts that should be there, beside those with keys of their own.
        page_keys: Most keys in one answer.
        revision: The one that everything is read at; 0: not yet known.
        registered: How many registrations there were.
        unknown: Keys that are none of the contract.
    """

    connection: Connection
    prefix: str = "/hids"
    expected: frozenset[str] = frozenset()
    page_keys: int = PAGE_KEYS
    revision: int = 0
    registered: int = 0
    unknown: int = 0
    _machines: dict[str, str] = field(default_factory=dict)

    def hosts(self) -> Iterator[Host]:
        """Yield every host that is registered or should be, by name.

        Raises:
            EtcdError: A page could not be read; ``compacted``: the look took longer than etcd keeps old revisions.
        """
        page = self.connection.list(f"{self.prefix}/server/config/", limit=1, keys_only=True)
        self.revision = page.header.revision
        keys = FleetKeys()
        start = f"{self.prefix}/server/config/"
        for item in self._items(start):
            keys.take(item.key[len(start) :], item.value)
        owners = keys.hosts | self._configured()
        present = self._registered(keys)
        absent = ((host, None) for host in sorted(owners | self.expected))
        yield from self._merged(present, absent)
        self.unknown += keys.unknown

    def _merged(
        self, present: Iterable[tuple[str, Host | None]], absent: Iterable[tuple[str, Host | None]]
    ) -> Iterator[Host]:
        last = ""
        # A registered host sorts before its own entry among the expected ones: merge() is stable.
        for name, host in heapq.merge(present, absent, key=lambda pair: pair[0]):
            if host is not None:
                last = name
                yield host
            elif name != last:
                yield gone(name, "expected, not registered" if name in self.expected else "has keys, is not registered")

    def _configured(self) -> set[str]:
        start = f"{self.prefix}/agent/config/"
        found = set()
        for item in self._items(start, keys_only=True):
            scope, _ = split_scope(item.key[len(start) :])
            if scope and not scope.startswith("@"):
                found.add(scope)
        return {host for host in found if is_host(host)}

    def _registered(self, keys: FleetKeys) -> Iterator[tuple[str, Host | None]]:
        masters, states = f"{self.prefix}/agent/master/", f"{self.prefix}/agent/status/"
        statuses = self._items(states)
        status = next(statuses, None)
        for item in self._items(masters):
            host = item.key[len(masters) :]
            while status is not None and status.key[len(states) :] < host:
                status = next(statuses, None)
            mine = status if status is not None and status.key[len(states) :] == host else None
            if not is_host(host):
                self.unknown += 1
                continue
            self.registered += 1
            registration = decode_registration(item.value)
            twin = ""
            if registration is not None and registration.machine_id:
                twin = self._machines.setdefault(registration.machine_id[:64], host)
            yield (
                host,
                judge(
                    host,
                    registration,
                    decode_status(mine.value) if mine is not None else None,
                    keys,
                    leased=item.lease != 0,
                    twin=twin if twin != host else "",
                ),
            )

    def _items(self, prefix: str, *, keys_only: bool = False) -> Iterator[KeyValue]:
        after, size = "", self.page_keys
        while True:
            try:
                page = self.connection.list(
                    prefix,
                    limit=size,
                    after=after,
                    revision=self.revision,
                    keys_only=keys_only,
                    serializable=True,
                )
            except EtcdError as error:
                if error.kind != "too_large" or size == 1:
                    raise
                size = max(1, size // 4)
                continue
            yield from page.items
            if not page.more or not page.items:
                return
            after = page.items[-1].key
