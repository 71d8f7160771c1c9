"""Completion for fish, 3.0 or newer: options and commands come with their explanation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from garrison.fleet.manual.bash import asking
from garrison.fleet.manual.commandline import HELP, Command, Kind, Option, Value

_HEAD: Final = """\
# Completion of PROGRAM for fish. Made from the program's own command line by garrison.fleet.manual: do not edit.

# Whether the words before the cursor lead to a command, such as "fleet hosts", or to none yet: "".
function __PROGRAM_at
    set -l at ''
    set -l skip 0
    set -l words (commandline -opc)
    for word in $words[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch "$at:$word"
VALUED
COMMANDS
        case ':-*'
            continue
        case '*'
            break
        end
    end
    test "$at" = "$argv[1]"
end

complete -c PROGRAM -f
"""

_WORKERS: Final = """\

# The workers that the agent has; it is given half a second.
function __PROGRAM_workers
    set -l front
    set -l words (commandline -opc)
    for word in $words[2..-1]
        contains -- $word COMMANDS; and break
        set front $front (string escape --no-quoted -- $word)
    end
    env COMP_WORDS="PROGRAM $front COMMAND" COMP_CWORD=1000 VARIABLE=complete_bash PROGRAM 2>/dev/null
end
"""


def script(program: Command) -> str:
    """Return the script for a program, to be found as ``PROGRAM.fish``."""
    commands = list(program.below)
    head = _HEAD.replace("VALUED\n", "".join(f"        {line}\n" for line in _valued(commands)))
    head = head.replace("COMMANDS\n", "".join(f"        {line}\n" for line in _steps(commands)))
    parts = [head]
    if workers := asking(commands):
        text = _WORKERS.replace("COMMANDS", " ".join(each.name for each in program.commands))
        parts.append(text.replace("COMMAND", workers).replace("VARIABLE", f"_{program.name.upper()}_COMPLETE"))
    for command in commands:
        parts.append("\n")
        condition = _quoted(f"__PROGRAM_at {_quoted(command.path)}")
        parts += [f"complete -c PROGRAM -n {condition} {rest}\n" for rest in _offers(command)]
    return "".join(parts).replace("PROGRAM", program.name)


def _valued(commands: list[Command]) -> Iterator[str]:
    """Yield what steps over the values of options in front of a command."""
    for command in commands:
        names = [name for option in command.options if option.value for name in option.names]
        if command.commands and names:
            yield "case " + " ".join(_quoted(f"{command.path}:{name}") for name in names)
            yield "    set skip 1"


def _steps(commands: list[Command]) -> Iterator[str]:
    for command in commands:
        for each in command.commands:
            yield f"case {_quoted(f'{command.path}:{each.name}')}"
            yield f"    set at {_quoted(each.path)}"


def _offers(command: Command) -> Iterator[str]:
    for each in command.commands:
        yield f"-a {each.name} -d {_quoted(each.summary)}"
    for option in (*command.options, HELP):
        yield from _option(option)
    for argument in command.arguments:
        if offer := _offer(argument.value):
            yield offer


def _option(option: Option) -> Iterator[str]:
    value = ""
    if option.value:
        # -x: something follows, and it is no file.
        value = f" {'-r' if option.value.kind is Kind.FILE else '-x'} {_offer(option.value)}".rstrip()
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    yield f"{' '.join(names)}{value} -d {_quoted(option.help)}"
    for name in option.off:
        yield f"-l {name[2:]} -d {_quoted(option.opposite)}"


def _offer(value: Value) -> str:
    return {
        Kind.WORD: "",
        Kind.FILE: "-F",
        Kind.FOLDER: "-a '(__fish_complete_directories (commandline -ct))'",
        Kind.WORKER: "-a '(__PROGRAM_workers)'",
        Kind.CHOICE: f"-a '{' '.join(value.choices)}'",
    }[value.kind]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
