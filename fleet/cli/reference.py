"""Writes the command part of the reference page from the commands themselves, so that they cannot disagree.

``python -m garrison.fleet.cli.reference docs/cli.md`` brings the page up to date; with ``--check`` it only says
whether it is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any, Final

import typer.main

from garrison.fleet.cli.app import app
from garrison.fleet.cli.exits import MEANINGS

BEGIN: Final = "<!-- begin: made by garrison.fleet.cli.reference -->"
END: Final = "<!-- end -->"

_BUILT_IN: Final = frozenset({"install_completion", "show_completion", "help"})


def document() -> str:
    """Return the generated part: exit codes, options for all commands, and each command."""
    group: Any = typer.main.get_command(app)
    lines = ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in MEANINGS.items()]
    lines += ["", "## Options in front of the command", ""]
    lines += _options(group)
    lines += [
        "- `--install-completion`, `--show-completion`: completion for your shell, names of workers included.",
        "- `-h`, `--help`: help, here and behind each command.",
        "",
    ]
    for name, command in _commands(group):
        lines += [f"## garrison {name}", "", "```", f"garrison {name}{_usage(command)}", "```", ""]
        lines += [inspect.cleandoc(command.help or ""), ""]
        options = _options(command)
        lines += [*options, ""] if options else []
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def renewed(page: str) -> str:
    """Return a page with its generated part replaced.

    Raises:
        ValueError: The page has no such part.
    """
    before, found, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"the page has no part between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{document()}\n{END}{after}"


def _usage(command: Any) -> str:
    words = ["[OPTIONS]"] if any(_is_option(parameter) for parameter in command.params) else []
    words += [parameter.metavar for parameter in command.params if not _is_option(parameter)]
    return "".join(f" {word}" for word in words)


def _options(command: Any) -> list[str]:
    lines = []
    for parameter in command.params:
        if not _is_option(parameter) or parameter.name in _BUILT_IN:
            continue
        names = "`, `".join(sorted(parameter.opts, key=len))
        if parameter.secondary_opts:
            names += "`, `" + "`, `".join(parameter.secondary_opts)
        value = "" if parameter.is_flag else f" {parameter.metavar}"
        given = isinstance(parameter.default, int | float | str) and not parameter.is_flag and parameter.default != ""
        default = f" Default: {parameter.default}." if given else ""
        if parameter.secondary_opts:
            default = f" Default: `{parameter.opts[0] if parameter.default else parameter.secondary_opts[0]}`."
        lines.append(f"- `{names}`{value}: {parameter.help}{default}")
    return lines


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def main() -> None:
    """Bring a page up to date, or check it."""
    paths = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(paths) != 1:
        sys.stderr.write("usage: python -m garrison.fleet.cli.reference [--check] FILE\n")
        sys.exit(64)
    with open(paths[0], encoding="utf-8") as file:
        page = file.read()
    new = renewed(page)
    if "--check" in sys.argv:
        if new != page:
            sys.stderr.write(f"{paths[0]} is out of date; run python -m garrison.fleet.cli.reference {paths[0]}\n")
            sys.exit(1)
    elif new != page:
        with open(paths[0], "w", encoding="utf-8") as file:
            file.write(new)


if __name__ == "__main__":
    main()
