"""Debian's etcd 3.4, three members: what the agent needs works there too, and so does what makes faults short.

Users, passwords and certificates on it: `test_etcd_auth`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e._agent import needs_cgroups, until
from tests.e2e._etcd_agent import (
    QUORUM_SECONDS,
    REGISTRATION,
    STATUS,
    STOP_KEY,
    Make,
    acted,
    in_time,
    member_of,
    put_when_possible,
    started,
)
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

ALL_KILL = "/hids/server/config/@all/killswitch"
TTL = 10


def test_core_scenario_on_etcd_3_4(make_etcd: Callable[..., Cluster], make_agent: Make) -> None:
    cluster = make_etcd(3, debian=True)
    assert cluster.binaries.version.startswith("3.4.")
    agent = started(make_agent, cluster, ttl=TTL)
    until(lambda: cluster.get(STATUS), "the status is written", 60)

    for action, state in (("stop", "stopped"), ("start", "running")):
        since = put_when_possible(cluster, STOP_KEY, action)
        acted(agent, since, state=state)
    since = put_when_possible(cluster, ALL_KILL, "on")
    acted(agent, since, state="killed")
    assert not agent.pids()
    since = time.monotonic()
    cluster.delete(ALL_KILL)
    acted(agent, since, state="running")

    created, began = _created(cluster), time.monotonic()

    # A member that is cut off says so when asked for a leader, in this release too.
    member = member_of(cluster, agent)
    cluster.move_leader(member)
    member.isolate()
    since = put_when_possible(cluster, STOP_KEY, "stop", without=member)
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    member.heal()

    # A compaction of all that was watched, while nobody is connected.
    cluster.kill()
    cluster.start()
    cluster.put(STOP_KEY, "stop")
    cluster.put(STOP_KEY, "start")
    since = time.monotonic()
    cluster.compact()
    acted(agent, since, QUORUM_SECONDS, state="running")

    # The registration outlives its lease's time, so the lease is renewed; a restart takes both up again.
    time.sleep(max(0.0, began + TTL + 2 - time.monotonic()))
    agent.kill()
    agent.start()
    agent.wait_event(event__action="registered", garrison__how="take over")
    assert _created(cluster) == created

    killed = time.monotonic()
    agent.kill()
    until(lambda: cluster.get(REGISTRATION) is None, "gone with the lease", 60)
    in_time("gone after kill -9", killed, TTL + 2)
    agent.start()
    until(lambda: cluster.get(REGISTRATION), "registered", 60)
    assert agent.stop() == 0
    assert cluster.get(REGISTRATION) is None


def _created(cluster: Cluster) -> str:
    fields = cluster.etcdctl("get", "-w", "fields", "--", REGISTRATION).splitlines()
    return next(line for line in fields if line.startswith('"CreateRevision"'))
