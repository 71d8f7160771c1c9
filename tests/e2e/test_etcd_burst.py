"""A thousand changes at once at a real agent, and how often it writes its own status."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.endpoints import Address
from tests.e2e._agent import module, needs_cgroups, until
from tests.e2e._etcd_agent import LONG, REGISTRATION, STATUS, Make, store_toml
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

WORKERS = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
SETTINGS = "/hids/agent/config/web1/plugin/quiet/settings"
BURST = 1000
UNCHANGED_SECONDS = 65.0 if LONG else 20.0


@contextmanager
def operator(cluster: Cluster) -> Iterator[Connection]:
    """Have a client that does not need 20 ms for each put."""
    host, _, port = cluster.endpoints[0].rpartition(":")
    connection = Connection(Address(host, int(port), host))
    try:
        connection.open()
        yield connection
    finally:
        connection.close()


def writes(cluster: Cluster, key: str) -> int:
    """Return how often a key was put since it was created."""
    found = re.search(r'"Version" : (\d+)', cluster.etcdctl("get", "-w", "fields", "--", key))
    return int(found.group(1)) if found else 0


def test_a_thousand_changes_of_one_worker_come_as_few_and_the_last_one_wins(etcd: Cluster, make_agent: Make) -> None:
    etcd.delete("/hids/", prefix=True)
    agent = make_agent(WORKERS, more=store_toml(etcd))
    agent.start()
    agent.wait_worker("quiet", state="running")
    until(lambda: writes(etcd, STATUS), "the status is written", 60)
    before = writes(etcd, STATUS)
    with operator(etcd) as connection:
        for number in range(BURST):
            last = connection.put(SETTINGS, json.dumps({"greeting": f"hello {number}"}).encode()).revision
    config = until(
        lambda: found if (found := agent.worker("quiet")["config"])["revision"] == last else None, "the last one", 60
    )
    until(lambda: agent.worker("quiet")["config"]["status"] == "applied", "it is applied", 60)
    actions = [event["event"]["action"] for event in agent.events()]
    # Each snapshot in between may be taken, and there are few: a burst of ten, then two a second.
    assert 1 <= actions.count("config-applied") < BURST / 10
    assert agent.worker("quiet")["breaker"]["trips"] == 0

    # Others see the last one, and the writes in between are bounded: one after a second, one in ten seconds after that.
    def shown() -> bool:
        status = json.loads(etcd.get(STATUS) or "{}")
        return bool(status) and status["workers"][0]["config"]["hash"] == config["hash"]

    began = time.monotonic()
    until(shown, "the status tells the last one", 60)
    assert writes(etcd, STATUS) - before <= 4 + (time.monotonic() - began) / 10


def test_the_status_is_not_written_while_only_gauges_move(etcd: Cluster, make_agent: Make) -> None:
    etcd.delete("/hids/", prefix=True)
    etcd.put(SETTINGS, '{"every_seconds": 0.05}')
    agent = make_agent(WORKERS, more=store_toml(etcd, ttl=15))
    agent.start()
    agent.wait_worker("quiet", state="running")
    until(lambda: writes(etcd, STATUS), "the status is written", 60)

    def settled() -> bool:
        status = json.loads(etcd.get(STATUS) or "{}")
        worker = status["workers"][0] if status else {}
        return bool(worker) and worker["state"] == "running" and worker["config"]["status"] == "applied"

    until(settled, "it says that all is well", 120)
    before, emitted = (writes(etcd, STATUS), writes(etcd, REGISTRATION)), agent.worker("quiet")["events"]["emitted"]
    revision = etcd.revision()
    time.sleep(
        UNCHANGED_SECONDS
    )  # the time itself is the test: three renewals of the lease and a heartbeat fall into it
    # It has worked and been alive all the time ...
    assert agent.worker("quiet")["events"]["emitted"] >= emitted + 100
    # ... and written nothing at all.
    assert (writes(etcd, STATUS), writes(etcd, REGISTRATION)) == before
    assert etcd.revision() == revision
