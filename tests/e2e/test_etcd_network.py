"""The network between an agent and its cluster, and its clock: silent, lossy, without names, jumping.

A stop put meanwhile acts in time. ``GARRISON_FULL=1`` runs the long forms.
"""

from __future__ import annotations

import contextlib
import os
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e._agent import needs_cgroups, until
from tests.e2e._clock import faked, needs_faketime
from tests.e2e._etcd_agent import (
    AT_ONCE,
    LONG,
    QUIET,
    QUORUM_SECONDS,
    REGISTRATION,
    SPINNING,
    STOP_KEY,
    Make,
    acted,
    put_when_possible,
    quiet_for,
    started,
    store_of,
    store_toml,
    wait_store,
)
from tests.e2e._netns import Link, needs_namespaces
from tests.etcd.cluster import Cluster, free_port
from tests.etcd.wires import Wires

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

LOG_LEVEL = f"{STOP_KEY}/log_level"


def test_silent_connection_and_a_compaction_meanwhile(etcd: Cluster, make_agent: Make) -> None:
    etcd.delete("/hids/", prefix=True)
    wires = Wires()
    port = free_port()
    try:
        wires.add("agent", port, etcd.members[0].port)
        agent = started(make_agent, etcd, endpoints=[f"127.0.0.1:{port}"])
        # Not refused: swallowed. No error comes back, the connection just stays silent.
        wires.cut("agent")
        for i in range(50):
            etcd.put(LOG_LEVEL, "debug" if i % 2 else "info")
        etcd.put(STOP_KEY, "stop")
        etcd.compact()
        wait_store(agent, connected=False)
        assert agent.worker("quiet")["state"] == "running"
        since = time.monotonic()
        wires.heal("agent")
        acted(agent, since, QUORUM_SECONDS, state="stopped")
    finally:
        wires.close()


@needs_namespaces
def test_packets_dropped_not_refused(make_etcd: Callable[..., Cluster], make_agent: Make) -> None:
    with Link() as link:
        cluster = make_etcd(netns=link.far, ip=link.far_ip)
        agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(cluster))
        garrisond = [str(Path(sys.executable).parent / "garrisond"), "--config", str(agent.config)]
        agent.start(command=["nsenter", f"--net=/run/netns/{link.near}", "--", *garrisond])
        agent.wait_worker("quiet", state="running")
        until(lambda: cluster.get(REGISTRATION), "the registration is there", 60)
        link.drop()
        cluster.put(STOP_KEY, "stop")
        wait_store(agent, connected=False)
        assert quiet_for(agent, 60 if LONG else 20) < SPINNING
        assert agent.worker("quiet")["state"] == "running"
        since = time.monotonic()
        link.mend()
        acted(agent, since, QUORUM_SECONDS, state="stopped")


def test_name_that_does_not_resolve_among_the_endpoints(etcd: Cluster, make_agent: Make) -> None:
    etcd.delete("/hids/", prefix=True)
    names = ["no-such-host.invalid:2379", "neither.invalid", *etcd.endpoints]
    agent = started(make_agent, etcd, endpoints=names)
    etcd.kill()
    wait_store(agent, connected=False)
    etcd.members[0].start()
    since = put_when_possible(etcd, STOP_KEY, "stop")
    acted(agent, since, QUORUM_SECONDS, state="stopped")


class Impostor(socketserver.BaseRequestHandler):
    """Listens where etcd should, and is none: it hangs up, talks nonsense, or speaks another protocol."""

    answer = b""

    def handle(self) -> None:
        self.request.sendall(self.answer)


@pytest.fixture
def impostors() -> Iterator[list[str]]:
    """Three endpoints that are not etcd."""
    answers = (b"", os.urandom(1 << 20), b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    with contextlib.ExitStack() as stack:
        names = []
        for answer in answers:
            handler = type("Impostor", (Impostor,), {"answer": answer})
            server = stack.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", free_port()), handler))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            names.append(f"127.0.0.1:{server.server_address[1]}")
        yield names


def test_endpoints_that_are_no_etcd(etcd: Cluster, make_agent: Make, impostors: list[str]) -> None:
    etcd.delete("/hids/", prefix=True)
    agent = started(make_agent, etcd, endpoints=[*impostors, *etcd.endpoints])
    etcd.kill()
    wait_store(agent, connected=False)
    try:
        assert quiet_for(agent, 60 if LONG else 20) < SPINNING
    finally:
        etcd.members[0].start()
    since = put_when_possible(etcd, STOP_KEY, "stop")
    acted(agent, since, QUORUM_SECONDS, state="stopped")


@needs_faketime
def test_clock_that_jumps(etcd: Cluster, make_agent: Make) -> None:
    """Months, forward and back: stops act, the lease lives on, and a session is had again under the wrong time."""
    etcd.delete("/hids/", prefix=True)
    agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(etcd, ttl=10))
    offset = agent.folder / "offset"
    offset.write_text("+0")
    agent.start(env=faked(offset))
    agent.wait_worker("quiet", state="running")
    until(lambda: etcd.get(REGISTRATION), "the registration is there", 60)
    lease = store_of(agent)["lease_id"]
    for step in ("+90d", "-90d"):
        offset.write_text(step)
        since = put_when_possible(etcd, STOP_KEY, "stop")
        acted(agent, since, state="stopped")
        since = put_when_possible(etcd, STOP_KEY, "start")
        acted(agent, since, state="running")
        etcd.members[0].kill()
        wait_store(agent, connected=False)
        etcd.members[0].start()
        since = put_when_possible(etcd, STOP_KEY, "stop")
        acted(agent, since, QUORUM_SECONDS, state="stopped")
        etcd.delete(STOP_KEY)
        agent.wait_worker("quiet", state="running")
    time.sleep(12)  # longer than the lease: it was renewed, and is not thought to be over either
    assert etcd.get(REGISTRATION)
    assert store_of(agent)["lease_id"] == lease
    stamps = [event["@timestamp"] for event in agent.events() if event["agent"]["worker"] == "agent"]
    assert stamps != sorted(stamps)  # the clock really did jump
