"""Writes the command part of the reference page from the commands themselves, so that they cannot disagree.

``python -m garrison.fleet.cli.reference docs/cli.md`` brings the page up to date; with ``--check`` it only says
whether it is.
"""

from __future__ import annotations

import sys
from typing import Final

from garrison.fleet.cli.exits import MEANINGS
from garrison.fleet.manual.commandline import Command, Option, operator

BEGIN: Final = "<!-- begin: made by garrison.fleet.cli.reference -->"
END: Final = "<!-- end -->"

INTRODUCTION: Final = """\
`garrison` looks at and controls the agent of the host on which it runs. It asks the agent over a Unix socket,
`control.sock` in the agent's `run_dir`, and it changes nothing by itself. What it orders is *local*: a local stop
or kill is kept over restarts and wins over the store; a local start never wins over a stop in the store.

```
garrison [--config FILE] [--socket PATH] COMMAND [OPTIONS] [ARGUMENTS]
```

**Who may.** Root, and the user that the agent runs as. The socket has mode 0600, and the agent asks the kernel who
has connected. Everybody else gets exit code 77.

**Which agent.** `--socket` names the socket. Without it the configuration file tells: `--config`, else
`/etc/garrison/garrison.toml`, else the built-in defaults. Users other than root have default places of their own.

**Output.** Results go to standard output, errors to standard error: what happened, and indented below it what can be
done. A terminal gets colours unless `NO_COLOR` is set, and lines of its width. A pipe or a file gets no colours, and
lines as long as they need to be. Text that comes from workers or from the store is shown with control and
bidirectional characters as escapes, so that it cannot steer the terminal; with `--json` they are JSON escapes.

**When the agent is away or hangs.** No socket, or nobody behind it: exit code 69 and how to start it. No answer within
10 seconds (70 for commands that change something, which the agent answers when it is done): exit code 69 and where
to look. A reader that goes away (`garrison events | head`) is no error: 0.
"""
"""What holds for all commands, in Markdown; the manual page has it too."""


def document() -> str:
    """Return the generated part: introduction, exit codes, options for all commands, and each command."""
    program = operator()
    lines = [INTRODUCTION, "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in MEANINGS.items()]
    lines += ["", "## Options in front of the command", ""]
    lines += [_option(option) for option in program.options if not option.names[0].endswith("-completion")]
    lines += [
        "- `--install-completion`, `--show-completion`: completion for your shell; the packages bring their own.",
        "- `-h`, `--help`: help, here and behind each command.",
        "",
    ]
    for command in program.below:
        if not command.path or command.commands:
            continue
        lines += [f"## garrison {command.path}", "", "```", f"garrison {command.path}{_usage(command)}", "```", ""]
        lines += [command.help, ""]
        lines += [*(_option(option) for option in command.options), ""] if command.options else []
    return "\n".join(lines).rstrip() + "\n"


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


def _usage(command: Command) -> str:
    words = ["[OPTIONS]"] if command.options else []
    words += [argument.usage for argument in command.arguments]
    return "".join(f" {word}" for word in words)


def _option(option: Option) -> str:
    names = "`, `".join(option.names + option.off)
    value = f" {option.value.metavar}" if option.value else ""
    default = f"`{option.default}`" if option.off else option.default
    return f"- `{names}`{value}: {option.help}" + (f" Default: {default}." if default else "")


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
