"""`garrison fleet hosts` against a real etcd."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from garrison.fleet.etcd.scan import Scan
from garrison.supervisor.control.status import KillswitchStatus
from garrison.supervisor.presence.document import HostStatus, Registration, WorkerFacts, encode
from garrison.supervisor.stores.etcd.connection import Access, Connection
from garrison.supervisor.stores.etcd.endpoints import Address, parse_endpoint
from garrison.supervisor.stores.etcd.results import Put
from tests.etcd.cluster import Cluster
from tests.integration._fleet_support import GARRISON, fleet, reach

RUNNING = (WorkerFacts(name="process", state="running"),)


@pytest.fixture
def fleet_of(etcd: Cluster) -> Iterator[Any]:
    """Write registrations and states as agents do, and everything else away afterwards."""
    endpoint = parse_endpoint(etcd.endpoints[0])
    connection = Connection(Address(endpoint.host, endpoint.port, endpoint.host), Access())
    connection.open()
    lease = connection.lease_grant(600).id

    def write(hosts: dict[str, tuple[Registration, HostStatus | None]], *, lease: int = lease) -> None:
        puts = []
        for host, (registration, status) in hosts.items():
            puts.append(Put(f"/hids/agent/master/{host}", encode(registration), lease))
            if status is not None:
                puts.append(Put(f"/hids/agent/status/{host}", encode(status), lease))
        for at in range(0, len(puts), 100):
            connection.txn((), puts[at : at + 100])

    yield write
    connection.lease_revoke(lease)
    connection.close()
    etcd.delete("/hids/", prefix=True)


def host(name: str, number: int = 0, **facts: Any) -> tuple[Registration, HostStatus]:
    """Return the documents of a host."""
    registration = Registration(version="0.1", machine_id=f"machine-{name}", ip_addresses=(f"10.0.0.{number}",))
    return registration, HostStatus(host=name, **{"workers": RUNNING, "groups": ("web",), **facts})


def listed(etcd: Cluster, *options: str, stdin: str = "") -> dict[str, dict[str, Any]]:
    """Return the documents of a listing, by host."""
    lines = fleet("hosts", *reach(etcd), "--json", *options, stdin=stdin).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["host"] for one in found] == sorted(one["host"] for one in found)
    return {one["host"]: one for one in found}


def test_empty_fleet_is_in_order(etcd: Cluster, fleet_of: Any) -> None:
    assert "0 hosts: none" in fleet("hosts", *reach(etcd)).stdout


def test_every_state_is_seen(etcd: Cluster, fleet_of: Any) -> None:
    clone = Registration(version="0.1", machine_id="machine-web-1")
    fleet_of(
        {
            "web-1": host("web-1"),
            "web-2": host("web-2", killswitch=KillswitchStatus(engaged=True, scopes=["local"], reason="a test")),
            "web-3": host("web-3", workers=(WorkerFacts(name="process", state="failed", last_error="exit 1"),)),
            "web-4": (clone, host("web-4")[1]),
            "web": host("web"),
            "1web": host("1web", problems=("the disk is full",)),
            "web-5": (Registration(machine_id="x"), None),
        }
    )
    fleet_of({"left": host("left")}, lease=0)
    etcd.put("/hids/server/config/web/worker/process", "stop")
    etcd.put("/hids/server/config/lost/killswitch", "off")
    etcd.put("/hids/agent/config/lost2/plugin/process/settings", "{}")
    etcd.put("/hids/server/config/@group/db/worker/process", "stop")
    states = {name: one["state"] for name, one in listed(etcd).items()}
    assert states == {
        "1web": "problem",
        "left": "gone",
        "lost": "gone",
        "lost2": "gone",
        "web": "unconfirmed",
        "web-1": "online",
        "web-2": "killed",
        "web-3": "differs",
        "web-4": "duplicate",
        "web-5": "unconfirmed",
    }
    shown = fleet("hosts", *reach(etcd), code=3).stdout
    for text in ("a test", "exit 1", "the machine is registered as web-1 too", "10 hosts", "the disk is full"):
        assert text in shown


def test_only_hosts_in_trouble_are_listed_and_the_counts_add_up(etcd: Cluster, fleet_of: Any) -> None:
    latched = (WorkerFacts(name="process", state="latched"), *RUNNING)
    fleet_of({"a": host("a"), "b": host("b", workers=latched), "c": host("c", problems=("the disk is full",))})
    etcd.put("/hids/server/config/lost/killswitch", "off")
    done = fleet("hosts", *reach(etcd), "--trouble", code=3).stdout
    assert [line.split()[0] for line in done.splitlines() if line[0] != " "] == ["HOST", "b", "c", "lost", "3"]
    assert "1 latched, 1 running" in done
    assert "3 hosts: 2 online, 1 gone; 1 differs, 1 problem" in done
    assert list(listed(etcd, "--trouble")) == ["b", "c", "lost"]


def test_killswitch_for_all_is_unconfirmed_until_each_host_says_so(etcd: Cluster, fleet_of: Any) -> None:
    fleet_of({"a": host("a"), "b": host("b", killswitch=KillswitchStatus(engaged=True, scopes=["@all"]))})
    etcd.put("/hids/server/config/@all/killswitch", "on")
    assert list(listed(etcd, "--state", "unconfirmed")) == ["a"]
    assert list(listed(etcd, "--state", "killed")) == ["b"]
    fleet("hosts", *reach(etcd), "--state", "unconfirmed", code=3)


def test_expected_hosts_that_are_not_there_are_gone(etcd: Cluster, fleet_of: Any, tmp_path: Path) -> None:
    fleet_of({"a": host("a"), "b": host("b")})
    earlier = tmp_path / "earlier"
    earlier.write_text(fleet("hosts", *reach(etcd), "--json").stdout)
    etcd.delete("/hids/agent/master/b")
    assert {name: one["state"] for name, one in listed(etcd, "--expected", str(earlier)).items()} == {
        "a": "online",
        "b": "gone",
    }
    assert listed(etcd, "--expected", "-", stdin="# all\na\nz\n")["z"]["state"] == "gone"
    fleet("hosts", *reach(etcd), "--expected", "-", stdin="not a host\n", code=64)
    fleet("hosts", *reach(etcd), "--expected", str(tmp_path / "none"), code=64)


def test_groups_are_filtered(etcd: Cluster, fleet_of: Any) -> None:
    fleet_of({"a": host("a", groups=("web", "eu")), "b": host("b", groups=("db",)), "c": host("c", groups=())})
    assert list(listed(etcd, "--group", "eu", "--group", "db")) == ["a", "b"]


def test_documents_of_others_are_harmless(etcd: Cluster, fleet_of: Any) -> None:
    fleet_of({"a": host("a")})
    etcd.put("/hids/agent/master/evil", '{"version": "\x1b[2J\u202e", "groups": 7}')
    etcd.put("/hids/agent/master/evil2", "[" * 100_000)
    etcd.put("/hids/agent/master/x/y", "{}")
    etcd.put("/hids/server/config/@nobody/worker/x", "stop")
    shown = fleet("hosts", *reach(etcd), code=3).stdout
    assert "\x1b" not in shown
    assert "2 keys of no known kind" in shown


def test_ten_thousand_hosts_come_in_pages(etcd: Cluster, fleet_of: Any) -> None:
    names = [f"host-{i:05}" for i in range(10_000)]
    fleet_of({name: host(name, i % 250) for i, name in enumerate(names)})
    for name in names[::1000]:
        etcd.put(f"/hids/server/config/{name}/worker/process", "start")
    found = listed(etcd)
    assert list(found) == names
    assert {one["state"] for one in found.values()} == {"online"}
    summary = json.loads(fleet("hosts", *reach(etcd), "--json", "--summary", "--page", "77").stdout)
    assert summary["hosts"] == summary["online"] == 10_000


def test_listing_is_as_of_one_revision(etcd: Cluster, fleet_of: Any) -> None:
    fleet_of({f"h{i}": host(f"h{i}") for i in range(9)})
    endpoint = parse_endpoint(etcd.endpoints[0])
    connection = Connection(Address(endpoint.host, endpoint.port, endpoint.host), Access())
    try:
        connection.open()
        hosts = Scan(connection, page_keys=2).hosts()
        first = next(hosts).host
        etcd.delete("/hids/agent/master/", prefix=True)
        assert [first, *(one.host for one in hosts)] == [f"h{i}" for i in range(9)]
    finally:
        connection.close()


def test_large_documents_are_fetched_in_smaller_pages(etcd: Cluster, fleet_of: Any) -> None:
    big = ("x" * 300,) * 20
    fleet_of({f"h{i:04}": host(f"h{i:04}", problems=big) for i in range(2000)})
    summary = json.loads(fleet("hosts", *reach(etcd), "--json", "--summary", "--page", "10000").stdout)
    assert summary["hosts"] == summary["problem"] == 2000


def test_cluster_that_is_away_is_said(etcd: Cluster) -> None:
    assert "127.0.0.1:1" in fleet("hosts", "--endpoints", "127.0.0.1:1", code=69).stderr
    assert "none of 2" in fleet("hosts", "--endpoints", "127.0.0.1:1,no.such.name.invalid:2379", code=69).stderr
    fleet("hosts", "--endpoints", "nonsense:x", code=64)
    found = fleet("hosts", "--endpoints", f"127.0.0.1:1,{etcd.endpoints[0]}", "--summary")
    assert "0 hosts" in found.stdout


def test_configuration_says_where_the_cluster_is(etcd: Cluster, fleet_of: Any, tmp_path: Path) -> None:
    fleet_of({"a": host("a")})
    config = tmp_path / "garrison.toml"
    config.write_text(f'[store]\nbackend = "etcd"\n[store.etcd]\nendpoints = ["{etcd.endpoints[0]}"]\n')
    command = [str(GARRISON), "--config", str(config), "fleet", "hosts"]
    assert "1 online" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    config.write_text("")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78
    assert "--endpoints" in done.stderr


def test_watch_goes_on_while_the_cluster_is_away(make_etcd: Callable[..., Cluster]) -> None:
    cluster = make_etcd()
    command = [str(GARRISON), "fleet", "hosts", *reach(cluster), "--summary", "--watch", "--interval", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            assert "0 hosts" in process.stdout.readline()
            cluster.kill()
            while "trying again" not in (line := process.stdout.readline()):
                assert line
            cluster.start()
            while "0 hosts" not in (line := process.stdout.readline()):
                assert line
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
