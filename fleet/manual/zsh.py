"""Completion for zsh, through its own `_arguments`: options and commands come with their explanation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from garrison.fleet.manual.bash import asking
from garrison.fleet.manual.commandline import HELP, Argument, Command, Kind, Option, Value

_HEAD: Final = """\
#compdef PROGRAM
# Completion of PROGRAM for zsh. Made from the program's own command line by garrison.fleet.manual: do not edit.

"""

_WORKERS: Final = """\
# The workers that the agent has; it is given half a second.
_PROGRAM_workers() {
  local -a names expl
  names=(${(f)"$(env COMP_WORDS="PROGRAM $front COMMAND" COMP_CWORD=1000 VARIABLE=complete_bash PROGRAM 2> /dev/null)"})
  _wanted workers expl worker compadd -a names
}

"""

_GROUP: Final = """\
FUNCTION() {
  local curcontext="$curcontext" ret=1
  local -a state line
  local -A opt_args
SETUP  _arguments -C -S -s \\
SPECS    '1: :->command' \\
    '*:: :->rest' && ret=0
  case $state in
  command)
    local -a commands
    commands=(
COMMANDS    )
    _describe -t commands command commands && ret=0
    ;;
  rest)
FRONT    curcontext="${curcontext%:*}-$line[1]:"
    case $line[1] in
CALLS    esac
    ;;
  esac
  return ret
}

"""

# The options in front of the command tell which agent is asked for its workers.
_FRONT: Final = """\
    local option
    for option in OPTIONS; do
      (( $+opt_args[$option] )) && front+=" $option ${opt_args[$option]}"
    done
"""

_LEAF: Final = """\
FUNCTION() {
  _arguments -S -s \\
SPECS}

"""


def script(program: Command) -> str:
    """Return the script for a program, to be found as ``_PROGRAM`` in one of the folders of fpath."""
    commands = list(program.below)
    workers = asking(commands)
    parts = [_HEAD]
    if workers:
        parts.append(_WORKERS.replace("COMMAND", workers).replace("VARIABLE", f"_{program.name.upper()}_COMPLETE"))
    parts += [_function(program, command, asks=bool(workers)) for command in reversed(commands)]
    parts.append('_PROGRAM "$@"\n')
    return "".join(parts).replace("PROGRAM", program.name)


def _name(command: Command) -> str:
    return "_PROGRAM" + "".join(f"-{word}" for word in command.path.split())


def _function(program: Command, command: Command, *, asks: bool) -> str:
    specs = [spec for option in (*command.options, HELP) for spec in _option(option)]
    if not command.commands:
        specs += [_argument(argument, number) for number, argument in enumerate(command.arguments, 1)]
        text = "".join(f"    {spec} \\\n" for spec in specs).removesuffix(" \\\n") + "\n"
        return _LEAF.replace("FUNCTION", _name(command)).replace("SPECS", text)
    top = command is program and asks
    valued = [name for option in command.options if option.value for name in option.names]
    replacements = {
        "FUNCTION": _name(command),
        "SETUP": "  local front=''\n" if top else "",
        "SPECS": "".join(f"    {spec} \\\n" for spec in specs),
        "COMMANDS": "".join(f"      {_quoted(f'{each.name}:{each.summary}')}\n" for each in command.commands),
        "FRONT": _FRONT.replace("OPTIONS", " ".join(valued)) if top and valued else "",
        "CALLS": "".join(f"    {each.name}) {_name(each)} && ret=0 ;;\n" for each in command.commands),
    }
    text = _GROUP
    for word, replacement in replacements.items():
        text = text.replace(word, replacement)
    return text


def _option(option: Option) -> Iterator[str]:
    """Yield the specification of each of an option's names; the others are no longer offered when one was given."""
    names = option.names + option.off
    others = "*" if option.repeatable else "(" + " ".join(names) + ")"
    for name in names:
        text = option.opposite if name in option.off else option.help
        text = text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
        join = "" if option.value is None else "=" if name.startswith("--") else "+"
        yield _quoted(f"{others}{name}{join}[{text}]" + (_offer(option.value) if option.value else ""))


def _argument(argument: Argument, number: int) -> str:
    where = "*" if argument.many else str(number)
    return _quoted(where + ("" if argument.required or argument.many else ":") + _offer(argument.value))


def _offer(value: Value) -> str:
    action = {
        Kind.WORD: " ",
        Kind.FILE: "_files",
        Kind.FOLDER: "_files -/",
        Kind.WORKER: "_PROGRAM_workers",
        Kind.CHOICE: f"({' '.join(value.choices)})",
    }[value.kind]
    return ":" + value.metavar.replace(":", "\\:") + ":" + action


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
