"""Rights, certificates, tokens and space that an agent loses while it runs: it says so, and goes on obeying."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e._agent import needs_cgroups, until
from tests.e2e._etcd_agent import (
    AT_ONCE,
    QUIET,
    QUORUM_SECONDS,
    REGISTRATION,
    STATUS,
    STOP_KEY,
    Make,
    acted,
    problems,
    put_when_possible,
    started,
    store_of,
    store_toml,
    wait_store,
)
from tests.etcd.certificates import tls_of
from tests.etcd.cluster import Cluster, EtcdctlError
from tests.integration._fleet_support import fleet, reach

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

ALL_KILL = "/hids/server/config/@all/killswitch"

MakeEtcd = Callable[..., Cluster]


def secured(make_etcd: MakeEtcd, pki: Path) -> Cluster:
    """Return a cluster with the certificates, users and roles of `garrison fleet init`."""
    certificates(pki)
    cluster = make_etcd(tls=tls_of(pki))
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    return cluster


def certificates(pki: Path) -> None:
    """Make an authority and the certificates of a fleet: there is no cluster yet."""
    fleet("init", pki, "--endpoints", "127.0.0.1:1", "--server", "127.0.0.1", "--yes", code=69)


def root(pki: Path) -> str:
    """Return root with its password."""
    return "root:" + (pki / "root.password").read_text().strip()


def test_database_full(make_etcd: MakeEtcd, make_agent: Make) -> None:
    cluster = make_etcd(quota_bytes=16 << 20)
    cluster.put("/hids/server/config/@all/worker/quiet", "stop")
    cluster.put(STOP_KEY, "start")
    agent = started(make_agent, cluster)
    cluster.fill_up()
    with pytest.raises(EtcdctlError, match="space exceeded"):
        cluster.put(ALL_KILL, "on")
    # Nothing can be written, and a deletion can: the key of all hosts is what is left.
    cluster.delete(STOP_KEY)
    acted(agent, time.monotonic(), state="stopped")
    # An agent that starts now cannot write its status, and obeys.
    agent.kill()
    agent.start()
    agent.wait_worker("quiet", desired="stop", state="stopped")
    until(lambda: any("space exceeded" in problem for problem in problems(agent)), "the agent says what is wrong", 120)
    cluster.make_room()
    since = put_when_possible(cluster, STOP_KEY, "start")
    acted(agent, since, state="running")
    until(lambda: cluster.get(REGISTRATION) and not problems(agent), "it is registered again", 180)


def test_write_right_taken_away(make_etcd: MakeEtcd, make_agent: Make, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    cluster = secured(make_etcd, pki)
    agent = started(make_agent, cluster, tls=tls_of(pki, "agent"))
    until(lambda: cluster.get(STATUS), "the status is written, too", 60)
    for prefix in ("/hids/agent/master/", "/hids/agent/status/", "/hids/alivehost/"):
        cluster.etcdctl("role", "revoke-permission", "garrison-agent", "--prefix", prefix, user=root(pki))
    since = put_when_possible(cluster, STOP_KEY, "stop")
    acted(agent, since, state="stopped")
    cluster.delete(REGISTRATION)
    until(lambda: any("permission" in problem for problem in problems(agent)), "the agent says what it lacks", 120)
    assert store_of(agent)["connected"]
    since = put_when_possible(cluster, STOP_KEY, "start")
    acted(agent, since, state="running")
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    until(lambda: cluster.get(REGISTRATION), "it is registered again", 180)
    shown = fleet("hosts", *reach(cluster, tls_of(pki, "reader")), code=None)
    assert "web1" in shown.stdout


def test_read_right_taken_away_is_no_absence(make_etcd: MakeEtcd, make_agent: Make, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    cluster = secured(make_etcd, pki)
    cluster.put(ALL_KILL, "on")
    agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(cluster, tls=tls_of(pki, "agent")))
    agent.start()
    agent.wait_worker("quiet", state="killed")
    cluster.etcdctl("role", "revoke-permission", "garrison-agent", "--prefix", "/hids/server/config/", user=root(pki))
    cluster.members[0].restart()  # ends the watch, which was allowed when it began
    wait_store(agent, connected=False)
    assert agent.worker("quiet")["state"] == "killed"
    fleet("init", pki, "--endpoints", cluster.endpoints[0], "--yes")
    since = put_when_possible(cluster, ALL_KILL, "off")
    acted(agent, since, QUORUM_SECONDS, state="running")


def test_certificates_of_another_authority(make_etcd: MakeEtcd, make_agent: Make, tmp_path: Path) -> None:
    """First the server's are replaced, then the agent's files; nothing of the old authority is left."""
    pki, new, agents = tmp_path / "pki", tmp_path / "new", tmp_path / "agents"
    cluster = secured(make_etcd, pki)
    shutil.copytree(pki, agents)
    agent = started(make_agent, cluster, tls=tls_of(agents, "agent"))
    pid = agent.pid
    certificates(new)
    _replace(pki, new)
    cluster.members[0].restart()
    wait_store(agent, connected=False)
    put_when_possible(cluster, STOP_KEY, "stop")
    until(lambda: any("certificate" in problem.lower() for problem in problems(agent)), "it says what is wrong", 60)
    assert agent.worker("quiet")["state"] == "running"
    since = time.monotonic()
    _replace(agents, new)
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    assert agent.pid == pid
    # A renewal under the same authority, which both sides take with their next connection.
    for name in ("server", "agent"):
        for kind in ("crt", "key"):
            (new / f"{name}.{kind}").unlink()
    certificates(new)
    _replace(agents, new)
    _replace(pki, new)
    cluster.members[0].restart()
    since = put_when_possible(cluster, STOP_KEY, "start")
    acted(agent, since, QUORUM_SECONDS, state="running")
    until(lambda: cluster.get(REGISTRATION) and not problems(agent), "it is registered again", 120)


def _replace(folder: Path, by: Path) -> None:
    for path in (*by.glob("*.crt"), *by.glob("*.key")):
        shutil.copyfile(path, folder / "next")
        (folder / "next").chmod(path.stat().st_mode & 0o777)
        (folder / "next").rename(folder / path.name)


@pytest.mark.parametrize("kind", ["simple", "jwt"])
def test_token_expired(make_etcd: MakeEtcd, make_agent: Make, tmp_path: Path, kind: str) -> None:
    """Tokens of two seconds: none that an agent has is ever still good when it needs one again."""
    if kind == "jwt":
        options = [f"--auth-token=jwt,{_jwt_keys(tmp_path)},sign-method=ES256,ttl=2s"]
    else:
        options = ["--auth-token-ttl=2"]
    folder = tmp_path / "fleet"
    cluster = make_etcd(options=options)
    fleet("init", folder, "--endpoints", cluster.endpoints[0], "--no-tls", "--yes")
    cluster.user = root(folder)
    more = store_toml(cluster, user="garrison-agent", password_file=folder / "garrison-agent.password", ttl=10)
    agent = make_agent(QUIET, agent=AT_ONCE + "alivehost_key = true\n", more=more)
    agent.start()
    agent.wait_worker("quiet", state="running")

    def shown_alive() -> list[str]:
        return list(cluster.get_prefix("/hids/alivehost/web1--").values())

    # Written with each renewal, which is longer after the last one than any token lives.
    for _ in range(2):
        before = until(shown_alive, "the host is shown alive", 60)
        until(lambda before=before: shown_alive() not in ([], before), "it is shown alive again", 60)
    since = put_when_possible(cluster, STOP_KEY, "stop")
    acted(agent, since, state="stopped")
    # Everything is read anew, with a token that has expired meanwhile.
    cluster.put("/hids/server/config/web1/master", '{"groups": ["db"]}')
    since = put_when_possible(cluster, "/hids/server/config/@group/db/killswitch", "on")
    acted(agent, since, state="killed")
    cluster.members[0].restart()
    since = put_when_possible(cluster, "/hids/server/config/@group/db/killswitch", "off")
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    until(lambda: cluster.get(REGISTRATION) and not problems(agent), "nothing is wrong", 120)


def _jwt_keys(folder: Path) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "jwt.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    (folder / "jwt.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return f"pub-key={folder / 'jwt.pub'},priv-key={folder / 'jwt.key'}"
