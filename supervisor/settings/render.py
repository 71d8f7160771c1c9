"""Printing effective settings as TOML that `load` reads back as the same settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from garrison.supervisor.settings import units
from garrison.supervisor.settings.fields import settings_of
from garrison.supervisor.settings.schema import BYTES, Settings

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_ESCAPES = {ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
# TOML wants these escaped; the others are fine as they are but would spoil a terminal.
_ESCAPES |= {code: f"\\u{code:04X}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in _ESCAPES}


def to_toml(settings: Settings) -> str:
    """Return the settings as a complete TOML document, with a comment that says where they come from."""
    source = _one_line(settings.source) if settings.source else "no file: these are the built-in defaults"
    lines = [f"# Effective settings of garrisond, read from {source}."]
    if not settings.source:
        lines = [f"# Effective settings of garrisond; {source}."]
    lines += [f"# warning: {_one_line(warning)}" for warning in settings.warnings]
    lines += _table(settings, "")
    return "\n".join(lines) + "\n"


def _table(table: msgspec.Struct, key: str) -> Iterator[str]:
    """Yield the lines of a table: its values first, because TOML ends a table where a table below it begins."""
    below: list[tuple[str, Any]] = []
    values = []
    for name, setting in settings_of(type(table)).items():
        value = getattr(table, name)
        if setting.shape.table is not None or setting.shape.tables is not None:
            below.append((f"{key}.{name}".lstrip("."), value))
        elif name in ("modules", "command") and not value:
            continue  # the two exclude each other, even when one is empty
        elif setting.shape.unit == BYTES:
            values.append(f'{name} = "{units.format_bytes(value)}"')
        else:
            values.append(f"{name} = {_value(value)}")
    if key and values:
        yield from ("", f"[{key}]")
    yield from values
    for name, value in below:
        if isinstance(value, msgspec.Struct):
            yield from _table(value, name)
            continue
        if not value:
            yield from ("", f"[{name}]")  # an empty table of workers means none; leaving it out means the default
        for entry, struct in value.items():
            yield from _table(struct, f"{name}.{_key(entry)}")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return '"' + value.translate(_ESCAPES) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(str(name))} = {_value(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    raise TypeError(f"a setting cannot be of type {type(value).__name__}")


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _value(name)


def _one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
