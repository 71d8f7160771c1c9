"""From one version to the next and back, a version that does not work, and removal."""

from __future__ import annotations

from tests.vm import steps
from tests.vm.agent import Agent
from tests.vm.goods import BROKEN, OLDER, Goods
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript


def run(machine: Machine, transcript: Transcript, goods: Goods) -> None:
    """Go through the scenario on a machine that has been started."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    steps.install(agent, transcript, "dpkg -i /media/older.deb", f"install the version before ({OLDER})")
    with transcript.step("edit the configuration") as say:
        machine.run(f"echo '# mine' >> {steps.CONFIGURATION} && systemctl reload garrison")
        say("one line")
    _take(agent, transcript, "/media/garrison.deb", f"upgrade {OLDER} to {goods.version}", goods.version)
    with transcript.step(f"upgrade to {BROKEN}, which dies at its start") as say:
        done = machine.try_run("GARRISON_TAKEOVER_SECONDS=90 dpkg -i /media/broken.deb", 500)
        assert done.status != 0, done.output
        agent.wait_running()
        assert agent.version() == goods.version, agent.version()
        steps.alone(agent)
        said = [line for line in done.output.splitlines() if line.startswith("garrison: ")]
        say(f"{goods.version} was put back and runs: {' / '.join(said)[:250]}")
    _take(agent, transcript, "/media/garrison.deb", f"install {goods.version} again", goods.version)
    _take(agent, transcript, "/media/older.deb", f"downgrade to {OLDER}", OLDER)
    steps.removed(agent, transcript, "dpkg -r garrison", "dpkg -P garrison")


def _take(agent: Agent, transcript: Transcript, package: str, what: str, version: str) -> None:
    with transcript.step(what) as say:
        output = agent.machine.run(f"GARRISON_TAKEOVER_SECONDS=120 dpkg -i {package}", 600)
        agent.wait_running()
        assert agent.version() == version, agent.version()
        steps.alone(agent)
        assert "# mine" in agent.machine.run(f"cat {steps.CONFIGURATION}"), "the configuration was overwritten"
        said = [line.removeprefix("garrison: ") for line in output.splitlines() if line.startswith("garrison: ")]
        say(f"{version} runs; {gap(agent):.1f} s without detection; {' / '.join(said)[:200]}")


def gap(agent: Agent) -> float:
    """Return the seconds between the last stop of a worker and the moment at which all ran again, by the journal."""
    lines = agent.machine.run("journalctl -u garrison -o short-monotonic --no-pager | tail -n 200").splitlines()
    times = [(float(line.partition("]")[0].strip("[ ")), line) for line in lines if line.startswith("[")]
    again = max(at for at, line in times if "-> running" in line)
    stopped = [at for at, line in times if "Stopping" in line and at < again]
    return again - max(stopped)
