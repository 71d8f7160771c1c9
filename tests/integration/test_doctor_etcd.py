"""The doctor's look at a real etcd store: well, hanging, full, a wrong password, too few rights and too many."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from garrison.supervisor import doctor_etcd
from garrison.supervisor.doctor import Finding
from garrison.supervisor.settings import Settings, load
from tests.etcd.certificates import make_tls, tls_of
from tests.etcd.cluster import Cluster, Tls
from tests.integration._fleet_support import GARRISON, fleet

Make = Callable[..., Cluster]


def settings(
    folder: Path, endpoints: list[str], tls: Tls | None = None, user: str = "", password: str = "", agent: str = ""
) -> Settings:
    """Return the configuration of a host with an etcd store."""
    lines = ["[agent]", 'hostname = "web1"', 'groups = ["web"]', agent, "[store]", 'backend = "etcd"', "[store.etcd]"]
    lines.append(f"endpoints = {json.dumps(endpoints)}")
    if tls is not None:
        lines += [f'ca_cert = "{tls.ca}"', f'cert = "{tls.client_cert}"', f'key = "{tls.client_key}"']
    if user:
        file = folder / "password"
        file.write_text(password + "\n")
        file.chmod(0o600)
        lines += [f'username = "{user}"', f'password_file = "{file}"']
    path = folder / "garrison.toml"
    path.write_text("\n".join(lines) + "\n")
    return load(str(path))


def looked(wanted: Settings) -> dict[str, Finding]:
    """Return the findings by name."""
    found = [*doctor_etcd.credentials(wanted), *doctor_etcd.cluster(wanted)]
    for finding in found:
        assert finding.detail
        assert finding.status == "ok" or finding.remedy
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize("debian", [False, True])
def test_everything_is_well_and_nothing_is_left(make_etcd: Make, tmp_path: Path, debian: bool) -> None:
    pki = tmp_path / "fleet"
    fleet("init", pki, "--endpoints", "127.0.0.1:1", "--yes", code=69)
    cluster = make_etcd(tls=tls_of(pki), debian=debian)
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    wanted = settings(tmp_path, cluster.endpoints, tls_of(pki, "agent"), agent="alivehost_key = true")
    cluster.put("/hids/server/config/web1/worker/process", "stop")
    before = cluster.revision(), cluster.get_prefix("/hids/")
    found = looked(wanted)
    assert {name for name, one in found.items() if one.status != "ok"} <= {"etcd version"}
    assert "no agent" in found["etcd registration"].detail
    assert (cluster.revision(), cluster.get_prefix("/hids/")) == before
    # Who may write what others obey is told so; who may read alone, too.
    over = looked(settings(tmp_path, cluster.endpoints, tls_of(pki, "operator")))
    assert "what other hosts obey" in over["etcd rights"].detail
    under = looked(settings(tmp_path, cluster.endpoints, tls_of(pki, "reader")))
    assert "/hids/agent/master/web1, /hids/agent/status/web1" in under["etcd rights"].detail
    nobody = looked(settings(tmp_path, cluster.endpoints, tls_of(pki, "server")))
    assert nobody["etcd rights"].status == "fail"
    assert (cluster.revision(), cluster.get_prefix("/hids/")) == before


def test_host_with_its_own_user_is_well_and_under_another_name_it_is_not(make_etcd: Make, tmp_path: Path) -> None:
    pki = tmp_path / "fleet"
    hosts = ("--per-host", "web1", "--per-host", "web2")
    fleet("init", pki, "--endpoints", "127.0.0.1:1", *hosts, "--yes", code=69)
    cluster = make_etcd(tls=tls_of(pki))
    fleet("init", pki, "--endpoints", cluster.endpoints[0], *hosts, "--yes")
    assert looked(settings(tmp_path, cluster.endpoints, tls_of(pki, "hosts/web1")))["etcd rights"].status == "ok"
    assert looked(settings(tmp_path, cluster.endpoints, tls_of(pki, "hosts/web2")))["etcd rights"].status == "fail"


def test_member_that_hangs_delays_nobody_and_all_of_them_are_a_failure(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(3)
    wanted = settings(tmp_path, cluster.endpoints)
    leader = cluster.leader()
    leader.stop()
    try:
        found = looked(wanted)
        assert found[f"etcd {leader.endpoint}"].status == "warn"
        assert "hangs" in found[f"etcd {leader.endpoint}"].remedy
        for member in cluster.members:
            if member is not leader:
                member.stop()
        began = time.monotonic()
        found = looked(wanted)
        assert found["etcd"].status == "fail"
        assert time.monotonic() - began < 60
        assert "etcd rights" not in found
    finally:
        for member in cluster.members:
            member.cont()


def test_member_without_a_majority_is_a_failure(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(3)
    cluster.members[1].kill()
    cluster.members[2].kill()
    found = looked(settings(tmp_path, cluster.endpoints))
    assert found["etcd"].status == "fail"
    assert "refused" in found[f"etcd {cluster.endpoints[1]}"].detail


def test_wrong_password_is_said_once(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(3, auth=True)
    cluster.etcdctl("user", "add", "agent:right")
    found = looked(settings(tmp_path, cluster.endpoints, user="agent", password="wrong"))
    assert found["etcd login"].status == "fail"
    assert "password_file" in found["etcd login"].remedy
    assert not any(name.startswith("etcd 127.") for name in found)
    # The right one, without any role.
    found = looked(settings(tmp_path, cluster.endpoints, user="agent", password="right"))
    assert found["etcd rights"].status == "fail"


def test_full_database_and_no_authentication_are_seen(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(quota_bytes=2 * 1024 * 1024)
    wanted = settings(tmp_path, cluster.endpoints)
    assert "authentication is off" in looked(wanted)["etcd rights"].detail
    cluster.fill_up()
    found = looked(wanted)
    assert found["etcd alarm"].status == "fail"
    assert "NOSPACE" in found["etcd alarm"].detail
    assert found["etcd rights"].status == "warn"


def test_tls_that_does_not_fit_is_told_apart(make_etcd: Make, tmp_path: Path) -> None:
    theirs, ours = make_tls(tmp_path / "theirs"), make_tls(tmp_path / "ours")
    cluster = make_etcd(tls=theirs)
    endpoint = f"etcd {cluster.endpoints[0]}"
    assert "want TLS" in looked(settings(tmp_path, cluster.endpoints))[endpoint].remedy
    assert "ca_cert signed it" in looked(settings(tmp_path, cluster.endpoints, ours))[endpoint].remedy
    stranger = Tls(theirs.ca, ours.cert, ours.key, ours.client_cert, ours.client_key)
    assert "refuses this host's certificate" in looked(settings(tmp_path, cluster.endpoints, stranger))[endpoint].remedy
    name = looked(settings(tmp_path, ["no-such-name.invalid:2379"], theirs))["etcd no-such-name.invalid:2379"]
    assert "does not resolve" in name.detail


def test_certificates_that_end_and_keys_that_are_open_are_seen(tmp_path: Path) -> None:
    from garrison.fleet.etcd.certificates import Folder, Wanted

    pki = Folder(str(tmp_path / "pki"))
    pki.make_authority()
    pki.make(Wanted("server", "server", ("127.0.0.1",)))
    for name, days in (("soon", 5), ("over", 0)):
        pki.make(Wanted(name, name), days)
    wanted = settings(tmp_path, ["127.0.0.1:1"], tls_of(tmp_path / "pki", "soon"))
    assert [one.status for one in doctor_etcd.credentials(wanted)] == ["ok", "warn"]
    (tmp_path / "pki" / "soon.key").chmod(0o644)
    assert [one.status for one in doctor_etcd.credentials(wanted)] == ["warn", "ok", "warn"]
    wanted = settings(tmp_path, ["127.0.0.1:1"], tls_of(tmp_path / "pki", "over"))
    assert [one.status for one in doctor_etcd.credentials(wanted)] == ["ok", "fail"]
    (tmp_path / "pki" / "over.crt").unlink()
    assert [one.status for one in doctor_etcd.credentials(wanted)] == ["fail"]


def test_the_command_shows_it(etcd: Cluster, tmp_path: Path) -> None:
    wanted = settings(tmp_path, etcd.endpoints)
    command = [GARRISON, "--config", wanted.source, "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    document = json.loads(done.stdout)
    found = {one["name"]: one for one in document["findings"] if one["group"] == "etcd"}
    assert "round trip" in found[f"etcd {etcd.endpoints[0]}"]["detail"]
