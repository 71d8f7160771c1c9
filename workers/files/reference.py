"""The tables of docs/files-worker.md, made from the settings, rules and presets; no worker loads this."""

from __future__ import annotations

from garrison.workers import reference
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
    return reference.settings_table(Config, "globs")
