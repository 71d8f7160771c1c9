"""``garrison doctor``: the findings of `garrison.supervisor.doctor`, for people and for programs."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Final

import msgspec
from rich.text import Text

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError
from garrison.fleet.cli.terminal import Terminal
from garrison.fleet.cli.text import plural, safe_json, sanitise
from garrison.supervisor.doctor import Finding, examine, worst

if TYPE_CHECKING:
    from garrison.supervisor.settings import Settings

_MARKS: Final = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


def show(target: Target, as_json: bool) -> int:
    """Examine the host and print the findings; return the exit code."""
    settings: Settings | None = None
    problem = ""
    try:
        settings = target.settings()
    except CliError as error:
        problem = error.message
    findings = examine(settings, problem, socket=target.socket or "", config=target.config)
    if as_json:
        document = {"status": worst(findings), "findings": findings}
        sys.stdout.write(safe_json(msgspec.json.encode(document).decode()) + "\n")
    else:
        terminal = Terminal()
        for line in render(findings, terminal):
            terminal.print(line)
    return exits.FAILED if worst(findings) == "fail" else exits.OK


def render(findings: list[Finding], terminal: Terminal) -> list[Text]:
    """Return the findings as lines, by group, each with what can be done about it."""
    lines: list[Text] = []
    width = max((len(finding.name) for finding in findings), default=0) + 2
    for group, members in groupby(findings, key=lambda finding: finding.group):
        lines += [Text(sanitise(group), style="bold")]
        for finding in members:
            mark, style = _MARKS[finding.status]
            head = Text(f"  {mark} ", style=style) + Text(sanitise(finding.name).ljust(width))
            detail = sanitise(finding.detail, newlines=True).splitlines() or [""]
            lines += terminal.lines(head + Text(detail[0]), width + 4)
            for more in detail[1:]:
                lines += terminal.lines(Text(" " * (width + 4) + more), width + 4)
            for remedy in sanitise(finding.remedy, newlines=True).splitlines():
                lines += terminal.lines(Text(" " * (width + 4)) + Text("→ ", style="dim") + Text(remedy), width + 6)
        lines.append(Text())
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    verdict = Text(f"{plural(len(findings) - failed - warned, 'check')} good, {plural(warned, 'warning')}, ")
    lines.append(verdict.append(f"{failed} failed", style="bold red" if failed else "green"))
    return lines
