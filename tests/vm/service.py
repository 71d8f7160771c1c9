"""The service on a host with cgroup v2: install, caps, hogs, watchdog, killswitch by key, reboot."""

from __future__ import annotations

import time

from tests.vm import steps
from tests.vm.agent import Agent
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript

ETCDCTL = "ETCDCTL_API=3 /media/etcdctl"


def run(machine: Machine, transcript: Transcript) -> None:
    """Go through the scenario on a machine that has been started."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    steps.install(agent, transcript, "dpkg -i /media/garrison.deb", "install the DEB as it was built")
    steps.contained(agent, transcript)
    with transcript.step("`systemd-analyze security`") as say:
        say(machine.run("systemd-analyze security --no-pager garrison.service").strip().splitlines()[-1].lstrip("→ "))
    idle(agent, transcript)
    steps.start_time(agent, transcript)
    steps.hogs_held(agent, transcript)
    steps.watchdog(agent, transcript)
    killswitch(agent, transcript)
    steps.removed(agent, transcript, "dpkg -r garrison", "dpkg -P garrison")


def idle(agent: Agent, transcript: Transcript) -> None:
    """Measure the idle service as systemd accounts it."""
    with transcript.step("idle service, as systemd accounts it") as say:
        time.sleep(10)  # what starting took is over
        before, began = int(agent.show("CPUUsageNSec")[0]), time.monotonic()
        time.sleep(20)
        after, seconds = int(agent.show("CPUUsageNSec")[0]), time.monotonic() - began
        memory, tasks = agent.show("MemoryCurrent", "TasksCurrent")
        percent = (after - before) / 1e9 / seconds * 100
        say(f"{int(memory) / 2**20:.0f} MiB, {tasks} tasks, {percent:.1f} % of an emulated core over {seconds:.0f} s")


def killswitch(agent: Agent, transcript: Transcript) -> None:
    """Engage the killswitch by its key in an etcd on the same host, reboot, release it."""
    machine = agent.machine
    key = "/hids/server/config/@all/killswitch"
    with transcript.step("etcd instead of the directory store") as say:
        machine.run(
            "echo OPTIONS=--data-dir=/var/lib/etcd > /etc/etcd.conf; cp /media/etcd.service /etc/systemd/system/"
        )
        machine.run("systemctl daemon-reload && systemctl enable --now etcd.service", 180)
        machine.run(
            f"cat > {steps.CONFIGURATION} <<'END'\n{steps.EMULATED}[store]\nbackend = \"etcd\"\n"
            '[store.etcd]\nendpoints = ["127.0.0.1:2379"]\nEND\n'
            f"{ETCDCTL} put /hids/server/config/@all/master '{{\"release_spread\": 0}}'"
            " && garrisond --check && systemctl restart garrison"
        )
        agent.wait_running()
        store = (agent.status() or {})["agent"]["store"]
        assert (store["backend"], store["connected"]) == ("etcd", True), store
        say(f"connected, revision {store['revision']}")
    with transcript.step("killswitch by key") as say:
        workers = " ".join(str(worker["pid"]) for worker in agent.wait_running().values())
        # Measured inside, from before the put until the last worker is gone.
        took = machine.run(
            f"began=$(date +%s%N); {ETCDCTL} put {key} on > /dev/null; put=$(date +%s%N)\n"
            f"for pid in {workers}; do n=0\n"
            "while [ -e /proc/$pid ] && [ $n -lt 3000 ]; do sleep 0.01; n=$((n + 1)); done; done\n"
            'end=$(date +%s%N); echo "$(( (end - began) / 1000000 )) $(( (end - put) / 1000000 ))"'
        ).split()
        agent.wait("all are killed", lambda found: all(each["state"] == "killed" for each in found.values()))
        assert machine.try_run("garrison status").status == 3
        say(f"no worker {took[0]} ms after etcdctl began ({took[1]} ms after it was done)")
    with transcript.step("reboot with the killswitch engaged") as say:
        machine.reboot()
        agent.wait("all are killed", lambda found: all(each["state"] == "killed" for each in found.values()))
        started = machine.run("journalctl -b -u garrison --no-pager -o cat")
        assert "-> starting" not in started, started
        assert len(agent.processes()) == 1, agent.processes()
        say("the master runs, no worker was started, no nursery")
    with transcript.step("release by key") as say:
        machine.run(f"{ETCDCTL} put {key} off", 60)
        agent.wait_running()
        machine.run("garrison status")
        say("2 of 2 workers run")
    with transcript.step("back to the directory store") as say:
        machine.run("systemctl disable --now etcd.service; rm -rf /var/lib/etcd /etc/etcd.conf")
        machine.run(f"cp /root/kept.toml {steps.CONFIGURATION} && systemctl restart garrison")
        agent.wait_running()
        say("2 of 2 workers run")
