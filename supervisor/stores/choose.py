"""The store that the settings ask for; what it needs is imported here and not before."""

from __future__ import annotations

import os
from collections.abc import Iterable

from garrison.supervisor.settings import Settings
from garrison.supervisor.stores.base import Snapshot, Store

ADDRESSES_FILE = "addresses.json"
"""Below ``state_dir``: the last addresses of names in ``endpoints``, for when DNS is away."""


def make_store(settings: Settings, kill_groups: Iterable[str], seed: Snapshot | None, seed_age: float) -> Store:
    """Return the store, not started.

    Args:
        settings: Checked.
        kill_groups: Groups of which only the killswitch is looked at.
        seed: The last snapshot of the process before.
        seed_age: Seconds since the seed was known to be true.

    Raises:
        KeyGrammarError: Prefix, hostname or groups cannot stand in a key.
        OSError: A descriptor that the store needs is not to be had.
    """
    agent, store = settings.agent, settings.store
    if store.backend == "directory":
        from garrison.supervisor.stores.directory import DirectoryStore

        return DirectoryStore(
            store.directory.path,
            agent.prefix,
            host=agent.hostname,
            groups=agent.groups,
            kill_groups=kill_groups,
            seed=seed,
        )
    from garrison.supervisor.stores.etcd.connection import Access
    from garrison.supervisor.stores.etcd.credentials import Files
    from garrison.supervisor.stores.etcd.endpoints import parse_endpoint
    from garrison.supervisor.stores.etcd.store import EtcdStore

    etcd = store.etcd
    return EtcdStore(
        [parse_endpoint(text) for text in etcd.endpoints],
        Access(
            tls=bool(etcd.ca_cert),
            files=Files(etcd.ca_cert, etcd.cert, etcd.key, etcd.password_file),
            username=etcd.username,
        ),
        agent.prefix,
        host=agent.hostname,
        groups=agent.groups,
        kill_groups=kill_groups,
        seed=seed,
        seed_age=seed_age,
        addresses=os.path.join(agent.state_dir, ADDRESSES_FILE),
    )
