"""The tables of docs/files-worker.md, made from the settings, rules and presets; no worker loads this."""

from __future__ import annotations

from typing import Any

import msgspec

from garrison.workers.files.presets import PERSISTENCE, WEB_ROOTS
from garrison.workers.files.rules import RULES
from garrison.workers.files.settings import Config


def rules_table() -> str:
    """Return the rules as a Markdown table: id, meaning, severity, technique, places."""
    places = {rule.id: paths for rule, paths in PERSISTENCE}
    places["files-web-root"] = WEB_ROOTS
    rows = ["| rule.id | meaning | severity | ATT&CK | places |", "|---|---|---|---|---|"]
    for rule in RULES:
        technique = rule.subtechnique or rule.technique
        where = ", ".join(f"`{path}`" for path in places.get(rule.id, ())) or "`alert_paths`"
        rows.append(f"| `{rule.id}` | {rule.description} | {rule.severity} | {technique[0]} {technique[1]} | {where} |")
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
        rows.append(f"| `{field.encode_name}` | {_shown(field.default)} | {_range(kind)} | {note} |")
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default) or "none"
    return f"`{msgspec.json.encode(default).decode()}`"


def _range(kind: Any) -> str:
    inspect = msgspec.inspect
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.FloatType):
        return f"{kind.ge:.8g} to {kind.le:.8g}"
    if isinstance(kind, inspect.IntType):
        return f"{kind.ge} to {kind.le}"
    if isinstance(kind, inspect.VarTupleType):
        if isinstance(kind.item_type, inspect.LiteralType):
            return ", ".join(f"`{value}`" for value in sorted(map(str, kind.item_type.values)))
        item = "absolute paths" if getattr(kind.item_type, "pattern", None) else "globs"
        return f"up to {kind.max_length} {item}"
    return ""
