"""Connects the agent and its presence: documents from the loop to the thread, events and problems back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from garrison.supervisor import logs
from garrison.supervisor.presence.facts import host_status
from garrison.supervisor.presence.identity import ip_addresses, own_registration
from garrison.supervisor.presence.lease import LEASE_FILE, LeaseMemory
from garrison.supervisor.presence.presence import Presence, PresenceStatus
from garrison.supervisor.state import read

if TYPE_CHECKING:
    from garrison.supervisor.agent import Agent
    from garrison.supervisor.stores.etcd.store import EtcdStore

PROBLEMS = "presence"
"""Under this name the agent's problems have what is wrong with the registration."""

_OFFER_SECONDS = 0.2
"""Changes within this time are looked at together; what is written when is the publisher's business."""
_UNTOLD = frozenset({"store", PROBLEMS})

_log = logs.get("presence")


class PresenceBridge:
    """Owns the agent's `Presence`. Used from the loop.

    Args:
        agent: The agent that is shown.
        store: Whose sessions it uses.
    """

    def __init__(self, agent: Agent, store: EtcdStore) -> None:
        settings = agent.settings
        remembered, error = read(settings.agent.state_dir, LEASE_FILE, LeaseMemory)
        if error:
            _log.warning("the lease from before the start is not known, a new one is made: %s", error)
        self._agent = agent
        self._timer: asyncio.TimerHandle | None = None
        self.presence = Presence(
            host=agent.host,
            prefix=settings.agent.prefix,
            registration=own_registration(agent.cgroups.mode, settings.agent.groups, ip_addresses()),
            lease_seconds=settings.store.etcd.lease_ttl,
            alive_key=settings.agent.alivehost_key,
            remembered=remembered,
            save=lambda memory: agent.remembering.writer.save(LEASE_FILE, memory),
            on_event=self._emit,
            on_status=self._show,
        )
        store.on_session = self.presence.on_session
        store.on_session_end = self.presence.on_session_end

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system gives no thread.
        """
        self.presence.start()

    def stop(self, timeout: float) -> bool:
        """Take the host out of etcd, see `Presence.stop`. May be called from any thread."""
        return self.presence.stop(timeout)

    @property
    def lease_id(self) -> str:
        """Of the lease in use, in hexadecimal as etcdctl shows it; empty without one."""
        return self.presence.status().lease_id

    def offer_soon(self) -> None:
        """Have the host's status looked at; cheap, for every change."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_OFFER_SECONDS, self._offer)

    def _offer(self) -> None:
        self._timer = None
        agent = self._agent
        desired = agent.reconciler.desired
        if desired is None:
            return
        problems = agent.problems.texts(without=_UNTOLD)
        self.presence.offer(host_status(agent.host, desired, agent.workers.values(), agent.killswitch, problems))

    def _emit(self, action: str, fields: dict[str, Any]) -> None:
        self._agent.call_in_loop(lambda: self._agent.emit_state(action, fields))

    def _show(self, status: PresenceStatus) -> None:
        self._agent.call_in_loop(lambda: self._agent.problems.replace(PROBLEMS, list(status.problems)))
