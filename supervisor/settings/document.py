"""Writes the reference page of the settings from the schema: ``python -m …document [--check] FILE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from garrison.supervisor.settings import units
from garrison.supervisor.settings.convert import describe_range
from garrison.supervisor.settings.fields import Setting, Shape, settings_of
from garrison.supervisor.settings.schema import BUILTIN_WORKERS, BYTES, Settings

EXAMPLE = """\
[agent]
groups = ["web", "frankfurt"]          # the first one wins where two say something different
killswitch_file = "/etc/garrison/killswitch"

[agent.budget]                         # all workers together
cpu_quota_percent = 25
memory_max = "320 MiB"

[workers.process]                      # the built-in of that name
priority = 80
essential = true

[workers.process.budget]
cpu_quota_percent = 15
cpu_trip_percent = 8
sample_seconds = "5s"

[workers.inventory]                    # code of your own
modules = ["/opt/inventory/module.py:Inventory"]
priority = 10
settings = { interval_seconds = 3600, paths = ["/opt", "/srv"] }

[workers.inventory.budget]
cpu_quota_percent = 5
cpu_trip_percent = 3
memory_high = "32 MiB"
memory_max = "48 MiB"

[workers.probe]                        # an external program, in any language
command = ["/usr/libexec/probe", "--quiet"]
environment = { LANG = "C.UTF-8" }

[store]
backend = "etcd"

[store.etcd]                           # addresses and names: survives DNS outages and members that move
endpoints = ["10.0.0.1:2379", "10.0.0.2:2379", "etcd3.example.com"]
ca_cert = "/etc/garrison/tls/ca.crt"
cert = "/etc/garrison/tls/agent.crt"
key = "/etc/garrison/tls/agent.key"

[sink]
backend = "file"

[sink.file]
max_bytes = "50 MiB"                   # two files of this size

[log]
level = "notice"
"""
"""A complete file, shown on the page; a test loads it."""

_NOTE = "<!-- Generated from supervisor/settings/schema.py by `make docs`. Change the schema, not this page. -->"

INTRODUCTION = f"""\
`garrisond` reads one file in TOML. It says what the agent needs before it can reach its store; everything else
comes from the store. No setting is required: without a file the agent runs on the defaults below.

## Where the file is looked for

1. The file named by `--config FILE`. It has to be there.
2. As root: `/etc/garrison/garrison.toml`.
3. As another user: `$XDG_CONFIG_HOME/garrison/garrison.toml` (`~/.config/garrison/garrison.toml`), else
   `/etc/garrison/garrison.toml` where that user may read it.
4. None of these: the defaults.

`garrison` finds the agent's control socket through the same file. `garrisond --check` lists every problem of the
file at once, each with its key and a remedy, and `garrisond --print-config` prints the settings in force. A file
with a problem is refused as a whole: exit code 78, and nothing is started. An unknown key is a problem too.

Keep the file writable for root only: it decides what the agent runs. The agent warns where others may change it.

## Reading it again

On SIGHUP (`systemctl reload garrison`) the agent reads the same file again. A file with a problem changes nothing:
the old settings stay in force and the log says why. Workers that were added are started, those that were removed
are stopped, and those whose command, modules or environment changed are started anew; budgets and log levels
change while a worker runs. Settings marked *restart* below stay as they are until the agent is restarted; the log
names those that differ.

## Units

- **bytes**: a whole number, or a string with a unit: {", ".join(f"`{unit}`" for unit in units.BYTE_UNITS)}.
  `KiB`, `MiB`, … count in 1024, `kB`, `MB`, … in 1000; `K`, `M` and `G` alone are refused as ambiguous.
  Fractions (`"1.5 GiB"`) are cut to whole bytes, and case does not matter.
- **seconds**: a number, or a string with a unit: {", ".join(f"`{unit}`" for unit in units.SECOND_UNITS)},
  as in `"250ms"` or `"2m"`.
- **percent of one core**: a number without a percent sign. 100 is one core, 200 are two, whatever the host has.

## A complete example

```toml
{EXAMPLE}```
"""
"""What holds for the whole file, in Markdown; the manual page has it too."""


class Row(NamedTuple):
    """What there is to say about one setting, in Markdown."""

    name: str
    type: str
    default: str
    range: str
    text: str


class Section(NamedTuple):
    """One table of the file: its key such as ``store.etcd``, what it is for, and its settings."""

    key: str
    paragraphs: tuple[str, ...]
    rows: tuple[Row, ...]


def page() -> str:
    """Return the whole reference page, in Markdown."""
    return "\n".join([f"# Configuration\n\n{_NOTE}\n", INTRODUCTION, *(_section(each) for each in sections())])


def sections() -> Iterator[Section]:
    """Yield every table of the file in the order of the page; the manual page is made from them too."""
    yield from _sections(Settings, "")


def _sections(struct: type[msgspec.Struct], key: str) -> Iterator[Section]:
    below: list[tuple[type[msgspec.Struct], str]] = []
    own = []
    for setting in settings_of(struct).values():
        name = f"{key}.{setting.name}".lstrip(".")
        inner, many = setting.shape.table, setting.shape.tables
        if inner is not None:
            below.append((inner, name))
        elif many is not None:
            below.append((many, f"{name}.NAME"))
        else:
            own.append(_row(setting))
    if key:
        paragraphs = [" ".join((struct.__doc__ or "").split())]
        if key == "workers.NAME":
            paragraphs.append(
                f"Without any `[workers]` table the built-in workers run: {_names(BUILTIN_WORKERS)}. "
                "With one, exactly those that it lists; an empty `[workers]` means none."
            )
        yield Section(key, tuple(paragraphs), tuple(own))
    for inner_struct, name in below:
        yield from _sections(inner_struct, name)


def _row(setting: Setting) -> Row:
    text = setting.shape.description + (" *restart*" if setting.shape.extra.get("restart") else "")
    return Row(setting.name, _type(setting.shape), _default(setting), _range(setting.shape), text)


def _section(section: Section) -> str:
    lines = [f"## `[{section.key}]`\n", *(f"{paragraph}\n" for paragraph in section.paragraphs)]
    if section.rows:
        lines += ["| setting | type | default | range | |", "|---|---|---|---|---|"]
        for row in section.rows:
            cells = (f"`{row.name}`", *row[1:])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _type(shape: Shape) -> str:
    words: dict[Any, str] = {bool: "true or false", str: "string", int: "whole number", float: "number"}
    if get_origin(shape.bare) is tuple:
        return "list of strings"
    if get_origin(shape.bare) is dict:
        return "table of strings" if get_args(shape.bare)[1] is str else "table"
    word = "string" if get_origin(shape.bare) is Literal else words[shape.bare]
    if shape.extra.get("form") in ("path", "textfile"):
        word = "absolute path"
    return f"{word}, {shape.unit}" if shape.unit else word


def _default(setting: Setting) -> str:
    value = setting.default
    automatic = setting.shape.extra.get("automatic")
    if automatic and not value:
        return f"automatic: {automatic}"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[]`"
    if isinstance(value, dict):
        return "empty"
    if setting.shape.unit == BYTES:
        return f"`{units.format_bytes(value)}`"
    return f"`{value:g}`"


def _range(shape: Shape) -> str:
    if get_origin(shape.bare) is Literal:
        return _names(get_args(shape.bare))
    if shape.bare in (int, float):
        text = describe_range(shape)
        unit = shape.unit
        return text.removesuffix(unit).rstrip() if unit else text
    if get_origin(shape.bare) in (tuple, dict) and shape.max_length is not None:
        items = f"at most {shape.max_length}"
        pattern = shape.item.extra.get("pattern_help")
        return f"{items}; each {pattern}" if pattern else items
    return str(shape.extra.get("pattern_help", ""))


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def serve(make: Callable[[], str], description: str, file_help: str, arguments: Sequence[str] | None = None) -> int:
    """Write a page, or with ``--check`` compare it; 1 means that it differs from what it is made from.

    Args:
        make: Returns the page.
        description: What the program does, for its help.
        file_help: Which file it writes, for its help.
        arguments: The command line; None: this process's own.
    """
    parser = argparse.ArgumentParser(prog="document", description=description)
    parser.add_argument("file", help=file_help)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is out of date")
    options = parser.parse_args(arguments)
    text = make()
    if not options.check:
        with open(options.file, "w", encoding="utf-8") as file:
            file.write(text)
        return 0
    try:
        with open(options.file, encoding="utf-8") as file:
            found = file.read()
    except FileNotFoundError:
        found = ""
    if found == text:
        return 0
    import difflib

    difference = difflib.unified_diff(found.splitlines(), text.splitlines(), options.file, "schema", lineterm="", n=0)
    lines = list(difference)
    sys.stderr.write("\n".join(lines[:40]) + "\n")
    if len(lines) > 40:
        sys.stderr.write(f"… and {len(lines) - 40} more lines\n")
    sys.stderr.write(f"{options.file} is out of date: run `make docs`\n")
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page of the settings, or with ``--check`` compare it."""
    what = "Write the reference page of the settings."
    return serve(page, what, "the page, docs/configuration.md", arguments)


if __name__ == "__main__":
    sys.exit(main())
