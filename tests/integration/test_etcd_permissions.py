"""With authentication and TLS on: everything that an agent may not do is tried with its credentials, and refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.etcd.binaries import MissingError
from tests.etcd.certificates import tls_of
from tests.etcd.cluster import Cluster, EtcdctlError
from tests.integration._fleet_support import fleet

FORBIDDEN_WRITES = (
    "/hids/server/config/@all/killswitch",
    "/hids/server/config/@group/web/worker/process",
    "/hids/server/config/web1/worker/process",
    "/hids/server/config/web1/master",
    "/hids/agent/config/@all/plugin/process/settings",
    "/hids/agent/config/web1/plugin/process/rules",
    "/hids/config/body/" + "0" * 64,
    "/hids/kafka/host",
    "/hids/kafka/topic",
    "/hids/other",
    "/hids/agent/masters",
    "/hids/agent/statu",
    "/hids/agent/",
    "/elsewhere",
)
FORBIDDEN_READS = (
    ("/hids/agent/status/web2",),
    ("/hids/agent/status/", "--prefix"),
    ("/hids/alivehost/", "--prefix"),
    ("/hids/", "--prefix"),
    ("/hids/agent/", "--prefix"),
    ("/hids/other",),
    ("/elsewhere",),
    ("", "--prefix"),
    ("", "--from-key"),
)
FORBIDDEN_RIGHTS = (
    ("user", "list"),
    ("user", "add", "mallory:x"),
    ("user", "grant-role", "garrison-agent", "root"),
    ("role", "list"),
    ("role", "grant-permission", "garrison-agent", "readwrite", "/hids/", "--prefix"),
    ("auth", "disable"),
    ("snapshot", "save", "@stolen"),
    ("defrag",),
)


@dataclass(frozen=True)
class Fleet:
    cluster: Cluster
    folder: Path

    def etcdctl(self, client: str, *arguments: str, stdin: str = "x") -> str:
        """Run etcdctl with the certificate of a client and no password."""
        words = [word.replace("@stolen", str(self.folder / "stolen")) for word in arguments]
        return self.cluster.etcdctl(*words, stdin=stdin, user="", tls=tls_of(self.folder, client), timeout=5)

    def refused(self, client: str, *arguments: str) -> None:
        """Check that something is refused for want of a right."""
        with pytest.raises(EtcdctlError, match="permission denied"):
            self.etcdctl(client, *arguments)


def _fleet(folder: Path, *options: str) -> Iterator[Fleet]:
    pki = folder / "fleet"
    fleet("init", pki, "--endpoints", "127.0.0.1:1", *options, "--yes", code=69)
    try:
        cluster = Cluster(folder / "etcd", tls=tls_of(pki))
    except MissingError as error:
        pytest.skip(str(error))
    with cluster:
        for key in (*FORBIDDEN_WRITES, "/hids/agent/master/web2", "/hids/agent/status/web2"):
            cluster.put(key, "before")
        fleet("init", pki, "--endpoints", cluster.endpoints[0], *options, "--yes")
        yield Fleet(cluster, pki)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The default mode: all agents are one user."""
    yield from _fleet(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The stricter mode: a user for each host."""
    yield from _fleet(tmp_path_factory.mktemp("strict"), "--per-host", "web1", "--per-host", "web2")


@pytest.mark.parametrize("key", FORBIDDEN_WRITES)
def test_agent_writes_nothing_that_others_obey(shared: Fleet, key: str) -> None:
    shared.refused("agent", "put", key)
    shared.refused("agent", "del", key)
    assert shared.cluster.etcdctl("get", "--print-value-only", key, user=_root(shared)).strip() == "before"


@pytest.mark.parametrize("arguments", FORBIDDEN_READS)
def test_agent_reads_nothing_that_is_not_for_agents(shared: Fleet, arguments: tuple[str, ...]) -> None:
    shared.refused("agent", "get", *arguments)


@pytest.mark.parametrize("arguments", FORBIDDEN_RIGHTS)
def test_agent_changes_no_rights_and_takes_no_copy(shared: Fleet, arguments: tuple[str, ...]) -> None:
    shared.refused("agent", *arguments)


def test_agent_changes_nothing_through_a_transaction(shared: Fleet) -> None:
    with pytest.raises(EtcdctlError, match="permission denied"):
        shared.etcdctl("agent", "txn", stdin='\nput /hids/server/config/@all/killswitch "off"\n\n\n')


def test_agent_watches_nothing_that_it_may_not_read(shared: Fleet) -> None:
    with pytest.raises(EtcdctlError, match=r"permission denied|watch was canceled"):
        shared.etcdctl("agent", "watch", "--prefix", "/hids/agent/status/")


def test_agent_does_what_it_must(shared: Fleet) -> None:
    for key in ("/hids/server/config/web1/", "/hids/agent/config/@all/", "/hids/kafka/", "/hids/config/body/"):
        shared.etcdctl("agent", "get", "--prefix", key)
    for key in ("/hids/agent/master/web1", "/hids/agent/status/web1", "/hids/alivehost/web1--10.0.0.1"):
        assert shared.etcdctl("agent", "put", key).strip() == "OK"
        assert shared.etcdctl("agent", "del", key).strip() == "1"
    assert "before" in shared.etcdctl("agent", "get", "/hids/agent/master/web2")


def test_one_host_can_forge_anothers_registration_in_the_default_mode(shared: Fleet) -> None:
    """What docs/etcd.md admits; the stricter mode is the remedy."""
    assert shared.etcdctl("agent", "put", "/hids/agent/master/web9").strip() == "OK"


def test_reader_writes_nothing_and_operator_nothing_elsewhere(shared: Fleet) -> None:
    assert "before" in shared.etcdctl("reader", "get", "--prefix", "/hids/")
    shared.refused("reader", "put", "/hids/agent/master/web1")
    shared.refused("reader", "put", "/hids/server/config/@all/killswitch")
    shared.refused("reader", "get", "/elsewhere")
    assert shared.etcdctl("operator", "put", "/hids/server/config/@all/worker/x").strip() == "OK"
    shared.refused("operator", "put", "/elsewhere")
    shared.refused("operator", "auth", "disable")


def test_stranger_is_not_served(shared: Fleet, tmp_path: Path) -> None:
    from tests.etcd.certificates import make_tls

    own = make_tls(tmp_path / "own", "garrison-operator")
    forged = type(own)(tls_of(shared.folder).ca, own.cert, own.key, own.client_cert, own.client_key)
    with pytest.raises(EtcdctlError):
        shared.cluster.etcdctl("get", "/hids/kafka/host", user="", tls=forged, timeout=3)
    # The servers' own certificate is a client's too, and nobody's user.
    with pytest.raises(EtcdctlError, match=r"user name (not found|is empty)|permission denied|invalid auth"):
        shared.etcdctl("server", "get", "/hids/kafka/host")


def test_host_with_its_own_user_is_kept_from_others(strict: Fleet) -> None:
    web1 = "hosts/web1"
    for key in ("/hids/agent/master/web1", "/hids/agent/status/web1", "/hids/alivehost/web1--10.0.0.1"):
        assert strict.etcdctl(web1, "put", key).strip() == "OK"
    for key in (
        *FORBIDDEN_WRITES,
        *("/hids/agent/master/web2", "/hids/agent/status/web2", "/hids/alivehost/web2--10.0.0.1"),
        *("/hids/agent/master/web10", "/hids/agent/status/web1x", "/hids/alivehost/web10--10.0.0.1"),
    ):
        strict.refused(web1, "put", key)
    for key in ("/hids/agent/master/web2", "/hids/server/config/web2/worker/process", "/hids/agent/config/web2/x"):
        strict.refused(web1, "get", key)
    for prefix in (
        *("/hids/server/config/web1/", "/hids/server/config/@all/", "/hids/server/config/@group/web/"),
        *("/hids/agent/config/web1/", "/hids/agent/config/@all/", "/hids/kafka/", "/hids/config/body/"),
    ):
        strict.etcdctl(web1, "get", "--prefix", prefix)


def test_deleted_user_can_do_nothing_with_its_certificate(strict: Fleet) -> None:
    strict.etcdctl("hosts/web2", "get", "/hids/kafka/host")
    strict.cluster.etcdctl("user", "delete", "garrison-host-web2", user=_root(strict))
    with pytest.raises(EtcdctlError, match=r"user name not found|permission denied"):
        strict.etcdctl("hosts/web2", "get", "/hids/kafka/host")


def test_shared_certificate_is_nobody_in_the_stricter_mode(strict: Fleet) -> None:
    assert not (strict.folder / "agent.crt").exists()
    assert "garrison-agent\n" not in strict.cluster.etcdctl("user", "list", user=_root(strict))


def _root(fleet: Fleet) -> str:
    return "root:" + (fleet.folder / "root.password").read_text().strip()
