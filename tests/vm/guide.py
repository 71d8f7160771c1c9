"""``docs/install.md`` tried line by line: every command as it stands there, but for the names of files and hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.vm import steps
from tests.vm.agent import Agent
from tests.vm.goods import OLDER, Goods
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript

GUIDE = Path(__file__).parents[2] / "docs" / "install.md"
NAMES = {
    "./garrison_NEW.deb": "./garrison_new.deb",
    "dpkg -i garrison_OLD.deb": "dpkg -i garrison_older.deb",
    # It goes on until Ctrl-C.
    "garrison events -f": "timeout --preserve-status -s INT 30 garrison events -f; [ $? = 130 ]",
    # apt asks before it takes something away.
    "apt remove": "apt -y remove",
    "apt purge": "apt -y purge",
    "apt install": "apt -y install",
}
SECTIONS = (
    "What a host needs",
    "Debian and Ubuntu",
    "The first event",
    "Upgrading and going back",
    "When it does not start",
    "Removing",
)
"""Those that `run` follows."""
ELSEWHERE = ("dnf ", "zypper ")
"""Commands of systems that the machine is not; the scenario `rpm` uses the package that they are about."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the guide.

    Attributes:
        section: The heading above it.
        text: As it stands there, without its comment; several lines where it has a here-document.
    """

    section: str
    text: str


def commands(guide: str) -> Iterator[Command]:
    """Yield the commands of all ``sh`` blocks."""
    section, inside, waiting = "", False, ""
    for line in guide.splitlines():
        if not inside and line.startswith("## "):
            section = line[3:]
        elif line.startswith("```"):
            inside = line == "```sh"
        elif inside and waiting:
            waiting += f"\n{line}"
            if line == "END":
                yield Command(section, waiting)
                waiting = ""
        elif inside and "<<'END'" in line:
            waiting = line
        elif inside and (text := re.sub(r"\s{2,}#.*|^#.*", "", line).strip()):
            yield Command(section, text)


def follow(
    machine: Machine, transcript: Transcript, section: str, names: Mapping[str, str], *, without: tuple[str, ...] = ()
) -> None:
    """Run the commands of a section in a folder that has the packages; each has to end well.

    Args:
        machine: Where.
        transcript: Gets a step for each command.
        section: Heading.
        names: What to replace in it, by what.
        without: Beginnings of commands that are not for this place.
    """
    chosen = [each.text for each in commands(GUIDE.read_text(encoding="utf-8")) if each.section == section]
    assert chosen, f"{GUIDE.name} has no commands in {section!r}"
    for text in chosen:
        if text.startswith((*ELSEWHERE, *without)):
            continue
        with transcript.step(f"{section}: `{text.splitlines()[0]}`") as say:
            for old, new in (*NAMES.items(), *names.items()):
                text = text.replace(old, new)
            output = machine.run(f"cd /root/guide && {text}", 400)
            lines = [line for line in output.splitlines() if line.strip()]
            say(f"… {lines[-1].strip()[:100]}" if lines else "done")


def run(machine: Machine, transcript: Transcript, goods: Goods) -> None:
    """Go through the guide on a machine that has been started; joining a fleet is part of the scenario `product`."""
    agent = Agent(machine)
    steps.booted(machine, transcript)
    machine.run(
        "mkdir /root/guide && cd /root/guide && ln -s /media/garrison.deb garrison_here.deb\n"
        "sha256sum garrison_here.deb > SHA256SUMS\n"
    )
    follow(machine, transcript, "What a host needs", {})
    follow(machine, transcript, "Debian and Ubuntu", {})
    steps.bear_with(agent)
    agent.wait_running()
    follow(machine, transcript, "The first event", {})
    machine.run("garrison start --no-wait files")
    machine.run("ln -s /media/garrison.deb /root/guide/garrison_new.deb")
    machine.run("ln -s /media/older.deb /root/guide/garrison_older.deb")
    with transcript.step("Upgrading and going back: `dpkg -i garrison_OLD.deb`") as say:
        machine.run("cd /root/guide && dpkg -i garrison_older.deb", 400)
        say(f"{OLDER} runs")
    follow(machine, transcript, "Upgrading and going back", {})
    agent.wait_running()
    assert agent.version() == goods.version
    follow(machine, transcript, "When it does not start", {})
    follow(machine, transcript, "Removing", {}, without=("rm ",))
