"""``garrison events``: what the workers report, one line an event."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import msgspec
from rich.text import Text

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError, complain
from garrison.fleet.cli.terminal import Terminal
from garrison.fleet.cli.text import plural, safe_json, sanitise
from garrison.supervisor.control.client import AgentNotRunningError, ControlClient
from garrison.supervisor.control.protocol import ControlError, Dropped

KIND_STYLES: Final = {"alert": "bold red", "state": "yellow", "event": "", "metric": "dim"}
_FIELD_CHARACTERS: Final = 160
_STATE_FIELDS: Final = 16
_TIME: Final = re.compile(r"T(\d\d:\d\d:\d\d(?:[.,]\d{1,3})?)")


def show(target: Target, *, follow: bool, last: int, kinds: list[str], workers: list[str], as_json: bool) -> int:
    """Print events; return the exit code.

    Raises:
        CliError: The agent ended while its events were followed.
    """
    client = target.client()
    terminal = Terminal()
    missed = 0
    try:
        for item in client.stream("events", follow=follow, last=last, kinds=kinds, workers=workers):
            if isinstance(item, Dropped):
                missed += item.count
                complain(f"{plural(item.count, 'event')} missed here: they came faster than they were read")
            elif as_json:
                sys.stdout.write(safe_json(bytes(item).decode("utf-8", "backslashreplace")) + "\n")
            else:
                terminal.print(line_of(bytes(item)))
            if follow:
                sys.stdout.flush()
    except AgentNotRunningError as error:
        if error.code == "gone" and follow:
            raise _ended(client, "crashed or was killed") from error
        raise
    if follow:
        raise _ended(client, "has stopped")
    return exits.OK if not missed else exits.FAILED


def line_of(document: bytes) -> Text:
    """Return an event as one line: time, kind, worker, what, then who and where. Takes anything."""
    try:
        event = msgspec.json.decode(document)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        event = None
    if not isinstance(event, dict):
        return Text(f"not an event: {_clean(document.decode('utf-8', 'backslashreplace'))}", style="dim")
    # The agent's own stamp comes first: what the worker says about itself is only a claim.
    kind = _get(event, "agent.priority") or _get(event, "event.kind") or "event"
    line = Text(f"{_time(event)} ")
    line.append(f"{kind:<6}", style=KIND_STYLES.get(kind, ""))
    line.append(f" {_get(event, 'agent.worker') or _get(event, 'event.module') or '-'}", style="cyan")
    line.append(f" {_get(event, 'event.action') or '-'}", style="bold")
    if rule := _get(event, "rule.name"):
        line.append(f" “{rule}”", style=KIND_STYLES.get(kind, ""))
    for label, value in _facts(event):
        line.append(f" {label}=", style="dim").append(value)
    return line


def _facts(event: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("process", _process(event, "process")),
        ("parent", _process(event, "process.parent")),
        ("cmd", _get(event, "process.command_line")),
        ("user", _get(event, "user.name") or _get(event, "user.id")),
        ("from", _address(event, "source")),
        ("to", _address(event, "destination")),
        ("file", _get(event, "file.path")),
        ("technique", _get(event, "threat.technique.id")),
        ("reason", _get(event, "event.reason")),
        ("message", _get(event, "message")),
    ]
    return [(label, value) for label, value in [*_state(event), *facts] if value]


def _state(event: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the details that ECS has no field for: of a transition which worker, from what, to what, why."""
    state = event.get("garrison")
    if not isinstance(state, dict):
        return []
    # Not through `_get`: a name may hold a dot.
    plain = [
        (name, value) for name, value in list(state.items())[:_STATE_FIELDS] if isinstance(value, str | int | float)
    ]
    return [(_clean(str(name)), _clean(str(value))) for name, value in plain]


def _process(event: dict[str, Any], path: str) -> str:
    name = _get(event, f"{path}.name") or _get(event, f"{path}.executable")
    pid = _get(event, f"{path}.pid")
    return f"{name or '?'}({pid})" if pid else name


def _address(event: dict[str, Any], path: str) -> str:
    ip = _get(event, f"{path}.ip") or _get(event, f"{path}.address")
    port = _get(event, f"{path}.port")
    if not port:
        return ip
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _time(event: dict[str, Any]) -> str:
    stamp = _get(event, "@timestamp", nested=False)
    found = _TIME.search(stamp)
    return found[1] if found else (stamp or "-")


def _get(event: dict[str, Any], path: str, *, nested: bool = True) -> str:
    """Return a field as clean text, nested or written with dots; empty where there is none of a plain type."""
    value: Any = event
    for part in path.split(".") if nested else (path,):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        value = event.get(path)
    if isinstance(value, list):
        value = ",".join(str(one) for one in value[:8] if isinstance(one, str | int | float))
    return _clean(str(value)) if isinstance(value, str | int | float) else ""


def _clean(text: str) -> str:
    return sanitise(text, limit=_FIELD_CHARACTERS)


def _ended(client: ControlClient, how: str) -> CliError:
    try:
        client.call("version")
        state = "another one runs by now: follow its events with the same command"
    except ControlError:
        state = "follow again once it runs: `systemctl status garrison`"
    return CliError(f"no more events: the agent {how}", state, exits.UNAVAILABLE)
