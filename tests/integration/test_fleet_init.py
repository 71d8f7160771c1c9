"""`garrison fleet init` against real clusters."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.etcd.certificates import tls_of
from tests.etcd.cluster import Cluster, EtcdctlError, Tls, until
from tests.integration._fleet_support import GARRISON, fleet

NOWHERE = ("--endpoints", "127.0.0.1:1")


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(folder: Path) -> Tls:
    """Let the first run make the certificates, as before the servers are started with them."""
    done = fleet("init", folder, *NOWHERE, "--server", "127.0.0.1", "--yes", code=69)
    assert "--trusted-ca-file" in done.stderr
    return tls_of(folder)


def test_dry_run_and_a_run_without_consent_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    assert "make the authority" in fleet("init", folder, *NOWHERE, "--dry-run").stdout
    assert "nobody to ask" in fleet("init", folder, *NOWHERE, code=64).stderr
    assert not folder.exists()


@pytest.mark.parametrize("debian", [False, True])
def test_second_run_changes_nothing_and_says_so(
    make_etcd: Callable[..., Cluster], tmp_path: Path, debian: bool
) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(tls=made(folder), debian=debian)
    options = ("--endpoints", cluster.endpoints[0])
    assert "turn authentication on" in fleet("init", folder, *options, "--yes").stdout
    before = contents(folder)
    assert "Nothing is to be done" in fleet("init", folder, *options).stdout
    assert contents(folder) == before
    # Authentication is really on, and the operator's certificate is a user.
    cluster.etcdctl("put", "/hids/server/config/@all/killswitch", stdin="off")
    with pytest.raises(EtcdctlError, match="permission denied"):
        cluster.etcdctl("put", "/elsewhere", stdin="x")


def test_secrets_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    made(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys = list(folder.rglob("*.key"))
    assert len(keys) == 5
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_partial_run_is_completed_and_what_was_widened_is_narrowed(
    make_etcd: Callable[..., Cluster], tmp_path: Path
) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(tls=made(folder))
    options = ("--endpoints", cluster.endpoints[0])
    # What a run leaves that was ended in the middle, and what a tired administrator has added.
    password = folder / "root.password"
    password.write_text("from an earlier run\n")
    password.chmod(0o600)
    cluster.etcdctl("user", "add", "root:something else")
    cluster.etcdctl("role", "add", "garrison-agent")
    cluster.etcdctl("role", "grant-permission", "garrison-agent", "readwrite", "--prefix", "/hids/server/config/")
    cluster.etcdctl("role", "grant-permission", "garrison-agent", "readwrite", "--prefix", "/other/")
    (folder / "reader.crt").unlink()
    key = (folder / "reader.key").read_bytes()
    said = fleet("init", folder, *options, "--yes").stdout
    assert "no longer let the role garrison-agent readwrite /other/*" in said
    assert (folder / "reader.key").read_bytes() == key
    granted = json.loads(
        cluster.etcdctl("role", "get", "garrison-agent", "-w", "json", user="root:from an earlier run")
    )["perm"]
    assert len(granted) == 7
    assert "Nothing is to be done" in fleet("init", folder, *options).stdout


def test_every_end_in_the_middle_is_completed(make_etcd: Callable[..., Cluster], tmp_path: Path) -> None:
    from garrison.fleet.etcd.access import SetRootPassword
    from garrison.fleet.etcd.initialise import Init, Request
    from garrison.fleet.etcd.reach import Reach

    folder = tmp_path / "fleet"
    tls = made(folder)
    cluster = make_etcd(tls=tls)
    request = Request(str(folder), Reach((cluster.endpoints[0],)), ("127.0.0.1",))
    runs = 0
    while True:
        init = Init(request)
        try:
            plan = init.plan_cluster()
            if not plan.work:
                break
            # Root's password is set again by each run, until authentication is on.
            at = 1 if SetRootPassword() in plan.work[:1] else 0
            for work in plan.work[: at + 1]:
                init.do(work)
        finally:
            init.close()
        runs += 1
        assert runs < 60, plan
    assert runs > 20
    assert "Nothing is to be done" in fleet("init", folder, "--endpoints", cluster.endpoints[0]).stdout


def test_lost_root_password_is_said_and_nothing_is_changed(make_etcd: Callable[..., Cluster], tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(tls=made(folder))
    options = ("--endpoints", cluster.endpoints[0])
    fleet("init", folder, *options, "--yes")
    password = (folder / "root.password").rename(tmp_path / "elsewhere")
    assert "--root-password-file" in fleet("init", folder, *options, "--yes", code=1).stderr
    assert not (folder / "root.password").exists()
    said = fleet("init", folder, *options, "--root-password-file", password).stdout
    assert "Nothing is to be done" in said
    password.write_text("wrong\n")
    fleet("init", folder, *options, "--root-password-file", password, code=77)
    password.chmod(0o644)
    assert "chmod 600" in fleet("init", folder, *options, "--root-password-file", password, code=78).stderr


def test_certificate_that_does_not_do_is_named_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    made(folder)
    before = contents(folder)
    said = fleet("init", folder, *NOWHERE, "--server", "10.1.2.3", "--yes", code=1).stderr
    assert "server.crt: it is not for 10.1.2.3" in said
    (folder / "agent.crt").write_text("garbage")
    assert "agent.crt" in fleet("init", folder, *NOWHERE, "--yes", code=1).stderr
    (folder / "agent.crt").write_bytes(before["agent.crt"])
    (folder / "ca.key").rename(folder / "ca.away")
    (folder / "reader.crt").unlink()
    assert "ca.key is not here" in fleet("init", folder, *NOWHERE, "--yes", code=1).stderr


def test_certificate_about_to_end_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    fleet("init", folder, *NOWHERE, "--days", "5", "--yes", code=69)
    said = fleet("init", folder, *NOWHERE, "--dry-run", code=69).stdout
    assert "agent.crt: it ends in 5 days" in said


def test_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    (folder / "hosts").write_text("in the way")
    assert "cannot write" in fleet("init", folder, *NOWHERE, "--per-host", "web1", "--yes", code=1).stderr
    assert not [name for name in os.listdir(folder) if name.endswith(".new")]


def test_without_tls_every_user_gets_a_password(make_etcd: Callable[..., Cluster], tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd()
    done = fleet("init", folder, "--endpoints", cluster.endpoints[0], "--no-tls", "--yes")
    assert "without TLS" in done.stdout
    password = (folder / "garrison-operator.password").read_text().strip()
    cluster.user = f"garrison-operator:{password}"
    cluster.put("/hids/server/config/@all/worker/process", "stop")
    assert cluster.get("/hids/server/config/@all/worker/process") == "stop"


@pytest.mark.parametrize("name", ["a/b", "", "@all", "web--1", ".hidden", "x" * 300])
def test_host_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    fleet("init", tmp_path / "fleet", *NOWHERE, "--per-host", name, "--yes", code=64)


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 1), ("y\n", 69)])
def test_on_a_terminal_it_asks(tmp_path: Path, answer: str, code: int) -> None:
    folder = tmp_path / "fleet"
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [GARRISON, "fleet", "init", folder, *NOWHERE],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            os.write(ours, answer.encode())
            said, _ = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Go on? [y/N]" in said
    assert process.returncode == code, said
    assert folder.exists() == (code == 69)


def test_cluster_that_hangs_is_given_up_and_nothing_is_changed(
    make_etcd: Callable[..., Cluster], tmp_path: Path
) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(tls=made(folder))
    before = contents(folder)
    cluster.members[0].stop()
    try:
        for option in ("--yes", "--dry-run"):
            done = fleet("init", folder, "--endpoints", cluster.endpoints[0], option, code=69)
            assert "Deadline Exceeded" in done.stderr
            assert "look at its health" in done.stderr
    finally:
        cluster.members[0].cont()
    assert contents(folder) == before
    assert "user" not in cluster.etcdctl("user", "list")


def test_members_that_hang_or_are_cut_off_are_passed_over(make_etcd: Callable[..., Cluster], tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(3, tls=made(folder))
    cut, other = cluster.followers()
    cut.isolate()
    until(lambda: cut.status()["leader"] == 0, "the member knows no leader")
    order = f"{cut.endpoint},{other.endpoint},{cluster.leader().endpoint}"
    assert "Done." in fleet("init", folder, "--endpoints", order, "--yes").stdout
    assert "0 hosts" in fleet("hosts", "--endpoints", order, *certificates(folder)).stdout
    cut.heal()
    until(lambda: cut.status()["leader"] != 0, "the member knows the leader")
    cut.stop()
    try:
        assert "Nothing is to be done" in fleet("init", folder, "--endpoints", order).stdout
        assert "0 hosts" in fleet("hosts", "--endpoints", order, *certificates(folder)).stdout
    finally:
        cut.cont()


def certificates(folder: Path) -> list[str]:
    """Return the options of a reader."""
    tls = tls_of(folder, "reader")
    return ["--ca-cert", str(tls.ca), "--cert", str(tls.client_cert), "--key", str(tls.client_key)]


@pytest.mark.parametrize("tls", [True, False])
def test_stricter_mode_is_never_weakened_by_a_run_without_hosts(
    make_etcd: Callable[..., Cluster], tmp_path: Path, tls: bool
) -> None:
    folder = tmp_path / "fleet"
    hosts = ("--per-host", "web1", "--per-host", "web2")
    if tls:
        fleet("init", folder, *NOWHERE, "--server", "127.0.0.1", *hosts, "--yes", code=69)
    cluster = make_etcd(tls=tls_of(folder) if tls else None)
    options = ["--endpoints", cluster.endpoints[0], *(() if tls else ("--no-tls",))]
    said = fleet("init", folder, *options, *hosts, "--yes").stdout
    assert ("hosts/HOST.crt" if tls else 'username = "garrison-host-HOST"') in said
    before = contents(folder)
    assert "single hosts (web1, web2)" in fleet("init", folder, *options, "--yes", code=1).stderr
    assert contents(folder) == before
    cluster.user = "root:" + (folder / "root.password").read_text().strip()
    assert "garrison-agent" not in cluster.etcdctl("user", "list")
    # One more host is one more user; the others are no strangers, and stay.
    said = fleet("init", folder, *options, "--per-host", "web3", "--yes").stdout
    assert "other users" not in said
    assert {"garrison-host-web1", "garrison-host-web3"} <= set(cluster.etcdctl("user", "list").split())


def test_what_belongs_to_others_is_left_alone_and_named(make_etcd: Callable[..., Cluster], tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(tls=made(folder))
    options = ("--endpoints", cluster.endpoints[0])
    for words in (
        ("role", "add", "billing"),
        ("role", "grant-permission", "billing", "readwrite", "--prefix", "/billing/"),
        ("user", "add", "ada:secret"),
        ("user", "grant-role", "ada", "billing"),
        ("user", "add", "root:ours"),
        ("user", "grant-role", "root", "root"),
        ("user", "grant-role", "root", "billing"),
    ):
        cluster.etcdctl(*words)
    password = tmp_path / "root.password"
    password.write_text("ours\n")
    password.chmod(0o600)
    assert "root.password with its password is not here" in fleet("init", folder, *options, "--yes", code=1).stderr
    options = (*options, "--root-password-file", str(password))
    assert "other users, left alone: ada (billing)" in fleet("init", folder, *options, "--yes").stdout
    cluster.user = "root:ours"
    assert cluster.etcdctl("user", "get", "root").split()[-2:] == ["billing", "root"]
    assert "billing" in cluster.etcdctl("user", "get", "ada")
    assert "/billing/" in cluster.etcdctl("role", "get", "billing")
    cluster.etcdctl("put", "/billing/x", stdin="1", user="ada:secret")
    # Another fleet on this cluster would take this one's rights: that is said before it is done.
    said = fleet("init", folder, *options, "--prefix", "/other", "--dry-run").stdout
    assert "no longer let the role garrison-agent read /hids/server/config/*" in said
    assert "a second fleet under another --prefix needs a cluster of its own" in said
    assert "Nothing is to be done" in fleet("init", folder, *options).stdout


def test_keys_that_others_can_read_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    made(folder)
    (folder / "ca.key").chmod(0o644)
    folder.chmod(0o777)
    said = fleet("init", folder, *NOWHERE, "--dry-run", code=69).stdout
    assert f"chmod 600 {folder}/ca.key" in said
    assert f"chmod 700 {folder}" in said


def test_password_that_was_wanted_later_is_reported(make_etcd: Callable[..., Cluster], tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    cluster = make_etcd(tls=made(folder))
    options = ("--endpoints", cluster.endpoints[0])
    fleet("init", folder, *options, "--yes")
    said = fleet("init", folder, *options, "--passwords").stdout
    assert "etcdctl user delete garrison-agent" in said
    cluster.etcdctl("user", "delete", "garrison-agent", user="root:" + (folder / "root.password").read_text().strip())
    fleet("init", folder, *options, "--passwords", "--yes")
    password = (folder / "garrison-agent.password").read_text().strip()
    cluster.etcdctl("get", "/hids/kafka/host", user=f"garrison-agent:{password}")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--endpoints", "10.0.0.1:99999"), 64, "a port is a number"),
        (("--endpoints", "ftp://x"), 64, "http or https"),
        (("--endpoints", ","), 64, "names no endpoint"),
        ((*NOWHERE, "--cert", "a.crt"), 64, "--cert and --key go together"),
        ((*NOWHERE, "--server", "not a name"), 64, "neither an address nor a host name"),
        ((*NOWHERE, "--no-tls", "--server", "x"), 64, "--server is for certificates"),
        ((*NOWHERE, "--prefix", "hids"), 64, "prefix"),
        ((*NOWHERE, "--days", "0"), 64, "--days"),
        ((*NOWHERE, "--ca-cert", "/nowhere/ca.crt"), 78, "/nowhere/ca.crt"),
        (("--endpoints", "https://127.0.0.1:1", "--no-tls"), 78, "--ca-cert"),
    ],
)
def test_wrong_arguments_change_nothing(tmp_path: Path, options: tuple[str, ...], code: int, said: str) -> None:
    done = fleet("init", tmp_path / "fleet", *options, "--yes", code=code)
    assert said in done.stderr
    assert not (tmp_path / "fleet").exists()
