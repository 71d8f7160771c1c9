"""Lease, registration and status on a real etcd: one host, restarts, doubles, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.supervisor.presence import presence as thread
from garrison.supervisor.presence import publisher, retries
from garrison.supervisor.presence.lease import LeaseMemory
from garrison.supervisor.stores.etcd.connection import Access
from garrison.supervisor.stores.etcd.credentials import Files
from tests.etcd.cluster import Cluster, until
from tests.integration._presence_support import HOST, OneHost, counts, hosts, status

_numbers = itertools.count()


@pytest.fixture
def prefix() -> str:
    return f"/test{next(_numbers)}"


@pytest.fixture
def host() -> Iterator[Callable[..., OneHost]]:
    with hosts() as make:
        yield make


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the long waits, which are policy and are tested as such."""
    monkeypatch.setattr(retries, "DUPLICATE_SECONDS", (0.2, 0.5))
    monkeypatch.setattr(retries, "REFUSED_SECONDS", (0.2, 0.5))
    monkeypatch.setattr(thread, "REGRANT_SPREAD_SECONDS", 0.5)
    for name in ("OPERATOR_GAP_SECONDS", "FLEET_GAP_SECONDS", "FLEET_SPREAD_SECONDS"):
        monkeypatch.setattr(publisher, name, 0.5)
    for name in ("ITSELF_GAP_SECONDS", "ITSELF_SPREAD_SECONDS"):
        monkeypatch.setattr(publisher, name, 0.5)


# One host


def test_a_host_registers_and_shows_its_status(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    one = host(etcd, prefix).begin(offered=status()).wait_registered()
    registration = one.read(one.key)
    assert registration is not None
    assert registration.keys() >= {
        "version",
        "boot_id",
        "machine_id",
        "ip_addresses",
        "kernel",
        "cgroup_mode",
        "started",
    }
    assert registration["groups"] == ["web"]
    shown = one.wait(lambda: one.read(one.status_key), "a status")
    assert shown["workers"][0]["state"] == "running"
    leases = {(one.facts(key) or {})["lease"] for key in (one.key, one.status_key)}
    assert leases == {int(one.presence.status().lease_id, 16)}
    assert one.wait_event("registered")["how"] == "create"


def test_an_orderly_stop_removes_everything_at_once(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    one = host(etcd, prefix, alive_key=True, seconds=60).begin(offered=status()).wait_registered()
    one.wait(lambda: len(etcd.get_prefix(prefix)) == 3, "three keys")
    one.end()
    assert etcd.get_prefix(prefix) == {}
    assert one.saved[-1] == LeaseMemory()


def test_a_stop_without_an_answer_is_bounded(make_etcd: Callable[..., Cluster], host: Callable[..., OneHost]) -> None:
    cluster = make_etcd()
    one = host(cluster, "/hids", seconds=60).begin().wait_registered()
    cluster.members[0].stop()
    try:
        begin = time.monotonic()
        assert not one.presence.stop(0.5)
        assert time.monotonic() - begin < 9  # less than any time limit of a call
    finally:
        cluster.members[0].cont()


def test_a_restart_within_the_lease_shows_no_gap(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    first = host(etcd, prefix, seconds=60).begin(offered=status()).wait_registered()
    before = first.facts(first.key)
    on_disk = first.crash()
    second = host(etcd, prefix, seconds=60, remembered=on_disk).begin(offered=status()).wait_registered()
    after = second.facts(second.key)
    assert before is not None
    assert after is not None
    assert after["create_revision"] == before["create_revision"]  # it was never gone
    assert after["lease"] == before["lease"]
    assert after["version"] == 2
    assert second.wait_event("registered")["how"] == "take over"


def test_a_killed_host_is_gone_when_its_lease_is(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    one = host(etcd, prefix, seconds=2).begin(offered=status()).wait_registered()
    one.crash()
    one.wait(lambda: etcd.get_prefix(prefix) == {}, "gone")


def test_a_restart_with_another_lease_time_gets_another_lease(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost]
) -> None:
    first = host(etcd, prefix, seconds=60).begin().wait_registered()
    on_disk = first.crash()
    second = host(etcd, prefix, seconds=50, remembered=on_disk).begin().wait_registered()
    lease = (second.facts(second.key) or {})["lease"]
    assert lease != on_disk.lease_id
    assert json.loads(etcd.etcdctl("lease", "timetolive", f"{lease:x}", "-w", "json"))["granted-ttl"] == 50


def test_the_lease_of_a_copied_disk_is_not_used(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    first = host(etcd, prefix, seconds=60).begin().wait_registered()
    copy = host(etcd, prefix, seconds=60, machine={"boot_id": "b2"}, remembered=first.saved[-1]).begin()
    copy.wait(lambda: copy.presence.status().lease_id, "a lease of its own")
    assert copy.presence.status().lease_id != first.presence.status().lease_id


def test_a_lease_is_renewed(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    one = host(etcd, prefix, seconds=2).begin().wait_registered()
    first = one.facts(one.key)
    time.sleep(6)  # three times the lease
    assert one.facts(one.key) == first
    assert one.presence.status().registered


def test_a_lease_that_ended_is_noticed_and_replaced(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None
) -> None:
    one = host(etcd, prefix, seconds=3).begin(offered=status()).wait_registered()
    etcd.etcdctl("lease", "revoke", one.presence.status().lease_id)
    one.wait_event("registration-lost")
    one.wait(lambda: one.read(one.key) and one.read(one.status_key), "both keys again")
    one.wait_registered()
    assert [name for name, _ in one.events] == ["registered", "registration-lost", "registered"]


def test_a_cluster_that_lost_everything_gets_a_new_registration(
    make_etcd: Callable[..., Cluster], host: Callable[..., OneHost], hurry: None
) -> None:
    cluster = make_etcd()
    one = host(cluster, "/hids", seconds=3).begin(offered=status()).wait_registered()
    one.presence.on_session_end()
    cluster.empty()
    one.reconnect()
    one.wait_event("registration-lost")
    one.wait_registered()
    one.wait(lambda: one.read(one.status_key), "the status")


def test_a_stray_delete_is_put_right(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "VERIFY_SECONDS", 0.5)
    one = host(etcd, prefix).begin(offered=status()).wait_registered()
    etcd.delete(one.key)
    one.wait(one.holds, "registered again")


def test_a_status_is_written_when_it_changes_and_only_then(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None
) -> None:
    one = host(etcd, prefix, seconds=60).begin(offered=status()).wait_registered()
    one.wait(lambda: one.read(one.status_key), "a status")
    for _ in range(100):
        one.presence.offer(status())
    one.presence.offer(status("stopped", "stop", f"{prefix}/server/config/{HOST}/worker/process"))
    one.wait(lambda: (one.read(one.status_key) or {})["workers"][0]["state"] == "stopped", "the new status")
    assert (one.facts(one.status_key) or {})["version"] == 2
    assert (one.facts(one.key) or {})["version"] == 1


def test_the_registration_follows_the_groups(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None
) -> None:
    one = host(etcd, prefix, seconds=60).begin(offered=status()).wait_registered()
    moved = status()
    one.presence.offer(type(moved)(host=HOST, workers=moved.workers, groups=("db",), groups_by="default"))
    one.wait(lambda: (one.read(one.key) or {})["groups"] == ["db"], "the new groups")
    assert one.presence.status().registered
    one.presence.offer(status("tripped"))  # the condition of the next write knows of the last one
    one.wait(lambda: (one.read(one.status_key) or {})["workers"][0]["state"] == "tripped", "a write after that")


def test_the_key_of_the_older_layout(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    one = host(etcd, prefix, seconds=2, alive_key=True).begin().wait_registered()
    found = one.wait(lambda: etcd.get_prefix(f"{prefix}/alivehost/"), "the key")
    ((key, value),) = found.items()
    assert re.fullmatch(rf"{prefix}/alivehost/{HOST}--[0-9a-f.:]+", key)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", value)
    assert abs(time.mktime(time.strptime(value, "%Y-%m-%d %H:%M:%S")) - time.time()) < 120
    one.wait(lambda: etcd.get_prefix(f"{prefix}/alivehost/") not in ({}, found), "renewed with the lease")


# Doubles


def test_another_machine_of_the_same_name_is_a_duplicate_and_writes_nothing(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None
) -> None:
    first = host(etcd, prefix).begin(offered=status()).wait_registered()
    before = etcd.get_prefix(prefix)
    second = host(etcd, prefix, machine={"machine_id": "m2"}, alive_key=True).begin(offered=status("tripped"))
    text = second.wait_problem("duplicate host")
    assert "agent.hostname" in text
    assert second.wait_event("duplicate-host")["reason"] == text
    time.sleep(2)
    assert etcd.get_prefix(prefix) == before
    assert [name for name, _ in second.events] == ["duplicate-host"]
    first.end()
    second.wait_registered()
    second.wait_well()


def test_a_power_cut_is_waited_for_and_not_called_a_duplicate(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost]
) -> None:
    first = host(etcd, prefix, seconds=4).begin().wait_registered()
    first.crash()
    second = host(etcd, prefix, seconds=4, machine={"boot_id": "b2"}).begin()
    second.wait_problem("earlier boot")
    second.wait_registered()
    assert "duplicate-host" not in [name for name, _ in second.events]
    second.wait_well()


def test_a_cloned_machine_is_a_duplicate(etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None) -> None:
    first = host(etcd, prefix, seconds=3).begin().wait_registered()
    second = host(etcd, prefix, seconds=3, machine={"boot_id": "b2"}).begin()
    second.wait_event("duplicate-host")
    assert first.holds()
    assert (first.facts(first.key) or {})["version"] == 1


def test_two_agents_of_one_machine_do_not_take_over_from_each_other_for_ever(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None
) -> None:
    first = host(etcd, prefix).begin(offered=status()).wait_registered()
    second = host(etcd, prefix).begin(offered=status()).wait_registered()
    first.presence.offer(status("tripped"))  # its next write tells it
    first.wait_event("duplicate-host")
    time.sleep(3)
    assert second.holds()
    assert (second.facts(second.key) or {})["version"] == 2
    assert [name for name, _ in first.events] == ["registered", "registration-lost", "duplicate-host"]
    second.end()
    first.wait_registered()


def test_a_value_that_is_no_registration_is_not_overwritten(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None
) -> None:
    etcd.put(f"{prefix}/agent/master/{HOST}", "garbage")
    one = host(etcd, prefix).begin()
    assert "delete the key" in one.wait_problem("duplicate host")
    assert etcd.get(one.key) == "garbage"
    etcd.delete(one.key)
    one.wait_registered()


# What is refused


def test_a_full_database_is_reported_and_a_registered_host_stays(
    make_etcd: Callable[..., Cluster], host: Callable[..., OneHost], hurry: None
) -> None:
    cluster = make_etcd(quota_bytes=16 * 1024 * 1024)
    one = host(cluster, "/hids", seconds=3).begin(offered=status()).wait_registered()
    one.wait(lambda: one.read(one.status_key), "a status")
    cluster.fill_up()
    one.presence.offer(status("tripped"))
    assert "alarm disarm" in one.wait_problem("space")
    late = host(cluster, "/late", seconds=3).begin(offered=status())
    late.wait_problem("space")
    time.sleep(5)  # longer than the lease: renewing needs no space
    assert one.holds()
    cluster.make_room()
    one.wait(lambda: (one.read(one.status_key) or {})["workers"][0]["state"] == "tripped", "the status")
    late.wait_registered()
    one.wait_well()
    late.wait_well()


def test_a_missing_right_to_write_is_reported_until_it_is_there(
    make_etcd: Callable[..., Cluster], tmp_path: Path, host: Callable[..., OneHost], hurry: None
) -> None:
    cluster = make_etcd(auth=True)
    cluster.etcdctl("role", "add", "agent")
    cluster.etcdctl("role", "grant-permission", "agent", "read", "--prefix", "--", "/hids/")
    cluster.etcdctl("user", "add", "agent:secret")
    cluster.etcdctl("user", "grant-role", "agent", "agent")
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    access = Access(username="agent", files=Files(password=str(password)))
    one = host(cluster, "/hids", seconds=5, access=access).begin(offered=status())
    assert "role" in one.wait_problem("permission denied")
    assert one.connection is not None
    assert one.connection.get("/hids/server/config/@all/killswitch")[0] is None  # what it obeys can still be read
    cluster.etcdctl("role", "grant-permission", "agent", "readwrite", "--prefix", "--", "/hids/agent/")
    one.wait_registered()
    one.wait_well()
    cluster.etcdctl("role", "revoke-permission", "agent", "--prefix", "--", "/hids/agent/")
    one.presence.offer(status("tripped"))
    one.wait_problem("permission denied")
    cluster.etcdctl("role", "grant-permission", "agent", "readwrite", "--prefix", "--", "/hids/agent/")
    one.wait(lambda: (one.read(one.status_key) or {})["workers"][0]["state"] == "tripped", "the status")
    one.wait_well()


# Sessions


def test_a_new_session_changes_nothing_in_etcd(
    etcd: Cluster, prefix: str, host: Callable[..., OneHost], hurry: None
) -> None:
    one = host(etcd, prefix, seconds=60).begin(offered=status()).wait_registered()
    one.wait(lambda: one.read(one.status_key), "a status")
    before = one.facts(one.key), one.facts(one.status_key)
    for _ in range(5):
        one.reconnect()
        one.wait(lambda: one.presence._registrar.registered, "looked at")
    assert (one.facts(one.key), one.facts(one.status_key)) == before


def test_an_outage_shorter_than_the_lease_is_survived(
    make_etcd: Callable[..., Cluster], host: Callable[..., OneHost], hurry: None
) -> None:
    cluster = make_etcd()
    one = host(cluster, "/hids", seconds=30).begin(offered=status()).wait_registered()
    before = one.facts(one.key)
    cluster.kill()
    one.presence.offer(status("tripped"))
    one.wait_problem("etcd")
    cluster.start()
    one.reconnect()
    one.wait(lambda: (one.read(one.status_key) or {})["workers"][0]["state"] == "tripped", "the status")
    one.wait_well()
    assert one.facts(one.key) == before


def test_many_sessions_leave_nothing_behind(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    one = host(etcd, prefix, seconds=60).begin(offered=status()).wait_registered()
    after_ten = (0, 0)
    for number in range(150):
        one.reconnect()
        if number % 3 == 0:
            one.wait(lambda: one.presence._registrar.registered, "looked at")
        if number == 10:
            after_ten = counts()
    one.wait(lambda: one.presence._registrar.registered, "looked at")
    until(lambda: counts() <= after_ten, f"not more than {after_ten} threads and descriptors: {counts()}")
    assert len(etcd.etcdctl("lease", "list").split()) < 20


def test_many_starts_and_stops_leave_nothing_behind(etcd: Cluster, prefix: str, host: Callable[..., OneHost]) -> None:
    def turn() -> None:
        with hosts() as make:
            make(etcd, prefix, seconds=60).begin(offered=status()).wait_registered()

    leases = etcd.etcdctl("lease", "list")
    for _ in range(3):
        turn()
    before = counts()
    for _ in range(30):
        turn()
    until(lambda: counts() <= before, "not more threads and descriptors than before")
    assert etcd.get_prefix(prefix) == {}
    assert etcd.etcdctl("lease", "list") == leases
