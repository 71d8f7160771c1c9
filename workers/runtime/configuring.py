"""Checking a configuration against the modules' own structs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from garrison.workers.runtime.module import ConfigError, Module

_UNKNOWN = "Object contains unknown field `"
_AT = " - at `"
_KEY = "key` in `"


def check(kinds: Mapping[str, type[Module]], names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return each module's checked configuration.

    Args:
        kinds: Class by module name, of the modules that were loaded.
        names: All module names of the worker.
        settings: The table of the one module, or a table of tables by module name where there are several.

    Raises:
        ConfigError: Something does not fit; the text names module, field, and what is wrong.
    """
    if len(names) == 1:
        tables: Mapping[str, Any] = {names[0]: settings}
    else:
        tables = settings
        for name in tables:
            if name not in names:
                raise ConfigError(
                    f"the settings name a module {name!r} that this worker does not have"
                    f"{_nearest(name, names)}; they are one table for each module: {', '.join(names)}"
                )
    return {name: check_one(name, kind, tables.get(name, {})) for name, kind in kinds.items()}


def check_one(name: str, kind: type[Module], table: object) -> Any:
    """Return the configuration of one module.

    Raises:
        ConfigError: The table does not fit the module's `Config`.
    """
    try:
        return msgspec.convert(table, kind.Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"module {name}: {_explain(kind.Config, str(error))}") from error
    # A struct may check itself in __post_init__, with code of the module's author.
    except Exception as error:
        raise ConfigError(f"module {name}: its settings cannot be read: {type(error).__name__}: {error}") from error


def _explain(config: type[msgspec.Struct], text: str) -> str:
    """Turn msgspec's message into one that starts with the field and names the nearest one where it is unknown."""
    what, _, path = text.partition(_AT)
    if path.startswith(_KEY):
        path, what = path.removeprefix(_KEY), f"a key of it: {what}"
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    if not what.startswith(_UNKNOWN):
        what = what[:1].lower() + what[1:]
        return f"field {path}: {what}" if path else what
    field = what.removeprefix(_UNKNOWN).rstrip("`")
    known = sorted({name for struct in _structs_at(msgspec.inspect.type_info(config), path) for name in struct})
    where = f"{path}.{field}" if path else field
    return f"there is no field {where}{_nearest(field, known)}"


def _structs_at(kind: msgspec.inspect.Type, path: str) -> Iterator[list[str]]:
    """Yield the field names of every struct that a path such as ``rules[0].match`` can lead to."""
    if isinstance(kind, msgspec.inspect.UnionType):
        for member in kind.types:
            yield from _structs_at(member, path)
    elif isinstance(kind, msgspec.inspect.Metadata):
        yield from _structs_at(kind.type, path)
    elif path.startswith("["):
        rest = path.partition("]")[2].removeprefix(".")
        for attribute in ("item_type", "value_type"):
            inner = getattr(kind, attribute, None)
            if isinstance(inner, msgspec.inspect.Type):
                yield from _structs_at(inner, rest)
    elif isinstance(kind, msgspec.inspect.StructType):
        if not path:
            yield [field.encode_name for field in kind.fields]
            return
        for field in kind.fields:
            if path == field.encode_name or path.startswith((f"{field.encode_name}.", f"{field.encode_name}[")):
                yield from _structs_at(field.type, path.removeprefix(field.encode_name).removeprefix("."))


def _nearest(name: str, known: Sequence[str]) -> str:
    # Imported here: it is needed for a mistake only, and would be in every worker's memory.
    import difflib

    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean {nearest[0]}?"
    return f"; there are {', '.join(known)}" if known else "; it has no fields"
