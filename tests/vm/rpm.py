"""The RPM, with the rpm tool."""

from __future__ import annotations

from tests.vm import guide, steps
from tests.vm.agent import Agent
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript


def run(machine: Machine, transcript: Transcript) -> None:
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
    steps.removed(agent, transcript, "rpm -e garrison", "`rpm -e garrison`")
    (purge,) = (text for text in guide.chosen("Removing") if text.startswith("rm "))
    steps.purged(agent, transcript, purge, f"Removing: `{purge}`")
