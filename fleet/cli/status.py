"""``garrison status``: the agent and its workers, for people."""

from __future__ import annotations

import sys
import time
from typing import Final

from rich.text import Text

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.health import Trouble, troubles
from garrison.fleet.cli.terminal import Terminal, table, width_of
from garrison.fleet.cli.text import count, duration, percent, plural, safe_json, sanitise, size
from garrison.supervisor.control.status import AgentStatus, StatusReport, WorkerStatus

STATE_STYLES: Final = {
    "running": "green",
    "starting": "cyan",
    "probation": "cyan",
    "throttled": "yellow",
    "frozen": "blue",
    "stopping": "yellow",
    "stopped": "dim",
    "tripped": "bold red",
    "latched": "bold red",
    "failed": "bold red",
    "killed": "bold red",
}
_LABEL_WIDTH: Final = 8
_NARROW: Final = ("WORKER", "STATE", "DESIRED", "PID", "CPU %", "MEMORY", "RESTARTS")
_MORE: Final = ("DECIDED BY", "BREAKER", "CONFIG", "EMITTED", "DELIVERED", "DROPPED")
_RIGHT: Final = frozenset({3, 4, 5, 6, 10, 11, 12})


def show(target: Target, as_json: bool) -> int:
    """Print the status once; return the exit code."""
    client = target.client()
    if as_json:
        sys.stdout.write(safe_json(client.call_raw("status").decode("utf-8", "backslashreplace")) + "\n")
        return exits.OK
    report = client.call_as(StatusReport, "status")
    terminal = Terminal()
    found = troubles(report, target.places())
    for line in render(report, terminal, found):
        terminal.print(line)
    return exits.UNHEALTHY if any(trouble.grave for trouble in found) else exits.OK


def watch(target: Target, seconds: float) -> int:
    """Print the status again and again until Ctrl-C or an error."""
    client, places = target.client(), target.places()
    while True:
        report = client.call_as(StatusReport, "status")
        terminal = Terminal()
        lines = render(report, terminal, troubles(report, places))
        if terminal.is_terminal:
            terminal.clear()
        for line in lines:
            terminal.print(line)
        sys.stdout.flush()
        time.sleep(seconds)


def render(report: StatusReport, terminal: Terminal, found: list[Trouble]) -> list[Text]:
    """Return the report, and what is wrong in it, as lines for a terminal."""
    lines = _header(report, terminal)
    lines += [Text(), *_workers(report.workers, terminal)]
    if found:
        lines += [Text(), Text("Problems", style="bold"), *_problems(found, terminal)]
    return lines


def _header(report: StatusReport, terminal: Terminal) -> list[Text]:
    agent = report.agent
    facts = [
        ("host", Text(sanitise(report.host), style="bold")),
        (
            "agent",
            Text(
                f"{sanitise(agent.version)}, pid {agent.pid}, up {duration(agent.uptime_seconds)},"
                f" cgroups {sanitise(agent.cgroup_mode)}"
            ),
        ),
        ("kill", _killswitch(agent)),
        ("store", _store(agent)),
        ("events", _events(report.workers)),
    ]
    lines: list[Text] = []
    for label, value in facts:
        lines += terminal.lines(Text(label.ljust(_LABEL_WIDTH), style="dim") + value, _LABEL_WIDTH)
    return lines


def _killswitch(agent: AgentStatus) -> Text:
    switch = agent.killswitch
    if not switch.engaged:
        return Text("off")
    text = "KILLSWITCH ENGAGED"
    if switch.scopes:
        text += " by " + ", ".join(switch.scopes)
    if switch.reason:
        text += f": {switch.reason}"
    return Text(sanitise(text), style="bold white on red")


def _store(agent: AgentStatus) -> Text:
    store = agent.store
    text = Text(sanitise(" ".join(part for part in (store.backend, store.endpoint) if part)) + ", ")
    if store.connected:
        text.append("connected", style="green")
        if store.connected_seconds:
            text.append(f" for {duration(store.connected_seconds)}")
    else:
        text.append("NOT CONNECTED", style="bold red")
    text.append(f", revision {store.revision}")
    if store.lease_id:
        text.append(f", lease {sanitise(store.lease_id)}")
    if store.stale_seconds:
        text.append(f", stale for {duration(store.stale_seconds)}", style="yellow")
    return text


def _events(workers: list[WorkerStatus]) -> Text:
    emitted = sum(worker.events.emitted for worker in workers)
    delivered = sum(worker.events.delivered for worker in workers)
    dropped = sum(sum(worker.events.dropped.values()) for worker in workers)
    text = Text(f"{count(emitted)} emitted, {count(delivered)} delivered, ")
    return text.append(f"{count(dropped)} dropped", style="yellow" if dropped else "")


def _workers(workers: list[WorkerStatus], terminal: Terminal) -> list[Text]:
    if not workers:
        return [Text("No worker is configured.", style="yellow")]
    wide = table(
        [[Text(name, style="bold") for name in (*_NARROW, *_MORE)]] + [_row(w) + _more(w) for w in workers], _RIGHT
    )
    if width_of(wide) <= terminal.width:
        return wide
    narrow = table([[Text(name, style="bold") for name in _NARROW]] + [_row(w) for w in workers], _RIGHT)
    lines = narrow[:1]
    for line, worker in zip(narrow[1:], workers, strict=True):
        lines += [line, *_details(worker, terminal)]
    return lines


def _row(worker: WorkerStatus) -> list[Text]:
    quota, most = worker.limits.cpu_quota_percent, worker.limits.memory_max
    cpu = percent(worker.cpu_percent) + ("" if quota is None else f"/{percent(quota)}")
    memory = size(worker.memory_bytes) + ("" if most is None else f"/{size(most)}")
    return [
        Text(sanitise(worker.name)),
        Text(sanitise(worker.state), style=STATE_STYLES.get(worker.state, "")),
        Text(sanitise(worker.desired)),
        Text(str(worker.pid) if worker.pid else "-"),
        Text(cpu if worker.pid else "-"),
        Text(memory if worker.pid else "-"),
        Text(str(worker.restarts)),
    ]


def _more(worker: WorkerStatus) -> list[Text]:
    return [
        Text(sanitise(worker.desired_by) or "-"),
        _breaker(worker),
        _config(worker),
        Text(count(worker.events.emitted)),
        Text(count(worker.events.delivered)),
        _dropped(worker),
    ]


def _breaker(worker: WorkerStatus) -> Text:
    breaker = worker.breaker
    parts = [breaker.state]
    if breaker.trips:
        parts.append(plural(breaker.trips, "trip"))
    if breaker.cause:
        parts.append(breaker.cause)
    if breaker.retry_in_seconds is not None:
        parts.append(f"retry in {duration(breaker.retry_in_seconds)}")
    if breaker.throttled_to_percent is not None:
        parts.append(f"to {percent(breaker.throttled_to_percent)} % for {duration(breaker.throttled_for_seconds or 0)}")
    if breaker.probation_for_seconds is not None:
        parts.append(f"for {duration(breaker.probation_for_seconds)}")
    if breaker.dry_run:
        parts.append("dry run")
    return Text(sanitise(", ".join(parts)), style="" if breaker.state == "closed" else "yellow")


def _config(worker: WorkerStatus) -> Text:
    style = {"applied": "", "rejected": "bold red"}.get(worker.config.status, "yellow")
    return Text(f"{sanitise(worker.config.status)} {worker.config.revision}", style=style)


def _dropped(worker: WorkerStatus) -> Text:
    dropped = worker.events.dropped
    total = sum(dropped.values())
    if not total:
        return Text("0")
    reasons = ", ".join(f"{reason} {count(number)}" for reason, number in sorted(dropped.items()) if number)
    return Text(f"{count(total)} ({sanitise(reasons)})", style="yellow")


def _details(worker: WorkerStatus, terminal: Terminal) -> list[Text]:
    text = Text("  ")
    if worker.desired_by:
        text.append(f"decided by {sanitise(worker.desired_by)}; ", style="dim")
    text.append("breaker ", style="dim").append_text(_breaker(worker))
    text.append("; config ", style="dim").append_text(_config(worker))
    text.append(f"; events {count(worker.events.emitted)}, delivered {count(worker.events.delivered)}", style="dim")
    text.append(", dropped ", style="dim").append_text(_dropped(worker))
    return terminal.lines(text, 4)


def _problems(found: list[Trouble], terminal: Terminal) -> list[Text]:
    lines: list[Text] = []
    for trouble in found:
        mark = Text("✗ ", style="bold red") if trouble.grave else Text("! ", style="yellow")
        lines += terminal.lines(mark + Text(sanitise(trouble.what)), 2)
        if trouble.remedy:
            lines += terminal.lines(Text("  → ", style="dim") + Text(sanitise(trouble.remedy)), 4)
    return lines
