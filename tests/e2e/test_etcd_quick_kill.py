"""A killswitch that is taken back as soon as the workers are gone: still a kill, and no crash of theirs."""

from __future__ import annotations

import os
import select

import pytest

from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.endpoints import Address
from tests.e2e._agent import RunningAgent, module, needs_cgroups, until
from tests.e2e._etcd_agent import Make, store_toml
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(180)]

COUNT = 8
WORKERS = "".join(f'[workers.w{number}]\nmodules = ["{module("quiet", "Quiet")}"]\n' for number in range(COUNT))
KILLSWITCH = "/hids/server/config/@all/killswitch"


def wait_gone(fds: list[int]) -> None:
    """Wait until all processes behind these pidfds have ended."""
    waiting = set(fds)
    while waiting:
        ready, _, _ = select.select(waiting, [], [], 30)
        assert ready, f"{len(waiting)} workers live on"
        waiting -= set(ready)


def test_kills_that_are_taken_back_at_once_are_no_crashes(etcd: Cluster, make_agent: Make) -> None:
    agent: RunningAgent = make_agent(WORKERS, "release_spread_seconds = 0\n", store_toml(etcd))
    agent.start()
    host, _, port = etcd.endpoints[0].rpartition(":")
    operator = Connection(Address(host, int(port), host))

    def running() -> list[int]:
        workers = agent.client.call("status")["workers"]
        return [worker["pid"] for worker in workers if worker["state"] == "running" and worker["pid"]]

    def all_run() -> list[int]:
        return until(lambda: found if len(found := running()) == COUNT else None, "all run, none waits", 20)

    try:
        operator.open()
        for _ in range(12):
            fds = [os.pidfd_open(pid) for pid in all_run()]
            try:
                operator.put(KILLSWITCH, b"on")
                wait_gone(fds)
                # The master has no time to look at the deaths one by one.
                operator.delete(KILLSWITCH)
            finally:
                for fd in fds:
                    os.close(fd)
        all_run()
    finally:
        operator.close()
    workers = agent.client.call("status")["workers"]
    assert [worker["breaker"]["trips"] for worker in workers] == [0] * COUNT
    assert not [event for event in agent.events() if event["event"]["action"] == "worker-failed"]
