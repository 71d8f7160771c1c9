"""The settings table of a worker's page, made from its `Config`; no worker loads this."""

from __future__ import annotations

from typing import Any

import msgspec


def settings_table(config: type[msgspec.Struct], names: str) -> str:
    """Return a module's settings as a Markdown table: name, default, range, meaning.

    Args:
        config: The module's `Config`.
        names: What its lists hold where they hold neither paths nor fixed words, such as ``globs``.
    """
    rows = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    for field in msgspec.inspect.type_info(config).fields:  # type: ignore[attr-defined]
        kind = field.type
        note = ""
        if isinstance(kind, msgspec.inspect.Metadata):
            note = (kind.extra_json_schema or {}).get("description", "")
            kind = kind.type
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        rows.append(f"| `{field.encode_name}` | {_shown(default)} | {_range(kind, names)} | {note} |")
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default) or "none"
    return f"`{msgspec.json.encode(default).decode()}`"


def _range(kind: Any, names: str) -> str:
    inspect = msgspec.inspect
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.LiteralType):
        return _words(kind)
    if isinstance(kind, inspect.FloatType):
        return f"{kind.ge:.8g} to {kind.le:.8g}"
    if isinstance(kind, inspect.IntType):
        return f"{kind.ge} to {kind.le}"
    if isinstance(kind, inspect.VarTupleType):
        if isinstance(kind.item_type, inspect.LiteralType):
            return _words(kind.item_type)
        item = "absolute paths" if getattr(kind.item_type, "pattern", None) else names
        return f"up to {kind.max_length} {item}"
    return ""


def _words(kind: Any) -> str:
    return ", ".join(f"`{value}`" for value in sorted(map(str, kind.values)))
