"""The harness itself: a cluster that does not break as it says would let other tests pass for nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.etcd.cluster import Cluster, EtcdctlError, until


def test_one_member_serves(etcd: Cluster) -> None:
    etcd.put("/harness/a", "one")
    etcd.put("/harness/b", "- two")
    assert etcd.get_prefix("/harness/") == {"/harness/a": "one", "/harness/b": "- two"}
    assert etcd.get("/harness/none") is None
    assert etcd.delete("/harness/", prefix=True) == 2


def test_killed_member_keeps_its_data(etcd: Cluster) -> None:
    etcd.put("/harness/kept", "x")
    etcd.members[0].restart()
    assert etcd.get("/harness/kept") == "x"


def test_stopped_member_hangs_and_goes_on(etcd: Cluster) -> None:
    member = etcd.members[0]
    member.stop()
    assert not member.healthy()
    member.cont()
    member.wait_healthy()


def test_compacted_revisions_are_gone(etcd: Cluster) -> None:
    etcd.put("/harness/c", "1")
    old = etcd.revision()
    etcd.put("/harness/c", "2")
    etcd.compact()
    with pytest.raises(EtcdctlError, match="compacted"):
        etcd.etcdctl("get", "/harness/c", "--rev", str(old))


def test_snapshot_brings_back_an_older_history(make_etcd: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = make_etcd(3)
    cluster.put("/a", "old")
    saved = cluster.snapshot(tmp_path / "saved")
    for i in range(10):
        cluster.put("/a", f"new {i}")
    before = cluster.revision()
    cluster.restore(saved)
    assert cluster.get("/a") == "old"
    assert cluster.revision() < before


@pytest.mark.parametrize("debian", [False, True])
def test_full_database_refuses_writes_until_there_is_room(make_etcd: Callable[..., Cluster], debian: bool) -> None:
    cluster = make_etcd(quota_bytes=4 << 20, debian=debian)
    cluster.put("/a", "1")
    cluster.fill_up()
    with pytest.raises(EtcdctlError, match="space exceeded"):
        cluster.put("/a", "2")
    assert cluster.get("/a") == "1"
    cluster.make_room()
    cluster.put("/a", "3")
    assert cluster.get("/a") == "3"


def test_auth_refuses_strangers(make_etcd: Callable[..., Cluster]) -> None:
    cluster = make_etcd(auth=True)
    cluster.put("/a", "1")
    with pytest.raises(EtcdctlError, match="user name is empty"):
        cluster.etcdctl("get", "/a", user="")
    cluster.disable_auth()
    assert cluster.etcdctl("get", "/a", user="")


def test_killed_leader_is_replaced(etcd_cluster: Cluster) -> None:
    leader = etcd_cluster.leader()
    leader.kill()
    assert etcd_cluster.leader() is not leader
    leader.restart()
    etcd_cluster.wait_healthy()


def test_isolated_member_answers_clients_and_has_no_leader(etcd_cluster: Cluster) -> None:
    member = etcd_cluster.leader()
    others = [other for other in etcd_cluster.members if other is not member]
    etcd_cluster.put("/harness/part", "before")
    member.isolate()
    try:
        until(lambda: member.status()["leader"] == 0, "the isolated member notices")
        assert not member.healthy()
        assert etcd_cluster.leader() in others
        etcd_cluster.etcdctl("put", "/harness/part", "after", endpoints=[other.endpoint for other in others])
        stale = etcd_cluster.etcdctl(
            "get", "--consistency=s", "--print-value-only", "/harness/part", endpoints=[member.endpoint]
        )
        assert stale.strip() == "before"
    finally:
        member.heal()
    etcd_cluster.wait_healthy()
    until(lambda: member.status()["leader"] != 0, "the healed member follows")


def test_no_server_outlives_its_test_process(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.etcd.cluster import Cluster\n"
        f"cluster = Cluster(Path({str(tmp_path)!r}))\n"
        "print(cluster.members[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert psutil.pid_exists(server)
        process.kill()
    until(lambda: not psutil.pid_exists(server), "the server is gone")
