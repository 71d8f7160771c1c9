"""What operations do with plain etcdctl, and what becomes of the workers: scopes, precedence, killswitch."""

from __future__ import annotations

import time

import pytest

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until
from tests.e2e._etcd_agent import AT_ONCE, QUIET, RIGHT_SECONDS, Make, in_time, store_toml
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

CONFIG = "/hids/server/config"
OTHER = f'[workers.other]\nmodules = ["{module("quiet", "Quiet")}"]\n'
GROUPS = 'groups = ["web", "eu"]\n'


@pytest.fixture
def agent(etcd: Cluster, make_agent: Make) -> RunningAgent:
    """An agent in two groups with two workers that run."""
    etcd.delete("/hids/", prefix=True)
    made = make_agent(QUIET + OTHER, agent=AT_ONCE + GROUPS, more=store_toml(etcd))
    made.start()
    for name in ("quiet", "other"):
        made.wait_worker(name, state="running")
    return made


def then(agent: RunningAgent, since: float, **states: str) -> None:
    """Check that workers come into these states in time."""

    def look() -> bool:
        shown = {worker["name"]: worker["state"] for worker in agent.client.call("status")["workers"]}
        return all(shown[name] == state for name, state in states.items())

    until(look, f"the workers are {states}", RIGHT_SECONDS + 60)
    in_time(str(states), since, RIGHT_SECONDS)


def test_start_and_stop_of_host_group_and_all(etcd: Cluster, agent: RunningAgent) -> None:
    def put(scope: str, action: str) -> float:
        since = time.monotonic()
        etcd.etcdctl("put", f"{CONFIG}/{scope}/worker/quiet", action)
        return since

    def delete(scope: str) -> float:
        since = time.monotonic()
        etcd.etcdctl("del", f"{CONFIG}/{scope}/worker/quiet")
        return since

    then(agent, put("web1", "stop"), quiet="stopped", other="running")
    then(agent, put("web1", "start"), quiet="running", other="running")
    delete("web1")
    then(agent, put("@all", "stop"), quiet="stopped", other="running")
    then(agent, put("@group/eu", "start"), quiet="running")  # a group goes before all
    then(agent, put("@group/web", "stop"), quiet="stopped")  # the host's first group goes before its second
    then(agent, put("web1", "freeze"), quiet="frozen")  # the host goes before its groups
    assert agent.worker("quiet")["desired_by"] == f"{CONFIG}/web1/worker/quiet"
    put("@group/web", "start")
    put("web10", "stop")  # another host, whose name only begins like ours
    then(agent, delete("web1"), quiet="running")  # each deletion reveals the next one
    then(agent, put("@group/web", "stop"), quiet="stopped")
    then(agent, delete("@group/web"), quiet="running")
    then(agent, delete("@group/eu"), quiet="stopped")
    then(agent, delete("@all"), quiet="running", other="running")
    assert agent.worker("quiet")["breaker"]["trips"] == 0


@pytest.mark.parametrize("scope", ["@all", "@group/eu", "web1"])
def test_killswitch_empties_all_workers_and_its_deletion_brings_them_back(
    etcd: Cluster, agent: RunningAgent, scope: str
) -> None:
    since = time.monotonic()
    etcd.etcdctl("put", f"{CONFIG}/{scope}/killswitch", "on")
    until(lambda: not agent.pids(), "no process is left in the workers' cgroups")
    in_time("the workers' cgroups are empty", since, RIGHT_SECONDS)
    then(agent, since, quiet="killed", other="killed")
    # A start does not overrule it.
    etcd.etcdctl("put", f"{CONFIG}/web1/worker/quiet", "start")
    until(lambda: agent.worker("quiet")["desired_by"] == f"{CONFIG}/web1/worker/quiet", "the start is seen")
    assert not agent.pids()
    since = time.monotonic()
    etcd.etcdctl("del", f"{CONFIG}/{scope}/killswitch")
    then(agent, since, quiet="running", other="running")


def test_killswitch_that_cannot_be_read_counts_as_engaged(etcd: Cluster, agent: RunningAgent) -> None:
    since = time.monotonic()
    etcd.etcdctl("put", f"{CONFIG}/@all/killswitch", "{not json")
    then(agent, since, quiet="killed", other="killed")
    since = time.monotonic()
    etcd.etcdctl("put", f"{CONFIG}/@all/killswitch", "off")
    then(agent, since, quiet="running", other="running")
