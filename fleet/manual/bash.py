"""Completion for bash, 4.2 or newer, with or without the bash-completion package."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Final

from garrison.fleet.manual.commandline import HELP, Command, Kind, Option, Value

# @ stands for the function's name, which is made of the program's.
_TEMPLATE: Final = """\
# Completion of PROGRAM for bash. Made from the program's own command line by garrison.fleet.manual: do not edit.

# What follows an option. Arguments: the command so far, the option. Sets `expects`; empty: nothing follows.
@_value() {
    case "$1:$2" in
OPTION_VALUES
    *) expects='' ;;
    esac
}

# What an argument is. Arguments: the command, how many arguments stand before it. Sets `expects`.
@_argument() {
    case "$1:$2" in
ARGUMENTS
    *) expects=word ;;
    esac
}

# The options of a command. Sets `words`.
@_options() {
    case "$1" in
OPTIONS
    *) words='' ;;
    esac
}

# The commands of a group. Sets `words`.
@_commands() {
    case "$1" in
COMMANDS
    *) words='' ;;
    esac
}

WORKERS
@() {
    local current="${COMP_WORDS[COMP_CWORD]}" at='' expects='' words='' front='' ended='' glued='' lead=''
    local -i count=0 index
    local word
    for ((index = 1; index < COMP_CWORD; index++)); do
        word="${COMP_WORDS[index]}"
        # bash takes --option=value and host:port apart at these.
        if [[ $word == [=:] ]]; then
            glued=1 front+="$word"
            continue
        fi
        [[ -n $at ]] || { [[ -n $glued ]] && front+="$word" || front+=" $word"; }
        if [[ -n $glued ]]; then
            glued='' expects=''
        elif [[ -n $expects ]]; then
            expects=''
        elif [[ -z $ended && $word == -- ]]; then
            ended=1
        elif [[ -z $ended && $word == -?* ]]; then
            [[ $word == *=* ]] || @_value "$at" "$word"
        else
            @_commands "$at"
            if [[ -z $ended && " $words " == *" $word "* ]]; then
                [[ -n $at ]] || front="${front% *}"
                at="${at:+$at }$word" count=0
            else
                count+=1
            fi
        fi
    done
    [[ $current == [=:] ]] && current=''
    words=''
    if [[ -z $expects && -z $ended && $current == --*=* ]]; then
        @_value "$at" "${current%%=*}"
        lead="${current%%=*}=" current="${current#*=}"
    elif [[ -z $expects && -z $ended && $current == -* ]]; then
        expects=words
        @_options "$at"
    elif [[ -z $expects ]]; then
        @_commands "$at"
        if [[ -n $words && -z $ended ]]; then
            expects=words
        else
            @_argument "$at" "$count"
        fi
    fi
    COMPREPLY=()
    case "$expects" in
    file) compopt -o default ;;
    folder) compopt -o dirnames ;;
    workers) words="$(@_workers "$front")" ;;
    words:*) words="${expects#words:}" ;;
    words) ;;
    *) words='' ;;
    esac
    if [[ -n $words ]]; then
        mapfile -t COMPREPLY < <(compgen -P "$lead" -W "$words" -- "$current")
    fi
}

complete -F @ PROGRAM
"""

_WORKERS: Final = """\
# The workers that the agent has, one a line; it is given half a second. Argument: the options in front of the command.
@_workers() {
    env COMP_WORDS="PROGRAM$1 COMMAND" COMP_CWORD=1000 VARIABLE=complete_bash PROGRAM 2> /dev/null
}

"""


def script(program: Command) -> str:
    """Return the script for a program."""
    commands = list(program.below)
    workers = asking(commands)
    text = _TEMPLATE.replace("WORKERS\n", _WORKERS.replace("COMMAND", workers) if workers else "")
    for name, lines in (
        ("OPTION_VALUES", _option_values(commands)),
        ("ARGUMENTS", _arguments(commands)),
        ("OPTIONS", _options(commands)),
        ("COMMANDS", _commands(commands)),
    ):
        text = text.replace(f"{name}\n", "".join(f"    {line}\n" for line in lines))
    if not workers:
        text = "".join(line for line in text.splitlines(keepends=True) if "@_workers" not in line)
    variable = f"_{program.name.upper()}_COMPLETE"
    return text.replace("VARIABLE", variable).replace("PROGRAM", program.name).replace("@", f"_{program.name}")


def asking(commands: Iterable[Command]) -> str:
    """Return a command whose argument is a worker: asked for what can follow it, the program lists them. Or ""."""
    for command in commands:
        if any(argument.value.kind is Kind.WORKER for argument in command.arguments):
            return command.path
    return ""


def _option_values(commands: list[Command]) -> Iterator[str]:
    for command in commands:
        for option in command.options:
            if option.value is not None:
                patterns = "|".join(shlex.quote(f"{command.path}:{name}") for name in option.names)
                yield f"{patterns}) expects={_expected(option.value)} ;;"


def _arguments(commands: list[Command]) -> Iterator[str]:
    for command in commands:
        for number, argument in enumerate(command.arguments):
            pattern = shlex.quote(f"{command.path}:") + ("*" if argument.many else str(number))
            yield f"{pattern}) expects={_expected(argument.value)} ;;"


def _options(commands: list[Command]) -> Iterator[str]:
    for command in commands:
        yield f"{shlex.quote(command.path)}) words='{' '.join(all_names(command))}' ;;"


def _commands(commands: list[Command]) -> Iterator[str]:
    for command in commands:
        if command.commands:
            yield f"{shlex.quote(command.path)}) words='{' '.join(each.name for each in command.commands)}' ;;"


def all_names(command: Command) -> list[str]:
    """Return the names of all options of a command, those of the help at the end."""
    options: tuple[Option, ...] = (*command.options, HELP)
    return [name for option in options for name in (*option.names, *option.off)]


def _expected(value: Value) -> str:
    if value.kind is Kind.CHOICE:
        return shlex.quote("words:" + " ".join(value.choices))
    return {Kind.WORD: "word", Kind.FILE: "file", Kind.FOLDER: "folder", Kind.WORKER: "workers"}[value.kind]
