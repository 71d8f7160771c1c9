"""A worker's log level in etcd: it holds at run time, in the same process."""

from __future__ import annotations

import pytest

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until
from tests.e2e._etcd_agent import REGISTRATION, Make, store_toml
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

GOSSIP = f'[workers.gossip]\nmodules = ["{module("gossip", "Gossip")}"]\n'
HOST_KEY = "/hids/server/config/web1/worker/gossip/log_level"
ALL_KEY = "/hids/server/config/@all/worker/gossip/log_level"


def count(agent: RunningAgent) -> dict[str, int]:
    """Return how many lines of each level the worker has in the log."""
    text = agent.errors()
    return {level: text.count(f" {level} worker.gossip: ") for level in ("debug", "info", "warning")}


def talks(agent: RunningAgent, *levels: str) -> None:
    """Wait until of these levels lines come, and of the others none."""

    def silent_but_for_them() -> bool:
        before = count(agent)

        def more() -> dict[str, int]:
            return {level: number - before[level] for level, number in count(agent).items()}

        until(lambda: all(more()[level] >= 10 for level in levels), f"lines of {levels}")
        return all((number > 0) == (level in levels) for level, number in more().items())

    until(silent_but_for_them, f"only {levels}", 60)


def test_the_level_of_a_worker_follows_etcd_while_it_runs(etcd_cluster: Cluster, make_agent: Make) -> None:
    etcd_cluster.delete("/hids/", prefix=True)
    agent = make_agent(GOSSIP, more=store_toml(etcd_cluster))
    agent.start()
    pid = agent.wait_worker("gossip", state="running")["pid"]
    until(lambda: etcd_cluster.get(REGISTRATION), "the registration is there", 60)
    talks(agent, "info", "warning")
    etcd_cluster.put(ALL_KEY, "debug")
    talks(agent, "debug", "info", "warning")
    etcd_cluster.put(HOST_KEY, "warning")
    talks(agent, "warning")
    etcd_cluster.put(HOST_KEY, "loud")  # no level: what was there before stays
    until(lambda: "loud" in agent.errors(), "it is said", 60)
    talks(agent, "warning")
    etcd_cluster.delete(HOST_KEY)
    talks(agent, "debug", "info", "warning")
    etcd_cluster.delete(ALL_KEY)
    talks(agent, "info", "warning")
    assert agent.worker("gossip")["pid"] == pid
