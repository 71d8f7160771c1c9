"""Whether this agent shows itself in a store. The only module here that is loaded on every host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from garrison.supervisor.stores.base import Store

if TYPE_CHECKING:
    from garrison.supervisor.agent import Agent
    from garrison.supervisor.presence.bridge import PresenceBridge


def make_presence(agent: Agent, store: Store) -> PresenceBridge | None:
    """Return what keeps the agent present in etcd; None where its keys come from somewhere else."""
    if agent.settings.store.backend != "etcd":
        return None
    from garrison.supervisor.presence.bridge import PresenceBridge
    from garrison.supervisor.stores.etcd.store import EtcdStore

    assert isinstance(store, EtcdStore)
    return PresenceBridge(agent, store)
