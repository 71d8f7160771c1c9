"""The whole agent on a cluster that `garrison fleet init` has set up, with the rights that it gives and no others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._etcd_agent import AT_ONCE, QUIET, REGISTRATION, STATUS, STOP_KEY, Make, acted, store_toml
from tests.etcd.certificates import tls_of
from tests.etcd.cluster import Cluster
from tests.integration._fleet_support import fleet

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

GROUP = 'groups = ["web"]\nalivehost_key = true\n'


RELEASES = pytest.mark.parametrize("debian", [False, True], ids=["wheel", "debian-3.4"])


def secured(make_etcd: Callable[..., Cluster], folder: Path, *options: str, debian: bool = False) -> Cluster:
    """Return a cluster with certificates, users and roles."""
    fleet("init", folder, "--endpoints", "127.0.0.1:1", "--server", "127.0.0.1", *options, "--yes", code=69)
    cluster = make_etcd(tls=tls_of(folder), debian=debian)
    fleet("init", folder, "--endpoints", cluster.endpoints[0], *options, "--yes")
    return cluster


def does_its_work(agent: RunningAgent, cluster: Cluster) -> None:
    """Check everything that an agent reads and writes."""
    agent.start()
    agent.wait_worker("quiet", state="running")
    for key in (REGISTRATION, STATUS):
        until(lambda key=key: cluster.get(key), f"{key} is written", 60)
    until(lambda: cluster.get_prefix("/hids/alivehost/web1--"), "the alivehost key is written", 60)
    cluster.put("/hids/server/config/@group/web/worker/quiet", "stop")
    acted(agent, time.monotonic(), state="stopped")
    cluster.put(STOP_KEY, "start")
    acted(agent, time.monotonic(), state="running")
    cluster.put("/hids/agent/config/@all/plugin/quiet/settings", '{"greeting": "from etcd"}')
    applied = cluster.revision()

    def is_applied() -> bool:
        found = agent.worker("quiet")["config"]
        return found["revision"] == applied and found["status"] == "applied"

    until(is_applied, "the settings are applied", 60)
    cluster.put("/hids/server/config/@all/killswitch", "on")
    acted(agent, time.monotonic(), state="killed")
    cluster.put("/hids/server/config/@all/killswitch", "off")
    acted(agent, time.monotonic(), state="running")
    assert agent.client.call("status")["agent"]["problems"] == []
    assert agent.stop() == 0
    assert cluster.get(REGISTRATION) is None


@RELEASES
def test_agent_with_the_shared_certificate(
    make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path, *, debian: bool
) -> None:
    cluster = secured(make_etcd, tmp_path / "pki", debian=debian)
    more = store_toml(cluster, tls=tls_of(tmp_path / "pki", "agent"))
    does_its_work(make_agent(QUIET, agent=AT_ONCE + GROUP, more=more), cluster)


def test_agent_with_a_user_of_its_own(make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path) -> None:
    cluster = secured(make_etcd, tmp_path / "pki", "--per-host", "web1", "--per-host", "web2")
    more = store_toml(cluster, tls=tls_of(tmp_path / "pki", "hosts/web1"))
    does_its_work(make_agent(QUIET, agent=AT_ONCE + GROUP, more=more), cluster)


@RELEASES
def test_agent_with_a_password(
    make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path, *, debian: bool
) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(debian=debian)
    fleet("init", folder, "--endpoints", cluster.endpoints[0], "--no-tls", "--yes")
    cluster.user = "root:" + (folder / "root.password").read_text().strip()
    more = store_toml(cluster, user="garrison-agent", password_file=folder / "garrison-agent.password")
    does_its_work(make_agent(QUIET, agent=AT_ONCE + GROUP, more=more), cluster)


def test_agent_with_tls_and_a_password(make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path) -> None:
    """The password says who asks, not the certificate, whose user may only read; `doctor` finds nothing wrong."""
    pki = tmp_path / "pki"
    cluster = secured(make_etcd, pki, "--passwords")
    more = store_toml(
        cluster, tls=tls_of(pki, "reader"), user="garrison-agent", password_file=pki / "garrison-agent.password"
    )
    agent = make_agent(QUIET, agent=AT_ONCE + GROUP, more=more)
    does_its_work(agent, cluster)
    done = agent.garrison("doctor", "--json")
    found = [one for one in json.loads(done.stdout)["findings"] if one["group"] == "etcd"]
    assert [one["status"] for one in found if one["name"] == "etcd rights"] == ["ok"]
    assert {one["name"] for one in found if one["status"] != "ok"} <= {"etcd version"}


def test_fleet_hosts_sees_a_real_agent(etcd: Cluster, make_agent: Make) -> None:
    etcd.delete("/hids/", prefix=True)
    agent = make_agent(QUIET, agent=AT_ONCE + GROUP, more=store_toml(etcd))
    agent.start()
    agent.wait_worker("quiet", state="running")

    def seen() -> dict[str, object]:
        lines = fleet("hosts", "--endpoints", etcd.endpoints[0], "--json").stdout.splitlines()
        return {host["host"]: host for host in map(json.loads, lines)}["web1"] if lines else {}

    until(lambda: seen().get("state") == "online", "it is online", 60)
    assert seen()["groups"] == ["web"]
    etcd.put("/hids/server/config/web1/killswitch", "on")
    until(lambda: seen()["marks"] == ["killed", "online"], "it has confirmed the killswitch", 150)
    assert fleet("hosts", "--endpoints", etcd.endpoints[0], code=3)
    agent.kill()
