"""What the master does when it is above its own share, with the real pipeline and the real log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from garrison.ipc.messages import Priority
from garrison.supervisor import logs
from garrison.supervisor.budget.shedding import OVER_SECONDS, UNDER_SECONDS, Level, Share
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.hostwatch.shedding import GAUGE_FACTOR, Shedding
from garrison.supervisor.problems import Problems
from garrison.supervisor.sinks.file import FileSink

SHARE = Share(cpu_percent=10.0, memory_bytes=2**30)


class Master:
    def __init__(self, folder: Path) -> None:
        self.pipeline = Pipeline(FileSink(str(folder / "events.ndjson"), 2**20), "web1", lambda _: None)
        self.problems = Problems()
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.shedding = Shedding(
            self.pipeline, self.problems, lambda action, fields: self.told.append((action, fields))
        )
        self.ledger = WorkerLedger()
        self.at = 0.0

    def use(self, cpu_percent: float, seconds: float, *, dry_run: bool = False) -> None:
        for _ in range(int(seconds / 5)):
            self.at += 5.0
            self.shedding.take(self.at, cpu_percent, 2**20, SHARE, dry_run=dry_run)

    def put(self, priority: Priority) -> None:
        self.ledger.emitted += 1
        self.pipeline.put(Batch("quiet", self.ledger, priority, 1, b"{}\n", "quiet"))


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    made = Master(tmp_path)
    made.use(0.0, 5)
    yield made
    logs.set_floor("debug")
    made.pipeline.close(5.0)


def test_live_views_end_first_and_come_back_last(master: Master) -> None:
    seen: list[Batch] = []
    ended: list[bool] = []
    master.pipeline.tap.subscribe(seen.append, lambda: ended.append(True))
    master.put("event")
    master.use(50.0, OVER_SECONDS)
    assert ended == [True]
    master.put("event")
    assert len(seen) == 1
    assert master.pipeline.tap.recent() == []
    assert any("events -f" in text for text in master.problems.texts())
    master.use(0.0, UNDER_SECONDS)
    master.put("event")
    assert len(master.pipeline.tap.recent()) == 1
    assert master.problems.texts() == []
    assert [action for action, _ in master.told] == ["master-sheds", "master-recovers"]


def test_then_gauges_then_logs_then_metrics_then_events_and_never_alerts_or_states(master: Master) -> None:
    log = logs.get("test.shedding")
    master.use(50.0, 2 * OVER_SECONDS)
    assert master.shedding.factor() == GAUGE_FACTOR
    assert log.enabled("info")
    master.use(50.0, OVER_SECONDS)
    assert (log.enabled("info"), log.enabled("warning")) == (False, True)
    logs.set_level("debug", "test.shedding")
    assert not log.enabled("debug")
    master.use(50.0, OVER_SECONDS)
    for priority in ("alert", "state", "event", "metric"):
        master.put(priority)  # type: ignore[arg-type]
    assert master.ledger.dropped == {"shed": 1}
    master.use(50.0, OVER_SECONDS)
    assert master.shedding.state.level is Level.EVENTS
    for priority in ("alert", "state", "event", "metric"):
        master.put(priority)  # type: ignore[arg-type]
    assert master.ledger.dropped == {"shed": 3}
    master.use(0.0, 5 * UNDER_SECONDS)
    assert master.shedding.state.level is Level.NOTHING
    assert log.enabled("debug")
    master.put("metric")
    assert master.ledger.dropped == {"shed": 3}
    logs.set_level(None, "test.shedding")


def test_dry_run_tells_and_does_nothing(master: Master) -> None:
    ended: list[bool] = []
    master.pipeline.tap.subscribe(lambda _: None, lambda: ended.append(True))
    master.use(50.0, 5 * OVER_SECONDS, dry_run=True)
    master.put("metric")
    assert (ended, master.ledger.dropped) == ([], {})
    assert [fields["dry_run"] for _, fields in master.told] == [True] * 5
    assert all("would be given up" in text for text in master.problems.texts())
