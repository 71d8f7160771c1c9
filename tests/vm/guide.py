"""``docs/install.md`` tried line by line: every command as it stands there, but for the names of files and hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.vm.machine import Machine
from tests.vm.transcript import Transcript

FOLDER = "/root/guide"
GUIDE = Path(__file__).parents[2] / "docs" / "install.md"
NAMES = {
    "./garrison_NEW.deb": "./garrison_new.deb",
    "dpkg -i garrison_OLD.deb": "dpkg -i garrison_older.deb",
    # It goes on until Ctrl-C, which is pressed when there is something to see.
    "garrison events -f": "set -m; garrison events -f > events & pid=$!\nuntil [ -s events ]; do sleep 0.5; done\n"
    "kill -INT $pid; wait $pid; [ $? = 130 ] && tail -n 1 events",
    # apt asks before it takes something away.
    "apt remove": "apt -y remove",
    "apt purge": "apt -y purge",
    "apt install": "apt -y install",
}
SECTIONS = {
    "What a host needs": "product",
    "Debian and Ubuntu": "product",
    "The first event": "product",
    "Joining a fleet": "product",
    "Upgrading and going back": "upgrade",
    "When it does not start": "upgrade",
    "Removing": "upgrade",
}
"""The scenarios that follow them; what of "Removing" is for RPM is in `rpm`."""
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


def chosen(section: str) -> list[str]:
    """Return the commands of a section."""
    found = [each.text for each in commands(GUIDE.read_text(encoding="utf-8")) if each.section == section]
    assert found, f"{GUIDE.name} has no commands in {section!r}"
    return found


def prepare(machine: Machine, **packages: str) -> None:
    """Make the folder that has what the guide's reader has: packages, by their names there without the suffix."""
    links = "".join(f"ln -s /media/{target}.deb {name}.deb; " for name, target in packages.items())
    machine.run(f"mkdir -p {FOLDER} && cd {FOLDER} && {links} sha256sum *.deb > SHA256SUMS")


def follow(
    machine: Machine,
    transcript: Transcript,
    section: str,
    names: Mapping[str, str] | None = None,
    *,
    without: tuple[str, ...] = (),
) -> None:
    """Run the commands of a section in the guide's folder; each has to end well.

    Args:
        machine: Where.
        transcript: Gets a step for each command.
        section: Heading.
        names: What to replace in it, by what.
        without: Beginnings of commands that are not for this place.
    """
    for text in chosen(section):
        if text.startswith((*ELSEWHERE, *without)):
            continue
        with transcript.step(f"{section}: `{text.splitlines()[0]}`") as say:
            output = machine.run(f"cd {FOLDER}\n{named(text, names)}", 400)
            lines = [line for line in output.splitlines() if line.strip()]
            say(f"… {lines[-1].strip()[:100]}" if lines else "done")


def named(text: str, names: Mapping[str, str] | None = None) -> str:
    """Return a command of the guide with the names of this place."""
    for old, new in (*NAMES.items(), *(names or {}).items()):
        text = text.replace(old, new)
    return text
