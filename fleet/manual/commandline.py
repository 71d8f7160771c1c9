"""Both programs' command lines as plain values, which reference page, manual and completions are made from."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, get_args, get_origin, get_type_hints

import typer.main


class Kind(Enum):
    """What a shell can offer where a value is expected."""

    WORD = "nothing: it is the user's own"
    FILE = "files"
    FOLDER = "folders"
    CHOICE = "one of a few words"
    WORKER = "the agent's workers, asked for at that moment"


KINDS: Final = {
    "FILE": Kind.FILE,
    "PATH": Kind.FILE,
    "FOLDER": Kind.FOLDER,
    "WORKER": Kind.WORKER,
    "SOURCE": Kind.WORKER,
    "HOST": Kind.WORD,
    "HOST:PORT,...": Kind.WORD,
    "I/N": Kind.WORD,
    "N": Kind.WORD,
    "NAME": Kind.WORD,
    "NAME|IP": Kind.WORD,
    "PREFIX": Kind.WORD,
    "SECONDS": Kind.WORD,
    "TEXT": Kind.WORD,
    "TOPIC": Kind.WORD,
}
"""What stands for a value in the help, and what that means for a shell. A new one has to be decided here."""


@dataclass(frozen=True, slots=True)
class Value:
    """What follows an option, or is an argument.

    Attributes:
        metavar: What stands for it in the help.
        kind: What a shell can offer.
        choices: All values there are, for `Kind.CHOICE`.
    """

    metavar: str
    kind: Kind
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        names: Its names, the shortest first.
        off: Names that mean the opposite, such as ``--no-wait``.
        help: What it does.
        value: What follows it; None: nothing.
        default: What holds without it, as text; empty where there is nothing to say.
        repeatable: Whether it may be given more than once.
        variable: The environment variable that can stand in for it; empty: none.
    """

    names: tuple[str, ...]
    off: tuple[str, ...]
    help: str
    value: Value | None
    default: str
    repeatable: bool
    variable: str = ""

    @property
    def opposite(self) -> str:
        """What the names in `off` do."""
        return f"The opposite of {self.names[-1]}."


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument.

    Attributes:
        value: What it is.
        help: What it means.
        required: Whether it has to be there.
        many: Whether there may be more of it.
    """

    value: Value
    help: str
    required: bool
    many: bool

    @property
    def usage(self) -> str:
        """How the help writes it: ``WORKER...``, ``[WORKER]``."""
        text = self.value.metavar + ("..." if self.many else "")
        return text if self.required else f"[{text}]"


@dataclass(frozen=True, slots=True)
class Command:
    """A program, a group of commands or a command.

    Attributes:
        name: Its last word, such as ``hosts``.
        path: All words behind the program's name, such as ``fleet hosts``; empty for a program.
        help: What it does: a sentence, then further paragraphs with an empty line between them.
        options: Its own options; ``--help`` is not among them.
        exclusive: Names of options of which only one may be given.
        arguments: Its arguments.
        commands: What a group consists of.
    """

    name: str
    path: str
    help: str
    options: tuple[Option, ...]
    exclusive: frozenset[str]
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]

    @property
    def summary(self) -> str:
        """The first sentence of the help, without its full stop."""
        return " ".join(self.help.partition("\n\n")[0].split()).partition(". ")[0].removesuffix(".")

    @property
    def below(self) -> Iterator[Command]:
        """This one and all commands below it."""
        yield self
        for command in self.commands:
            yield from command.below


HELP: Final = Option(("-h", "--help"), (), "Show help.", None, "", False)
"""What every program, group and command has besides its own options."""


def operator() -> Command:
    """Return the command line of ``garrison``.

    Raises:
        ValueError: An option or argument has a value that is not in `KINDS`.
    """
    from garrison.fleet.cli.app import app

    return _typer_command(typer.main.get_command(app), "garrison", "")


def master() -> Command:
    """Return the command line of ``garrisond``; raises what `operator` does."""
    from garrison.supervisor.main import parser

    made = parser()
    exclusive = [
        name
        for group in made._mutually_exclusive_groups  # noqa: SLF001 - argparse has no public way to ask
        for action in group._group_actions  # noqa: SLF001
        for name in action.option_strings
    ]
    options = tuple(
        _argparse_option(action)
        for action in made._actions  # noqa: SLF001
        if action.option_strings and action.dest != "help"
    )
    return Command("garrisond", "", made.description or "", options, frozenset(exclusive), (), ())


def _argparse_option(action: argparse.Action) -> Option:
    value = None if action.nargs == 0 else _value(str(action.metavar), ())
    names = tuple(sorted(action.option_strings, key=len))
    text = action.help or ""
    return Option(names, (), text[:1].upper() + text[1:] + "." * (text[-1:] != "."), value, "", False)


def _typer_command(command: Any, name: str, path: str) -> Command:
    function = inspect.unwrap(command.callback) if command.callback else None
    types = get_type_hints(function) if function else {}
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    return Command(
        name=name,
        path=path,
        help=inspect.cleandoc(command.help or ""),
        options=tuple(_typer_option(each, types.get(each.name)) for each in options if not each.hidden),
        exclusive=frozenset(),
        arguments=tuple(_typer_argument(each, types.get(each.name)) for each in arguments),
        commands=tuple(
            _typer_command(below, word, f"{path} {word}".strip())
            for word, below in getattr(command, "commands", {}).items()
            if not below.hidden
        ),
    )


def _typer_option(parameter: Any, annotation: Any) -> Option:
    names = tuple(sorted(parameter.opts, key=len))
    default = parameter.default
    text = ""
    if parameter.secondary_opts:
        text = names[-1] if default else parameter.secondary_opts[0]
    elif isinstance(default, int | float | str) and not parameter.is_flag and default != "":
        text = str(default)
    value = None if parameter.is_flag else _value(parameter.metavar, _choices(annotation))
    variable = parameter.envvar if isinstance(parameter.envvar, str) else ""
    off = tuple(parameter.secondary_opts)
    return Option(names, off, parameter.help or "", value, text, parameter.multiple, variable)


def _typer_argument(parameter: Any, annotation: Any) -> Argument:
    metavar = parameter.metavar.strip("[]").removesuffix("...")
    value = _value(metavar, _choices(annotation))
    return Argument(value, parameter.help or "", parameter.required, parameter.nargs == -1)


def _value(metavar: str, choices: tuple[str, ...]) -> Value:
    if choices:
        return Value(metavar, Kind.CHOICE, choices)
    kind = KINDS.get(metavar)
    if kind is None:
        raise ValueError(f"what a shell can offer for {metavar} is not said in {__name__}.KINDS; add it there")
    return Value(metavar, kind)


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of the enumeration in an annotation such as ``list[Level] | None``."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, Enum):
        return tuple(str(each.value) for each in annotation)
    for inner in get_args(annotation):
        if found := _choices(inner):
            return found
    return ()
