"""The whole product: etcd with TLS and users, a broker, and one host that installs the DEB and is told where they are.

Operations works from outside of the machine, over its forwarded ports: `garrison fleet init`, etcdctl with the
operator's certificate, and a Kafka consumer. What the host itself is given are endpoints and credentials.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.etcd import binaries
from tests.kafka.brokers import Kafka
from tests.vm import guide, steps
from tests.vm.agent import Agent
from tests.vm.machine import Machine, MachineError
from tests.vm.transcript import Transcript

TOPIC = "hids"
CONFIG = "/hids/server/config"
HOST = "vm"


class Operations:
    """Who runs the fleet: the folder of `garrison fleet init`, and etcdctl.

    Args:
        folder: An empty one.
        endpoint: Of etcd.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder, self.endpoint = folder, endpoint

    def fleet(self, *arguments: str, accept: int = 0) -> str:
        """Run a command of ``garrison fleet``."""
        command = [sys.executable, "-m", "garrison.fleet.cli", "fleet", *arguments]
        return self._run(command, {}, accept)

    def init(self, accept: int = 0) -> str:
        """Run ``garrison fleet init``."""
        return self.fleet("init", str(self.folder), "--endpoints", self.endpoint, "--yes", accept=accept)

    def etcdctl(self, *arguments: str) -> str:
        """Run etcdctl as the operator."""
        return self._run([str(binaries.wheel().etcdctl), *arguments], self._credentials("ETCDCTL"), 0)

    def hosts(self) -> list[dict[str, Any]]:
        """Return what ``garrison fleet hosts`` says."""
        reader = (self.folder / name for name in ("ca.crt", "reader.crt", "reader.key"))
        ca, cert, key = map(str, reader)
        command = [sys.executable, "-m", "garrison.fleet.cli", "fleet", "hosts", "--json"]
        command += ["--endpoints", self.endpoint, "--ca-cert", ca, "--cert", cert, "--key", key]
        return [json.loads(line) for line in self._run(command, {}, 0).splitlines()]

    def _credentials(self, prefix: str) -> dict[str, str]:
        files = {"CACERT": "ca.crt", "CERT": "operator.crt", "KEY": "operator.key"}
        return {f"{prefix}_ENDPOINTS": self.endpoint, "ETCDCTL_API": "3"} | {
            f"{prefix}_{name}": str(self.folder / file) for name, file in files.items()
        }

    @staticmethod
    def _run(command: list[str], env: dict[str, str], accept: int) -> str:
        done = subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != accept:
            raise MachineError(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stdout} {done.stderr}")
        return done.stdout


class Broker(Kafka):
    """The broker in the machine, seen from outside."""

    def __init__(self, port: int) -> None:
        self.bootstrap = [f"127.0.0.1:{port}"]

    def event(self, test: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Return the first event of the topic that a test holds for."""
        for record in self.read(TOPIC):
            for line in record.value.splitlines():
                if test(found := json.loads(line)):
                    return dict(found)
        return None


def run(machine: Machine, transcript: Transcript) -> None:
    """Go through the scenario on a machine that has been started, with two ports: etcd's and the broker's."""
    agent = Agent(machine)
    etcd_port, broker_port = machine.ports
    with tempfile.TemporaryDirectory() as folder:
        operations = Operations(Path(folder) / "fleet", f"127.0.0.1:{etcd_port}")
        broker = Broker(broker_port)
        steps.booted(machine, transcript)
        servers(machine, transcript, operations, broker)
        install(agent, transcript)
        join(agent, transcript, operations)
        steer(agent, transcript, operations, broker)
        kill(agent, transcript, operations, broker)
        steps.removed(agent, transcript, "dpkg -r garrison")


def install(agent: Agent, transcript: Transcript) -> None:
    """Install the DEB as it was built, and see the first event, as the guide says."""
    machine = agent.machine
    guide.prepare(machine, garrison_here="garrison")
    guide.follow(machine, transcript, "What a host needs")
    guide.follow(machine, transcript, "Debian and Ubuntu")
    with transcript.step("it runs with the safe default") as say:
        say(steps.bear_with(agent))
    guide.follow(machine, transcript, "The first event")
    agent.ask("start", worker="files")
    agent.wait_running()


def servers(machine: Machine, transcript: Transcript, operations: Operations, broker: Broker) -> None:
    """Set up etcd with TLS and users, and the broker."""
    etcd_port, broker_port = machine.ports
    with transcript.step("`garrison fleet init`: authority and certificates") as say:
        operations.init(accept=69)  # there is no cluster yet that speaks TLS: it has said what the members need
        say(", ".join(sorted(path.name for path in operations.folder.iterdir())))
    with transcript.step("etcd with TLS and client certificates, a broker") as say:
        copy(machine, operations.folder, ("ca.crt", "server.crt", "server.key"), "/etc/etcd")
        url = f"https://0.0.0.0:{etcd_port}"
        options = (
            f"--data-dir=/var/lib/etcd --listen-client-urls={url} --advertise-client-urls=https://127.0.0.1:{etcd_port}"
            " --cert-file=/etc/etcd/server.crt --key-file=/etc/etcd/server.key"
            " --trusted-ca-file=/etc/etcd/ca.crt --client-cert-auth --log-level=warn"
        )
        machine.run(
            f"echo 'OPTIONS={options}' > /etc/etcd.conf; echo PORT={broker_port} > /etc/broker.conf\n"
            "cp /media/etcd.service /media/broker.service /etc/systemd/system/\n"
            "systemctl daemon-reload && systemctl enable --now etcd.service broker.service",
            180,
        )
        broker.wait()
        say("both answer from outside of the machine")
    with transcript.step("`garrison fleet init` again: users, roles, authentication") as say:
        operations.init()
        operations.etcdctl("put", f"{CONFIG}/@all/master", '{"release_spread": 0, "heartbeat_seconds": 30}')
        operations.etcdctl("put", f"{CONFIG}/@all/killswitch", "off")
        say("authentication is on; the operator's certificate may write")


def copy(machine: Machine, folder: Path, names: tuple[str, ...], target: str) -> None:
    """Copy files into the machine; keys are for root alone."""
    for name in names:
        content = base64.b64encode((folder / name).read_bytes()).decode()
        machine.run(f"umask 077; mkdir -p {target}; base64 -d <<< {content} > {target}/{name}")


def join(agent: Agent, transcript: Transcript, operations: Operations) -> None:
    """Set endpoints and credentials on the host, as the guide says, and nothing else."""
    copy(agent.machine, operations.folder, ("ca.crt", "agent.crt", "agent.key"), guide.FOLDER)
    names = {
        "https://etcd1.example.com:2379": f"https://{operations.endpoint}",
        ', "https://etcd2.example.com:2379", "https://etcd3.example.com:2379"': "",
    }
    guide.follow(agent.machine, transcript, "Joining a fleet", names, without=("etcdctl ",))
    with transcript.step("the registration appears") as say:
        began = time.monotonic()
        found = agent.machine.until(
            "the registration is there",
            lambda: operations.etcdctl("get", "--print-value-only", f"/hids/agent/master/{HOST}"),
        )
        assert json.loads(found), found
        seconds = time.monotonic() - began
        agent.wait_running()
        (host,) = operations.hosts()
        say(f"there {seconds:.1f} s after it was looked for; `garrison fleet hosts`: {host['state']}")


def steer(agent: Agent, transcript: Transcript, operations: Operations, broker: Broker) -> None:
    """Send events to Kafka by key; stop and start a worker by key."""
    with transcript.step("put `/hids/kafka/topic` and `/hids/kafka/host`; a consumer reads a real exec event") as say:
        broker.create_topic(TOPIC)
        operations.etcdctl("put", "/hids/kafka/topic", TOPIC)
        operations.etcdctl("put", "/hids/kafka/host", broker.bootstrap[0])
        say(exec_event(agent, broker, "first"))
    key = f"{CONFIG}/{HOST}/worker/process"
    for action, state in (("stop", "stopped"), ("start", "running")):
        with transcript.step(f"{action} a worker by its key") as say:
            operations.etcdctl("put", key, action)
            worker = agent.wait(state, lambda found, state=state: found["process"]["state"] == state)["process"]
            say(f"{state}, decided by {worker['desired_by']}")


def exec_event(agent: Agent, broker: Broker, mark: str) -> str:
    """Run a program inside until a consumer outside has read an event of its start; return what it said."""

    def look() -> dict[str, Any] | None:
        # A program of its own name, so that no other event can be meant.
        agent.machine.run(f"cp /bin/true /tmp/vm-{mark}; /tmp/vm-{mark} hello; rm /tmp/vm-{mark}")
        return broker.event(
            lambda event: (
                event.get("process", {}).get("executable") == f"/tmp/vm-{mark}"
                and event["event"]["module"] == "process"
            )
        )

    event = agent.machine.until(f"an event of /tmp/vm-{mark}", look, 180)
    assert event is not None
    assert event["host"]["name"] == HOST, event
    process = event["process"]
    return f"{event['event']['action']} {process['executable']} pid {process['pid']} on {event['host']['name']}"


def kill(agent: Agent, transcript: Transcript, operations: Operations, broker: Broker) -> None:
    """Engage the killswitch for all, reboot, release."""
    machine = agent.machine
    with transcript.step("`@all` killswitch by key") as say:
        workers = " ".join(f"/proc/{worker['pid']}" for worker in agent.wait_running().values())
        began = time.monotonic()
        operations.etcdctl("put", f"{CONFIG}/@all/killswitch", '{"engaged": true, "reason": "trial", "by": "vm"}')
        put = time.monotonic()
        machine.run(f"for each in {workers}; do while [ -e $each ]; do sleep 0.01; done; done", 60)
        gone = time.monotonic()
        agent.wait("all are killed", lambda found: all(each["state"] == "killed" for each in found.values()))
        assert len(agent.processes()) == 1, agent.processes()
        say(f"no worker process {gone - began:.1f} s after etcdctl began, {gone - put:.1f} s after it was done")
    with transcript.step("reboot with the killswitch engaged: still killed") as say:
        machine.reboot()
        steps.still_killed(agent)
        say("the master runs and obeys, no worker was started, no nursery")
    with transcript.step("release; events flow again") as say:
        broker.wait()
        broker.create_topic(TOPIC)  # the broker keeps its data in memory
        operations.etcdctl("put", f"{CONFIG}/@all/killswitch", "off")
        agent.wait_running()
        say(exec_event(agent, broker, "second"))
