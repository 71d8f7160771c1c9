"""Etcd stores on real servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from garrison.supervisor.stores.etcd.connection import Access
from garrison.supervisor.stores.etcd.endpoints import Endpoint, parse_endpoint
from garrison.supervisor.stores.etcd.store import EtcdStore, Timing
from tests.etcd.cluster import Cluster
from tests.integration._store_support import Recorder

HOST = "web1"
QUICK = Timing(reread=0.5, doubt=0.2, body_spread=0.0)


def endpoints_of(cluster: Cluster) -> list[Endpoint]:
    """Return the endpoints of a cluster."""
    return [parse_endpoint(text) for text in cluster.endpoints]


@contextmanager
def opened(
    where: Cluster | list[Endpoint],
    *,
    recorder: Recorder | None = None,
    access: Access | None = None,
    prepare: Callable[[EtcdStore], None] = lambda _store: None,
    **options: Any,
) -> Iterator[tuple[EtcdStore, Recorder]]:
    """Have a store started, and ended whatever happens."""
    endpoints = endpoints_of(where) if isinstance(where, Cluster) else where
    options = {"host": HOST, "groups": ("web",), "timing": QUICK} | options
    store = EtcdStore(endpoints, access or Access(), **options)
    recorder = recorder or Recorder()
    prepare(store)
    store.start(recorder)
    try:
        yield store, recorder
    finally:
        assert store.stop(30.0)


def connected(recorder: Recorder) -> Callable[[], bool]:
    """Return a condition: the store is connected."""
    return lambda: recorder.status is not None and recorder.status.connected


def lost(recorder: Recorder) -> Callable[[], bool]:
    """Return a condition: the store is not connected, and says why."""
    return lambda: recorder.status is not None and not recorder.status.connected and bool(recorder.status.error)


def sha256(body: str) -> str:
    """Return a body's name."""
    return hashlib.sha256(body.encode()).hexdigest()
