"""The tables of docs/process-worker.md, made from the settings and the rules; no worker loads this."""

from __future__ import annotations

from typing import Any

import msgspec

from garrison.workers.process.rules import RULES
from garrison.workers.process.settings import Config


def rules_table() -> str:
    """Return the rules as a Markdown table: id, what it means, severity, technique."""
    rows = ["| rule.id | meaning | severity | ATT&CK |", "|---|---|---|---|"]
    for rule in RULES:
        technique = rule.subtechnique or rule.technique
        rows.append(f"| `{rule.id}` | {rule.description} | {rule.severity} | {technique[0]} {technique[1]} |")
    return "\n".join(rows) + "\n"


def settings_table() -> str:
    """Return the settings as a Markdown table: name, default, range, meaning."""
    rows = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    for field in msgspec.inspect.type_info(Config).fields:  # type: ignore[attr-defined]
        kind = field.type
        note = ""
        if isinstance(kind, msgspec.inspect.Metadata):
            note = (kind.extra_json_schema or {}).get("description", "")
            kind = kind.type
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        rows.append(f"| `{field.encode_name}` | {_shown(default)} | {_range(kind)} | {note} |")
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default) or "none"
    return f"`{msgspec.json.encode(default).decode()}`"


def _range(kind: Any) -> str:
    inspect = msgspec.inspect
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in sorted(map(str, kind.values)))
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return f"{kind.ge:g} to {kind.le:g}" if isinstance(kind, inspect.FloatType) else f"{kind.ge} to {kind.le}"
    if isinstance(kind, inspect.VarTupleType):
        item = "absolute paths" if getattr(kind.item_type, "pattern", None) else "names"
        return f"up to {kind.max_length} {item}"
    return ""
