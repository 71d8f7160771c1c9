"""From one version to the next and back, a version that does not work, and removal, as the guide says it."""

from __future__ import annotations

from tests.vm import guide, steps
from tests.vm.agent import Agent
from tests.vm.goods import BROKEN, OLDER, Goods
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript

PATIENCE = "GARRISON_TAKEOVER_SECONDS=120"
"""How long an upgrade waits for the new version, where everything is emulated."""
_SECTION = "Upgrading and going back"


def run(machine: Machine, transcript: Transcript, goods: Goods) -> None:
    """Go through the scenario on a machine that has been started; the version before is in its image."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    guide.prepare(machine, garrison_new="garrison", garrison_older="older")
    with transcript.step(f"the version before ({OLDER})") as say:
        agent.wait_running()
        assert agent.version() == OLDER, agent.version()
        machine.run(f"echo '# mine' >> {steps.CONFIGURATION} && systemctl reload garrison")
        say("2 of 2 workers run; a line more in its configuration")
    by_hand, *automated = guide.chosen(_SECTION)
    back = "dpkg -i garrison_OLD.deb"
    assert back in guide.GUIDE.read_text(encoding="utf-8")
    _take(agent, transcript, by_hand, goods.version)
    for text in automated:
        with transcript.step(f"{_SECTION}: `{text}`") as say:
            said = machine.run(f"cd {guide.FOLDER}; {guide.named(text)}", 400)
            say(f"… {said.strip().splitlines()[-1][:100]}")
    with transcript.step(f"upgrade to {BROKEN}, which dies at its start") as say:
        done = machine.try_run(f"{PATIENCE} dpkg -i /media/broken.deb", 500)
        assert done.status != 0, done.output
        agent.wait_running()
        assert agent.version() == goods.version, agent.version()
        steps.alone(agent)
        said = [line for line in done.output.splitlines() if line.startswith("garrison: ")]
        say(f"{goods.version} was put back and runs: {' / '.join(said)[:250]}")
    _take(agent, transcript, back, OLDER)
    guide.follow(machine, transcript, "When it does not start")
    remove, purge, _ = guide.chosen("Removing")
    steps.removed(agent, transcript, guide.named(remove), f"Removing: `{remove}`")
    steps.purged(agent, transcript, guide.named(purge), f"Removing: `{purge}`")


def _take(agent: Agent, transcript: Transcript, command: str, version: str) -> None:
    with transcript.step(f"{_SECTION}: `{command}`") as say:
        output = agent.machine.run(f"cd {guide.FOLDER}; export {PATIENCE}; {guide.named(command)}", 600)
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
