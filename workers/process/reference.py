"""The tables of docs/process-worker.md, made from the settings and the rules; no worker loads this."""

from __future__ import annotations

from garrison.workers import reference
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
    return reference.settings_table(Config, "names")
