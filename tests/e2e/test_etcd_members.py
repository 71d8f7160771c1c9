"""Members of the cluster that die, hang, are cut off or come back older: a stop put meanwhile acts in time.

``GARRISON_FULL=1`` runs the long forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e._agent import needs_cgroups, until
from tests.e2e._etcd_agent import (
    LONG,
    QUORUM_SECONDS,
    REGISTRATION,
    SPINNING,
    STOP_KEY,
    Make,
    acted,
    in_time,
    member_of,
    problems,
    put_when_possible,
    quiet_for,
    started,
    store_of,
    wait_store,
)
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

ALL_KILL = "/hids/server/config/@all/killswitch"


@pytest.fixture
def trio(etcd_cluster: Cluster) -> Iterator[Cluster]:
    """Three members in good health, without keys; mended afterwards, whatever the test broke."""
    etcd_cluster.delete("/hids/", prefix=True)
    yield etcd_cluster
    for member in etcd_cluster.members:
        member.heal()
        if member.running:
            member.cont()
    etcd_cluster.start()


def test_leader_killed(trio: Cluster, make_agent: Make) -> None:
    agent = started(make_agent, trio)
    leader = member_of(trio, agent)
    trio.move_leader(leader)
    leader.kill()
    since = put_when_possible(trio, STOP_KEY, "stop", without=leader)
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    leader.start()
    since = put_when_possible(trio, STOP_KEY, "start")
    acted(agent, since, state="running")


def test_member_hangs(trio: Cluster, make_agent: Make) -> None:
    agent = started(make_agent, trio)
    member = member_of(trio, agent)
    trio.move_leader(member)
    member.stop()
    since = put_when_possible(trio, STOP_KEY, "stop", without=member)
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    assert member_of(trio, agent) is not member


def test_member_cut_off_from_its_cluster_while_the_agent_stays_connected(trio: Cluster, make_agent: Make) -> None:
    agent = started(make_agent, trio)
    member = member_of(trio, agent)
    trio.move_leader(member)
    member.isolate()
    since = put_when_possible(trio, STOP_KEY, "stop", without=member)
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    assert member_of(trio, agent) is not member
    member.heal()
    assert trio.get(REGISTRATION)


def test_all_members_down(trio: Cluster, make_agent: Make) -> None:
    agent = started(make_agent, trio)
    running = agent.worker("quiet")["pid"]
    trio.kill()
    wait_store(agent, connected=False)
    assert quiet_for(agent, 60 if LONG else 20) < SPINNING
    assert agent.worker("quiet")["pid"] == running
    assert any("etcd is not reachable" in problem for problem in problems(agent))
    for member in trio.members:
        member.start()
    since = put_when_possible(trio, STOP_KEY, "stop")
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    until(lambda: trio.get(REGISTRATION), "it is registered again", 120)
    until(lambda: not problems(agent), "nothing is wrong any more", 60)


def test_restart_while_all_members_are_down_obeys_what_was_last_known(trio: Cluster, make_agent: Make) -> None:
    agent = started(make_agent, trio)
    until((agent.folder / "state" / "cache.json").exists, "what was read is kept")
    since = put_when_possible(trio, ALL_KILL, "on")
    acted(agent, since, state="killed")
    local = agent.folder / "state" / "local.json"
    until(lambda: local.exists() and ALL_KILL in local.read_text(), "the killswitch is kept")
    trio.kill()
    agent.kill()
    agent.start()
    agent.wait_worker("quiet", state="killed")
    wait_store(agent, connected=False)
    assert not agent.pids()
    trio.start()
    since = put_when_possible(trio, ALL_KILL, "off")
    acted(agent, since, QUORUM_SECONDS, state="running")


def test_older_snapshot_restored(make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path) -> None:
    cluster = make_etcd(3)
    agent = started(make_agent, cluster)
    saved = cluster.snapshot(tmp_path / "saved")
    for i in range(30):
        cluster.put("/hids/server/config/web1/worker/quiet/log_level", "debug" if i % 2 else "info")
    since = put_when_possible(cluster, ALL_KILL, "on")
    acted(agent, since, state="killed")
    newest = store_of(agent)["revision"]
    cluster.restore(saved)
    assert cluster.revision() < newest
    since = put_when_possible(cluster, STOP_KEY, "stop")
    until(lambda: agent.worker("quiet")["desired"] == "stop", "the older history is followed", 60)
    in_time("the older history is followed", since, QUORUM_SECONDS)
    assert any("restored" in problem for problem in problems(agent))
    # The killswitch came after the snapshot: that it is absent releases nothing.
    assert agent.worker("quiet")["state"] in ("killed", "stopped")
    assert agent.client.call("status")["agent"]["killswitch"]["engaged"]
    cluster.put(STOP_KEY, "start")
    since = put_when_possible(cluster, ALL_KILL, "off")
    acted(agent, since, state="running")
