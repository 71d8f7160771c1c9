"""`garrison status` for people: every important fact is there, at any width, and harmless."""

from __future__ import annotations

import msgspec
import pytest
from rich.cells import cell_len

from garrison.fleet.cli import health, status
from garrison.fleet.cli.terminal import UNLIMITED, Terminal
from garrison.supervisor.control.status import StatusReport, StoreStatus, WorkerStatus
from tests.unit._cli_reports import KEY, healthy, troubled

WIDTHS = [40, 80, 160, 240, UNLIMITED]


def shown(report: StatusReport, width: int) -> list[str]:
    return [line.plain for line in status.render(report, Terminal(width=width), health.troubles(report))]


def squeezed(lines: list[str]) -> str:
    """The text without white space: where a line was broken does not matter."""
    return "".join("".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_healthy_agent_shows_all_its_facts(width: int) -> None:
    text = squeezed(shown(healthy(), width))
    for fact in ("web-17.example", "0.1.0", "pid 812", "2 d 4 h", "hybrid", "directory", "4711", "connected"):
        assert fact.replace(" ", "") in text
    for fact in ("process", "running", "830", "1.2/10", "34.1M/96M", "default", "closed", "applied 7", "123 456"):
        assert fact.replace(" ", "") in text
    for fact in ("123 450", "6 (queue 2, rate 4)"):
        assert fact.replace(" ", "") in text
    assert "Problems" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_troubled_agent_shows_what_is_wrong_and_the_remedies(width: int) -> None:
    text = squeezed(shown(troubled(), width))
    for fact in (
        "KILLSWITCH ENGAGED by @all, local",
        "NOT CONNECTED",
        "stale for 1 h 1 min",
        KEY,
        "open, 2 trips, cpu, retry in 45 s",
        "ports: 70000 is above 65535",
        "garrison reset network",
        "memory.max reads back as 0",
        "garrison doctor",
        "garrison reset login",
        "write `off` to /hids/server/config/@all/killswitch",
        "make room in /var/log/garrison",
    ):
        assert "".join(fact.split()) in text


@pytest.mark.parametrize("width", [80, 160])
def test_lines_fit_the_terminal(width: int) -> None:
    for report in (healthy(), troubled()):
        assert all(cell_len(line) <= width for line in shown(report, width))


def test_a_pipe_gets_one_line_for_each_worker() -> None:
    lines = shown(troubled(), UNLIMITED)
    row = next(line for line in lines if line.startswith("network"))
    assert KEY in row
    assert "retry in 45 s" in row
    assert "rejected 8" in row


@pytest.mark.parametrize("width", WIDTHS)
def test_no_control_character_of_a_report_reaches_the_terminal(width: int) -> None:
    assert "\x1b" not in "".join(shown(troubled(), width))
    assert "\\x1b[2J" in squeezed(shown(troubled(), width))


def test_brackets_are_no_markup() -> None:
    report = healthy()
    report.agent.problems = ["[red]gone[/red]"]
    assert "[red]gone[/red]" in squeezed(shown(report, 80))


def test_an_agent_without_workers_says_so() -> None:
    report = healthy()
    report.workers = []
    assert "No worker is configured." in shown(report, 80)


def test_the_document_has_the_fields_of_the_contract_in_their_order() -> None:
    document = msgspec.to_builtins(healthy())
    assert list(document) == ["host", "agent", "workers"]
    assert list(document["agent"]) == [
        "pid", "version", "uptime_seconds", "cgroup_mode", "killswitch", "store", "problems",
    ]  # fmt: skip
    assert list(document["agent"]["killswitch"]) == ["engaged", "scopes", "reason"]
    assert list(document["agent"]["store"]) == [
        "backend", "connected", "endpoint", "revision", "lease_id", "stale_seconds", "connected_seconds",
        "error",
    ]  # fmt: skip
    worker = document["workers"][0]
    assert list(worker) == [
        "name", "desired", "state", "pid", "cgroup", "cpu_percent", "memory_bytes", "limits", "breaker", "config",
        "events", "restarts", "desired_by", "last_error", "held",
    ]  # fmt: skip
    assert list(worker["limits"]) == ["cpu_quota_percent", "memory_high", "memory_max", "pids_max"]
    assert list(worker["breaker"]) == [
        "state", "trips", "cause", "retry_in_seconds", "level", "reason", "resource", "value", "limit",
        "window_seconds", "throttled_to_percent", "throttled_for_seconds", "probation_for_seconds", "dry_run",
    ]  # fmt: skip
    assert list(worker["config"]) == ["revision", "hash", "status", "error"]
    assert list(worker["events"]) == ["emitted", "delivered", "dropped", "in_flight"]


def test_a_report_of_a_newer_agent_can_still_be_read() -> None:
    document = msgspec.to_builtins(healthy())
    document["agent"]["news"] = 1
    document["workers"][0]["state"] = "pondering"
    report = msgspec.convert(document, StatusReport)
    assert "pondering" in squeezed(shown(report, 80))


@pytest.mark.parametrize("state", ["tripped", "latched", "failed"])
def test_a_bad_state_is_grave(state: str) -> None:
    report = healthy()
    report.workers.append(WorkerStatus(name="bad", state=state))
    assert any(trouble.grave and "bad" in trouble.what for trouble in health.troubles(report))


@pytest.mark.parametrize("state", ["running", "stopped", "frozen", "throttled", "probation", "starting", "stopping"])
def test_an_ordinary_state_is_no_trouble(state: str) -> None:
    report = healthy()
    report.workers = [WorkerStatus(name="fine", state=state)]
    assert health.troubles(report) == []


def test_the_store_is_shown_with_endpoint_time_revision_and_lease() -> None:
    report = healthy()
    report.agent.store = StoreStatus(
        backend="etcd", connected=True, endpoint="10.0.0.1:2379", revision=62, lease_id="694d", connected_seconds=7380
    )
    assert any(
        "etcd 10.0.0.1:2379, connected for 2 h 3 min, revision 62, lease 694d" in line for line in shown(report, 120)
    )


def test_why_a_store_is_lost_is_said_once() -> None:
    report = healthy()
    why = "etcd is not reachable: 10.0.0.1:2379: connecting: Deadline Exceeded. What it said stays in force"
    report.agent.store = StoreStatus(backend="etcd", endpoint="10.0.0.1:2379", stale_seconds=70, error=why)
    report.agent.problems = ["something else", why]
    found = health.troubles(report)
    assert [trouble.what for trouble in found] == [why, "something else"]
    assert any("NOT CONNECTED, revision 0, stale for 1 min 10 s" in line for line in shown(report, 120))
    report.agent.store.connected = True
    assert why in [trouble.what for trouble in health.troubles(report)]


def test_a_lost_store_is_a_trouble_but_not_grave() -> None:
    report = healthy()
    report.agent.store.connected = False
    assert [trouble.grave for trouble in health.troubles(report)] == [False]


@pytest.mark.parametrize(
    ("scope", "backend", "remedy"),
    [
        ("local", "etcd", "`garrison release` on this host"),
        ("file", "etcd", "remove the file /etc/garrison/killswitch on this host"),
        ("/srv/off", "etcd", "remove the file /srv/off on this host"),
        ("@all", "etcd", "`etcdctl put /hids/server/config/@all/killswitch off`"),
        ("@group/web", "directory", "write `off` to /hids/server/config/@group/web/killswitch in the directory store"),
        ("web-17", "", "set /hids/server/config/web-17/killswitch to `off` in the store"),
    ],
)
def test_each_scope_of_the_killswitch_has_its_release(scope: str, backend: str, remedy: str) -> None:
    assert health.release_remedy(scope, backend) == remedy
