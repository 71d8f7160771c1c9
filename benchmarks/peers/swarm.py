"""Simulated agents: the agent's own store and presence for many hosts in one process, without workers.

Argument: a JSON object, see `Swarm`. One line on standard input asks, one JSON line answers: ``start``, ``state``,
``kills``, ``stops``, ``forget``. End of input ends everything in good order.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from grpc import _common

from garrison.supervisor.desired import Context, Memory, WorkerBase, resolve
from garrison.supervisor.killswitch import KillSwitch
from garrison.supervisor.presence.document import HostStatus, Registration, WorkerFacts
from garrison.supervisor.presence.identity import own_registration
from garrison.supervisor.presence.presence import Presence
from garrison.supervisor.stores.base import KillObservation, Snapshot, StoreStatus
from garrison.supervisor.stores.etcd.connection import Access, Connection
from garrison.supervisor.stores.etcd.endpoints import parse_endpoint
from garrison.supervisor.stores.etcd.store import EtcdStore

_common.MAXIMUM_WAIT_TIMEOUT = 10.0
"""gRPC looks ten times a second at whatever it waits for. A host does not notice; a machine that plays 1,000 does."""

WORKER = "process"
GROUPS = ("web", "paris")


class Agent:
    """What an agent has of etcd: a session that is obeyed, resolved as in the agent, and a registration with a status.

    Times are those of time.monotonic, which all processes of a machine share.
    """

    def __init__(self, host: str, endpoints: list[str], registration: Registration) -> None:
        self.host = host
        self.killed_at: float | None = None
        self.stopped_at: float | None = None
        self.sessions = 0
        self._memory: Memory | None = None
        self._context = Context(
            host=host,
            workers={WORKER: WorkerBase()},
            check_budget=lambda _document, base: base,
            check_aggregate=lambda _document, base: base,
            groups=GROUPS,
        )
        self._killswitch = KillSwitch(host, on_engage=self._engaged, on_change=self._released, release_spread=0)
        self.store = EtcdStore([parse_endpoint(text) for text in endpoints], Access(), host=host, groups=GROUPS)
        self.presence = Presence(
            host=host,
            prefix="/hids",
            registration=registration,
            lease_seconds=60,
            alive_key=False,
            remembered=None,
            save=lambda _memory: None,
            on_event=lambda _action, _fields: None,
            on_status=lambda _status: None,
        )
        self.store.on_session = self._on_session
        self.store.on_session_end = self.presence.on_session_end

    def start(self) -> None:
        self.presence.start()
        self.store.start(self)

    def leave(self) -> None:
        self.presence.stop(10.0)

    def stop(self) -> None:
        self.store.stop(10.0)

    def _on_session(self, connection: Connection) -> None:
        self.sessions += 1
        self.presence.on_session(connection)

    def _engaged(self) -> None:
        self.killed_at = time.monotonic()

    def _released(self) -> None:
        if (pending := self._killswitch.pending) is not None:
            self._killswitch.confirm_release(pending.ticket)

    # What the store calls

    def on_killswitch(self, observation: KillObservation) -> None:
        self._killswitch.update_store(observation)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        desired, self._memory = resolve(snapshot, self._context, self._memory)
        worker = desired.workers[WORKER]
        if worker.action == "stop" and self.stopped_at is None:
            self.stopped_at = time.monotonic()
        state = "stopped" if worker.action == "stop" else "running"
        facts = WorkerFacts(name=WORKER, desired=worker.action, desired_by=worker.decided_by, state=state)
        self.presence.offer(HostStatus(host=self.host, groups=desired.groups, workers=(facts,)))

    def on_bodies(self, bodies: Mapping[str, bytes | None]) -> None:
        pass

    def on_status(self, status: StoreStatus) -> None:
        pass


class Swarm:
    """The agents of this process.

    Args:
        endpoints: Of etcd.
        first: Number of the first one.
        count: How many.
        delay: Seconds from the question ``start`` to the first start: the processes take turns.
        pace: Seconds between two starts.
    """

    def __init__(self, endpoints: list[str], first: int, count: int, delay: float, pace: float) -> None:
        me = own_registration("unified", GROUPS, ())
        self._agents = [
            Agent(
                f"host-{number:06d}",
                endpoints,
                msgspec.structs.replace(me, machine_id=f"{number:032x}", instance=f"{number}"),
            )
            for number in range(first, first + count)
        ]
        self._delay, self._pace = delay, pace
        self._starter = threading.Thread(target=self._start, name="starter", daemon=True)

    def _start(self) -> None:
        time.sleep(self._delay)
        for agent in self._agents:
            agent.start()
            time.sleep(self._pace)

    def answer(self, question: str) -> Any:
        """Return what is asked for."""
        if question == "start":
            self._starter.start()
            return True
        if question == "state":
            return {
                "sessions": sum(agent.sessions for agent in self._agents),
                "connected": sum(agent.store.status().connected for agent in self._agents),
                "registered": sum(agent.presence.status().registered for agent in self._agents),
                "problems": [text for agent in self._agents for text in agent.presence.status().problems][:3],
            }
        if question == "forget":
            for agent in self._agents:
                agent.killed_at = agent.stopped_at = None
            return True
        return [agent.killed_at if question == "kills" else agent.stopped_at for agent in self._agents]

    def stop(self) -> None:
        """End everything: first all registrations at once, then all sessions."""
        if self._starter.ident is not None:
            self._starter.join()
        for end in (Agent.leave, Agent.stop):
            threads = [threading.Thread(target=end, args=(agent,)) for agent in self._agents]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def main() -> int:
    # They share the machine with the etcd that is measured, as hosts do not: they run when nobody else wants to. Set
    # before there is a thread, because each thread takes it from the one that starts it.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    swarm = Swarm(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(swarm.answer(line.strip())) + "\n")
        sys.stdout.flush()
    swarm.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
