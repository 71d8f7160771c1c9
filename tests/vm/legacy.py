"""The service on a host with cgroup v1 alone."""

from __future__ import annotations

from tests.vm import steps
from tests.vm.agent import Agent
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript


def run(machine: Machine, transcript: Transcript) -> None:
    """Go through the scenario on a machine that has been started, with `steps.HOGS`."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    with transcript.step("cgroup mode") as say:
        agent.wait_running()
        mode = (agent.status() or {})["agent"]["cgroup_mode"]
        assert mode == "legacy", mode
        say(mode)
    steps.hogs_held(agent, transcript)
    steps.configured(agent, transcript)
    steps.contained(agent, transcript)
    steps.healthy(agent, transcript)
    steps.watchdog(agent, transcript, steps.HANGS)
    with transcript.step("`garrison kill`, reboot") as say:
        said = machine.run("garrison kill --reason test").strip().splitlines()[0]
        machine.reboot()
        steps.still_killed(agent)
        say(f"{said}; after the reboot no worker and no nursery")
    with transcript.step("release") as say:
        agent.ask("release")
        agent.wait_running()
        say("2 of 2 workers run")
    steps.removed(agent, transcript, "dpkg -r garrison")
