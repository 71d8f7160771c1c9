"""What may break between an agent and its cluster, each on real servers; a stop put during the fault always acts.

``GARRISON_LONG_TESTS=1`` runs the long forms: outages of a minute, and the promised times checked.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import needs_cgroups, until
from tests.e2e._etcd_agent import (
    AT_ONCE,
    LONG,
    QUIET,
    REGISTRATION,
    STATUS,
    STOP_KEY,
    Make,
    acted,
    cpu_seconds,
    started,
    store_of,
    store_toml,
    wait_store,
)
from tests.etcd.certificates import tls_of
from tests.etcd.cluster import Cluster, EtcdctlError, Member, free_port
from tests.etcd.wires import Wires
from tests.integration._fleet_support import fleet

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


def member_of(cluster: Cluster, agent: Any) -> Member:
    """Return the member that the agent is connected to."""
    endpoint = wait_store(agent, connected=True)["endpoint"]
    return next(member for member in cluster.members if member.endpoint in endpoint)


def put_elsewhere(cluster: Cluster, broken: Member, key: str, value: str) -> float:
    """Put a key through the other members as soon as they have a leader; return when that was done."""
    others = [member.endpoint for member in cluster.members if member is not broken]

    def put() -> bool:
        try:
            cluster.etcdctl("put", key, stdin=value, endpoints=others, timeout=5)
        except EtcdctlError:
            return False
        return True

    until(put, "the others take a write", 60)
    return time.monotonic()


def test_leader_killed(trio: Cluster, make_agent: Make, record_property: Callable[..., None]) -> None:
    agent = started(make_agent, trio)
    leader = trio.leader()
    leader.kill()
    since = put_elsewhere(trio, leader, STOP_KEY, "stop")
    record_property("seconds", acted(agent, since, state="stopped"))
    leader.start()
    trio.put(STOP_KEY, "start")
    acted(agent, time.monotonic(), state="running")


def test_member_hangs(trio: Cluster, make_agent: Make, record_property: Callable[..., None]) -> None:
    agent = started(make_agent, trio)
    member = member_of(trio, agent)
    member.stop()
    since = put_elsewhere(trio, member, STOP_KEY, "stop")
    record_property("seconds", acted(agent, since, state="stopped"))
    assert member_of(trio, agent) is not member


def test_member_cut_off_from_its_cluster_while_the_agent_stays_connected(
    trio: Cluster, make_agent: Make, record_property: Callable[..., None]
) -> None:
    agent = started(make_agent, trio)
    member = member_of(trio, agent)
    member.isolate()
    since = put_elsewhere(trio, member, STOP_KEY, "stop")
    record_property("seconds", acted(agent, since, state="stopped"))
    assert member_of(trio, agent) is not member
    assert trio.get_prefix(REGISTRATION)


def test_all_members_down(trio: Cluster, make_agent: Make, record_property: Callable[..., None]) -> None:
    agent = started(make_agent, trio)
    running = agent.worker("quiet")["pid"]
    trio.kill()
    wait_store(agent, connected=False)
    before, began = cpu_seconds(agent.pid), time.monotonic()
    time.sleep(60 if LONG else 5)
    share = (cpu_seconds(agent.pid) - before) / (time.monotonic() - began)
    record_property("cpu_percent", 100 * share)
    if LONG:
        assert share < 0.01
    assert agent.worker("quiet")["pid"] == running
    assert any("etcd" in problem or "connected" in problem for problem in _problems(agent))
    trio.start()
    trio.put(STOP_KEY, "stop")
    record_property("seconds", acted(agent, time.monotonic(), state="stopped"))
    until(lambda: trio.get(REGISTRATION), "it is registered again", 60)


def test_restart_while_all_members_are_down_obeys_what_was_last_known(trio: Cluster, make_agent: Make) -> None:
    agent = started(make_agent, trio)
    trio.put(ALL_KILL, "on")
    acted(agent, time.monotonic(), state="killed")
    trio.kill()
    agent.stop()
    agent.start()
    agent.wait_worker("quiet", state="killed")
    assert not agent.pids()
    trio.start()
    trio.put(ALL_KILL, "off")
    until(lambda: not agent.client.call("status")["agent"]["killswitch"]["engaged"], "it is released", 120)
    acted(agent, time.monotonic(), state="running")


def test_silent_network_and_a_compaction_meanwhile(
    etcd: Cluster, make_agent: Make, record_property: Callable[..., None]
) -> None:
    etcd.delete("/hids/", prefix=True)
    wires = Wires()
    port = free_port()
    try:
        wires.add("agent", port, etcd.members[0].port)
        agent = started(make_agent, etcd, endpoints=[f"127.0.0.1:{port}"])
        # Not refused: swallowed. No error comes back, the connection just stays silent.
        wires.cut("agent")
        for i in range(50):
            etcd.put("/hids/server/config/web1/worker/quiet/log_level", "debug" if i % 2 else "info")
        etcd.put(STOP_KEY, "stop")
        etcd.compact()
        wait_store(agent, connected=False)
        assert agent.worker("quiet")["state"] == "running"
        since = time.monotonic()
        wires.heal("agent")
        record_property("seconds", acted(agent, since, state="stopped"))
    finally:
        wires.close()


def test_older_snapshot_restored(
    make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    cluster = make_etcd(3)
    agent = started(make_agent, cluster)
    saved = cluster.snapshot(tmp_path / "saved")
    for i in range(30):
        cluster.put("/hids/server/config/web1/worker/quiet/log_level", "debug" if i % 2 else "info")
    cluster.put(ALL_KILL, "on")
    acted(agent, time.monotonic(), state="killed")
    newest = store_of(agent)["revision"]
    cluster.restore(saved)
    assert cluster.revision() < newest
    since = time.monotonic()
    cluster.put(STOP_KEY, "stop")
    until(lambda: agent.worker("quiet")["desired"] == "stop", "the older history is followed", 60)
    record_property("seconds", time.monotonic() - since)
    # The killswitch came after the snapshot: that it is absent releases nothing.
    assert agent.worker("quiet")["state"] in ("killed", "stopped")
    assert agent.client.call("status")["agent"]["killswitch"]["engaged"]
    cluster.put(STOP_KEY, "start")
    cluster.put(ALL_KILL, "off")
    until(lambda: not agent.client.call("status")["agent"]["killswitch"]["engaged"], "it is released", 120)
    acted(agent, time.monotonic(), state="running")


def test_database_full(
    make_etcd: Callable[..., Cluster], make_agent: Make, record_property: Callable[..., None]
) -> None:
    cluster = make_etcd(quota_bytes=16 << 20)
    cluster.put("/hids/server/config/@all/worker/quiet", "stop")
    cluster.put(STOP_KEY, "start")
    agent = started(make_agent, cluster)
    cluster.fill_up()
    # Nothing can be written, and a deletion can: the key of all hosts is what is left.
    cluster.delete(STOP_KEY)
    record_property("seconds", acted(agent, time.monotonic(), state="stopped"))
    # An agent that starts now cannot register, and obeys.
    agent.kill()
    agent.start()
    agent.wait_worker("quiet", desired="stop", state="stopped")
    until(lambda: cluster.get(REGISTRATION) is None or _problems(agent), "the agent says what is wrong", 60)
    cluster.make_room()
    cluster.put(STOP_KEY, "start")
    acted(agent, time.monotonic(), state="running")
    until(lambda: cluster.get(REGISTRATION) and not _problems(agent), "it is registered again", 120)


def test_write_right_taken_away(
    make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    pki = tmp_path / "pki"
    fleet("init", pki, "--endpoints", "127.0.0.1:1", "--server", "127.0.0.1", "--yes", code=69)
    cluster = make_etcd(tls=tls_of(pki))
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    agent = started(make_agent, cluster, tls=tls_of(pki, "agent"))
    until(lambda: cluster.get(STATUS), "the status is written, too", 60)
    root = "root:" + (pki / "root.password").read_text().strip()
    for prefix in ("/hids/agent/master/", "/hids/agent/status/", "/hids/alivehost/"):
        cluster.etcdctl("role", "revoke-permission", "garrison-agent", "--prefix", prefix, user=root)
    since = time.monotonic()
    cluster.put(STOP_KEY, "stop")
    record_property("seconds", acted(agent, since, state="stopped"))
    cluster.delete(REGISTRATION)
    until(lambda: any("permission" in problem for problem in _problems(agent)), "the agent says what it lacks", 120)
    assert store_of(agent)["connected"]
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    until(lambda: cluster.get(REGISTRATION), "it is registered again", 120)
    shown = fleet("hosts", "--endpoints", cluster.endpoints[0], *_reader(pki), code=None)
    assert "web1" in shown.stdout


def test_read_right_taken_away_is_no_absence(
    make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path
) -> None:
    pki = tmp_path / "pki"
    fleet("init", pki, "--endpoints", "127.0.0.1:1", "--server", "127.0.0.1", "--yes", code=69)
    cluster = make_etcd(tls=tls_of(pki))
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    cluster.put(ALL_KILL, "on")
    agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(cluster, tls=tls_of(pki, "agent")))
    agent.start()
    agent.wait_worker("quiet", state="killed")
    root = "root:" + (pki / "root.password").read_text().strip()
    cluster.etcdctl("role", "revoke-permission", "garrison-agent", "--prefix", "/hids/server/config/", user=root)
    cluster.members[0].restart()  # ends the watch, which was allowed when it began
    wait_store(agent, connected=False)
    assert agent.worker("quiet")["state"] == "killed"
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    cluster.put(ALL_KILL, "off")
    acted(agent, time.monotonic(), state="running")


def test_certificate_rotated(make_etcd: Callable[..., Cluster], make_agent: Make, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    fleet("init", pki, "--endpoints", "127.0.0.1:1", "--server", "127.0.0.1", "--yes", code=69)
    cluster = make_etcd(tls=tls_of(pki))
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    agent = started(make_agent, cluster, tls=tls_of(pki, "agent"))
    pid = agent.pid
    for name in ("server", "agent"):
        for kind in ("crt", "key"):
            (pki / f"{name}.{kind}").rename(tmp_path / f"old-{name}.{kind}")
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    cluster.members[0].restart()
    cluster.put(STOP_KEY, "stop")
    acted(agent, time.monotonic(), state="stopped")
    assert agent.pid == pid


def test_name_that_does_not_resolve_among_the_endpoints(
    etcd: Cluster, make_agent: Make, record_property: Callable[..., None]
) -> None:
    etcd.delete("/hids/", prefix=True)
    names = ["no-such-host.invalid:2379", "neither.invalid", *etcd.endpoints]
    agent = started(make_agent, etcd, endpoints=names)
    etcd.kill()
    wait_store(agent, connected=False)
    etcd.start()
    etcd.put(STOP_KEY, "stop")
    record_property("seconds", acted(agent, time.monotonic(), state="stopped"))


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None,
    reason="needs root, ip and nsenter for network namespaces",
)


class Link:
    """Two network namespaces and a cable between them."""

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.near, self.far = f"gt{mark}a", f"gt{mark}b"
        self.near_ip, self.far_ip = "10.213.0.1", "10.213.0.2"

    def make(self) -> None:
        for name in (self.near, self.far):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self.near, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", self.far)
        for name, address in ((self.near, self.near_ip), (self.far, self.far_ip)):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", "v0")
            _ip("-n", name, "link", "set", "v0", "up")

    def drop(self) -> None:
        """Drop every packet from the far side, without a word to anybody."""
        _ip("-n", self.far, "route", "add", "blackhole", f"{self.near_ip}/32")
        _ip("-n", self.far, "route", "flush", "cache")

    def mend(self) -> None:
        _ip("-n", self.far, "route", "del", "blackhole", f"{self.near_ip}/32")

    def remove(self) -> None:
        for name in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if "Operation not" in done.stderr or "not supported" in done.stderr:
            pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr}")


@needs_namespaces
def test_packets_dropped_not_refused(
    make_etcd: Callable[..., Cluster], make_agent: Make, record_property: Callable[..., None]
) -> None:
    link = Link()
    try:
        link.make()
        cluster = make_etcd(netns=link.far, ip=link.far_ip)
        agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(cluster))
        garrisond = [str(Path(sys.executable).parent / "garrisond"), "--config", str(agent.config)]
        agent.start(command=["nsenter", f"--net=/run/netns/{link.near}", "--", *garrisond])
        agent.wait_worker("quiet", state="running")
        until(lambda: cluster.get(REGISTRATION), "the registration is there", 60)
        link.drop()
        cluster.put(STOP_KEY, "stop")
        wait_store(agent, connected=False)
        time.sleep(60 if LONG else 5)
        assert agent.worker("quiet")["state"] == "running"
        link.mend()
        record_property("seconds", acted(agent, time.monotonic(), state="stopped"))
    finally:
        link.remove()


def _problems(agent: Any) -> list[str]:
    return agent.client.call("status")["agent"]["problems"]


def _reader(pki: Path) -> list[str]:
    return [
        *("--ca-cert", str(pki / "ca.crt")),
        *("--cert", str(pki / "reader.crt"), "--key", str(pki / "reader.key")),
    ]
