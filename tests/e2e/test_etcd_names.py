"""Endpoints given by name, and a name server that falls silent: the addresses that were known do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._etcd_agent import (
    AT_ONCE,
    QUIET,
    QUORUM_SECONDS,
    REGISTRATION,
    STOP_KEY,
    Make,
    acted,
    put_when_possible,
    store_of,
    store_toml,
    wait_store,
)
from tests.etcd.cluster import Cluster

NAME_SERVER = "127.83.19.7"
NAME = "etcd.fleet.test"


def _can_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "-m", "mount", "--bind", "/dev/null", "/etc/hosts"], capture_output=True)
    return done.returncode == 0


pytestmark = [
    needs_cgroups,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not _can_mount(), reason="needs root, unshare and a mount namespace of its own"),
]


@pytest.fixture
def silent_name_server() -> Iterator[None]:
    """A name server that takes questions and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind((NAME_SERVER, 53))
        except OSError as error:
            pytest.skip(f"cannot listen on {NAME_SERVER}: {error}")
        yield


class Names:
    """Files of the resolver that only one agent sees."""

    def __init__(self, folder: Path) -> None:
        self.hosts = folder / "hosts"
        self.resolv = folder / "resolv.conf"
        self.nsswitch = folder / "nsswitch.conf"
        self.resolv.write_text(f"nameserver {NAME_SERVER}\noptions timeout:5 attempts:2\n")
        self.nsswitch.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        self.known()

    def known(self) -> None:
        self.hosts.write_text(f"127.0.0.1 localhost {NAME}\n")

    def away(self) -> None:
        """Written in place: a file that is replaced is not the mounted one."""
        self.hosts.write_text("127.0.0.1 localhost\n")

    def command(self, agent: RunningAgent) -> list[str]:
        mounts = [
            f"mount --bind {file} /etc/{file.name}"
            for file in (self.hosts, self.resolv, self.nsswitch)
            if Path("/etc", file.name).exists()
        ]
        garrisond = f"{Path(sys.executable).parent / 'garrisond'} --config {agent.config}"
        return ["unshare", "-m", "sh", "-ec", "\n".join([*mounts, f"exec {garrisond}"])]


@pytest.mark.usefixtures("silent_name_server")
def test_name_server_falls_silent(etcd: Cluster, make_agent: Make, tmp_path: Path) -> None:
    etcd.delete("/hids/", prefix=True)
    names = Names(tmp_path)
    endpoint = f"{NAME}:{etcd.members[0].port}"
    agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(etcd, endpoints=[endpoint]))
    agent.start(command=names.command(agent))
    agent.wait_worker("quiet", state="running")
    until(lambda: etcd.get(REGISTRATION), "the registration is there", 60)
    assert NAME in store_of(agent)["endpoint"]
    until((agent.folder / "state" / "cache.json").exists, "what was read is kept")

    names.away()
    etcd.kill()
    wait_store(agent, connected=False)
    etcd.members[0].start()
    since = put_when_possible(etcd, STOP_KEY, "stop")
    acted(agent, since, QUORUM_SECONDS, state="stopped")

    # A restart knows the addresses of the one before.
    etcd.put(STOP_KEY, "start")
    agent.wait_worker("quiet", state="running")
    agent.kill()
    since = put_when_possible(etcd, STOP_KEY, "stop")
    agent.start(command=names.command(agent))
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    wait_store(agent, connected=True)
    assert agent.stop() == 0
