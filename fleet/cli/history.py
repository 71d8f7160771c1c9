"""``garrison history``: what has happened to the workers, one line an entry."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, Final

from rich.text import Text

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.terminal import Terminal
from garrison.fleet.cli.text import safe_json, sanitise
from garrison.supervisor.control.status import HistoryEntry, HistoryReport

_GRAVE: Final = ("tripped", "latched", "failed", "killed")
_FIRST: Final = (
    "cause",
    "reason",
    "resource",
    "value",
    "limit",
    "window_seconds",
    "module",
    "task",
    "retry_in_seconds",
)
"""What is shown first; the rest follows as it came."""
_FIELD_CHARACTERS: Final = 200
_MAX_FACTS: Final = 32


def show(target: Target, worker: str, last: int, as_json: bool) -> int:
    """Print the history; return the exit code."""
    client = target.client()
    if as_json:
        raw = client.call_raw("history", worker=worker, last=last)
        sys.stdout.write(safe_json(raw.decode("utf-8", "backslashreplace")) + "\n")
        return exits.OK
    report = client.call_as(HistoryReport, "history", worker=worker, last=last)
    terminal = Terminal()
    if not report.entries:
        terminal.print(Text("Nothing has happened yet.", style="dim"))
    for entry in report.entries:
        terminal.print(line_of(entry))
    return exits.OK


def line_of(entry: HistoryEntry) -> Text:
    """Return an entry as one line: time, worker, what, then why and the numbers."""
    line = Text(f"{_time(entry.at)} ")
    line.append(_clean(entry.worker) or "-", style="cyan").append(" ")
    facts = dict(list(entry.facts.items())[:_MAX_FACTS])
    before, after = facts.pop("from", None), facts.pop("to", None)
    happening = facts.pop("event", None)
    if before is not None and after is not None:
        what = f"{before} → {after}" + (f" ({happening})" if happening else "")
    else:
        what = entry.action
    line.append(_clean(what), style="bold red" if entry.action.endswith(_GRAVE) else "bold")
    for name in [*(name for name in _FIRST if name in facts), *(name for name in facts if name not in _FIRST)]:
        line.append(f" {_clean(name)}=", style="dim").append(_value(facts[name]))
    return line


def _time(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "-"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return _clean(",".join(str(one) for one in value))
    return _clean(str(value))


def _clean(text: str) -> str:
    return sanitise(text, limit=_FIELD_CHARACTERS)
