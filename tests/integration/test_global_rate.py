"""What leaves the host is held to a rate, and what is urgent does not wait behind what is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from garrison.ipc.messages import Priority
from garrison.supervisor.events.globalrate import GlobalRate
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.sinks.file import FileSink
from tests.e2e._agent import until

RATE = 20_000


@pytest.fixture
def way_out(tmp_path: Path) -> Iterator[tuple[Pipeline, GlobalRate]]:
    rate = GlobalRate(RATE)
    pipeline = Pipeline(FileSink(str(tmp_path / "events.ndjson"), 2**24), "h", lambda _text: None, throttles=(rate,))
    pipeline.start()
    yield pipeline, rate
    rate.limit(0)
    pipeline.close(1)


def put(pipeline: Pipeline, ledger: WorkerLedger, priority: Priority, first: int, sizes: Sequence[int]) -> None:
    for number, size in enumerate(sizes, first):
        ledger.emit(1, priority, number, 1)
        data = b'{"a":"' + b"x" * (size - 9) + b'"}\n'
        pipeline.put(Batch("w", ledger, priority, 1, data, "w", 1, number))


def test_alerts_go_ahead_of_a_backlog_that_the_rate_holds_back(way_out: tuple[Pipeline, GlobalRate]) -> None:
    pipeline, rate = way_out
    events, alerts = WorkerLedger("events"), WorkerLedger("alerts")
    # A hundred seconds' worth of events; the first write overdraws by far.
    put(pipeline, events, "event", 1, [1000] * 2000)
    until(lambda: events.delivered > 0, "the burst")
    for number in range(1, 21):
        put(pipeline, alerts, "alert", number, [200])
        until(lambda: alerts.delivered == number, "the alert")  # noqa: B023
    assert events.in_flight > 0
    assert events.dropped.total() == 0
    # Without a limit the rest goes at once; the sink's thread looks when something comes.
    rate.limit(0)
    put(pipeline, alerts, "alert", 21, [200])
    until(lambda: events.in_flight == 0 and alerts.in_flight == 0, "everything")
    assert (events.delivered, alerts.delivered) == (2000, 21)
