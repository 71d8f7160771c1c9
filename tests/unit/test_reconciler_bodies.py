"""Bodies across a restart, and how many are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import msgspec

from garrison.supervisor.desired import Desired, Memory
from garrison.supervisor.reconciler import Reconciler
from garrison.supervisor.settings import Settings
from garrison.supervisor.settings.schema import Agent, Worker
from garrison.supervisor.stores.base import Entry, Snapshot, Store, StoreListener, StoreStatus

KEY = "/hids/agent/config/@all/plugin/w/settings"


class Asked(Store):
    """Notes which bodies it is asked for."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, ...]] = []

    def start(self, listener: StoreListener) -> None:
        raise AssertionError

    def stop(self, timeout: float = 5.0) -> bool:
        return True

    def status(self) -> StoreStatus:
        return StoreStatus("etcd", connected=False, endpoint="")

    def request_refresh(self) -> None:
        pass

    def set_groups(self, groups: Sequence[str], kill_groups: Iterable[str] = ()) -> None:
        pass

    def fetch_bodies(self, ids: Iterable[str]) -> None:
        self.bodies.append(tuple(ids))


class Host:
    """A reconciler, what it asked for and what came out."""

    def __init__(self) -> None:
        self.store = Asked()
        self.desired: Desired | None = None
        settings = Settings(agent=Agent(hostname="h"), workers={"w": Worker()})
        self.reconciler = Reconciler(settings, self.store, {}, tuple, self._take, lambda _error: None)

    def _take(self, desired: Desired, _changes: object) -> None:
        self.desired = desired

    @property
    def greeting(self) -> object:
        assert self.desired is not None
        return self.desired.workers["w"].settings.get("greeting")


def body(greeting: str) -> tuple[str, bytes]:
    data = json.dumps({"greeting": greeting}).encode()
    return hashlib.sha256(data).hexdigest(), data


def snapshot(sha256: str, revision: int) -> Snapshot:
    return Snapshot({KEY: Entry(f"id:{sha256}".encode(), revision)}, revision, "h1")


def restarted(host: Host) -> Host:
    """Return the next process: it has what went through the file."""
    new = Host()
    memory = msgspec.json.decode(msgspec.json.encode(host.reconciler.memory), type=Memory)
    new.reconciler.restore(host.reconciler.snapshot, memory)
    new.reconciler.resolve()
    return new


def test_a_body_in_force_is_there_after_a_restart_and_not_fetched_again() -> None:
    first, data = body("one")
    host = Host()
    host.reconciler.take_snapshot(snapshot(first, 1))
    assert host.store.bodies == [(first,)]
    host.reconciler.take_bodies({first: data})
    assert host.greeting == "one"
    again = restarted(host)
    assert again.greeting == "one"
    assert again.desired is not None
    assert again.desired.problems == ()
    assert again.store.bodies == []
    # Nor when the store is there again, with the same key.
    again.reconciler.take_snapshot(snapshot(first, 1))
    assert again.store.bodies == []


def test_a_newer_body_that_never_came_is_asked_for_and_the_old_one_stays_in_force() -> None:
    (first, data), (second, newer) = body("one"), body("two")
    host = Host()
    host.reconciler.take_snapshot(snapshot(first, 1))
    host.reconciler.take_bodies({first: data})
    host.reconciler.take_snapshot(snapshot(second, 2))
    again = restarted(host)
    assert again.greeting == "one"
    assert again.store.bodies == [(second,)]
    again.reconciler.take_bodies({second: newer})
    assert again.greeting == "two"


def test_a_value_in_the_cache_that_is_not_the_body_of_that_name_is_not_taken_for_it() -> None:
    (first, data), (second, _) = body("one"), body("two")
    host = Host()
    host.reconciler.take_snapshot(snapshot(first, 1))
    host.reconciler.take_bodies({first: data})
    assert host.reconciler.memory is not None
    # As if the key had been changed in the cache alone.
    host.reconciler.snapshot = snapshot(second, 1)
    again = restarted(host)
    assert again.store.bodies == [(second,)]


def test_bodies_that_no_key_refers_to_are_let_go() -> None:
    host = Host()
    for number in range(50):
        name, data = body(f"number {number}")
        host.reconciler.take_snapshot(snapshot(name, number + 1))
        host.reconciler.take_bodies({name: data})
        assert host.greeting == f"number {number}"
    assert len(host.reconciler._bodies) == 1
