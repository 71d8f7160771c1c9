"""The service on a host with cgroup v2: caps, hogs, watchdog, and what it costs while nothing happens."""

from __future__ import annotations

import time

from tests.vm import steps
from tests.vm.agent import Agent
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript


def run(machine: Machine, transcript: Transcript) -> None:
    """Go through the scenario on a machine that has been started, with `steps.HOGS`."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    steps.hogs_held(agent, transcript)
    steps.configured(agent, transcript)
    steps.contained(agent, transcript)
    with transcript.step("`systemd-analyze security`") as say:
        say(machine.run("systemd-analyze security --no-pager garrison.service").strip().splitlines()[-1].lstrip("→ "))
    idle(agent, transcript)
    steps.watchdog(agent, transcript, steps.HANGS, steps.KILLED)


def idle(agent: Agent, transcript: Transcript) -> None:
    """Measure the idle service as systemd accounts it."""
    with transcript.step("idle service, as systemd accounts it") as say:
        time.sleep(5)  # what starting took is over
        before, began = int(agent.show("CPUUsageNSec")[0]), time.monotonic()
        time.sleep(20)
        used, memory, tasks = agent.show("CPUUsageNSec", "MemoryCurrent", "TasksCurrent")
        seconds = time.monotonic() - began
        percent = (int(used) - before) / 1e9 / seconds * 100
        say(f"{int(memory) / 2**20:.0f} MiB, {tasks} tasks, {percent:.1f} % of an emulated core over {seconds:.0f} s")
