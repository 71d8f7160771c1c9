"""The RPM, with the rpm tool."""

from __future__ import annotations

from tests.vm import guide, steps
from tests.vm.agent import Agent
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript


def run(machine: Machine, transcript: Transcript) -> None:
    """Install and remove the RPM; without its dependencies, for rpm knows nothing of Debian's."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    steps.install(agent, transcript, "rpm -i --nodeps /media/garrison.rpm", "install the RPM as it was built")
    steps.contained(agent, transcript)
    steps.removed(agent, transcript, "rpm -e garrison", "`rpm -e garrison`")
    (purge,) = (text for text in guide.chosen("Removing") if text.startswith("rm "))
    steps.purged(agent, transcript, purge, f"Removing: `{purge}`")
