"""The service on a host with cgroup v1 alone, from the DEB; then the RPM, with the rpm tool."""

from __future__ import annotations

from tests.vm import steps
from tests.vm.agent import Agent
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript


def run(machine: Machine, transcript: Transcript) -> None:
    """Go through the scenario on a machine that has been started."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    steps.install(agent, transcript, "dpkg -i /media/garrison.deb", "install the DEB as it was built")
    with transcript.step("cgroup mode") as say:
        mode = (agent.status() or {})["agent"]["cgroup_mode"]
        assert mode == "legacy", mode
        say(mode)
    steps.contained(agent, transcript)
    steps.start_time(agent, transcript)
    steps.hogs_held(agent, transcript)
    steps.watchdog(agent, transcript)
    with transcript.step("`garrison kill`, reboot") as say:
        said = machine.run("garrison kill --reason test").strip().splitlines()[0]
        machine.reboot()
        agent.wait("all are killed", lambda found: all(each["state"] == "killed" for each in found.values()))
        assert len(agent.processes()) == 1, agent.processes()
        say(f"{said}; after the reboot no worker and no nursery")
    with transcript.step("`garrison release`") as say:
        machine.run("garrison release")
        agent.wait_running()
        say("2 of 2 workers run")
    steps.removed(agent, transcript, "dpkg -r garrison", "dpkg -P garrison")


def rpm(machine: Machine, transcript: Transcript) -> None:
    """Install, use, install again and remove the RPM; without its dependencies, for rpm knows nothing of Debian's."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    steps.install(agent, transcript, "rpm -i --nodeps /media/garrison.rpm", "install the RPM as it was built")
    steps.contained(agent, transcript)
    with transcript.step("the RPM once more (rpm -U --replacepkgs)") as say:
        machine.run(f"echo '# mine' >> {steps.CONFIGURATION}")
        output = machine.run("GARRISON_TAKEOVER_SECONDS=120 rpm -U --nodeps --replacepkgs /media/garrison.rpm", 600)
        agent.wait_running()
        steps.alone(agent)
        assert "# mine" in machine.run(f"cat {steps.CONFIGURATION}"), "the configuration was overwritten"
        say(f"2 of 2 workers run: {output.strip().splitlines()[-1]}")
    with transcript.step("remove") as say:
        machine.run("rpm -e garrison", 300)
        steps.nothing_runs(agent)
        kept = machine.run("ls -d /etc/garrison/* /var/l*/garrison").split()
        say(f"no process, no cgroup, no socket; kept: {' '.join(kept)}")
