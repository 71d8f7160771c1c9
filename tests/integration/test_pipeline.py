"""The pipeline with its thread: sinks that fail, hang and end, and where each event is in the books."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import Priority
from garrison.supervisor.events.flow import COMPANY_BYTES
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.own import OwnEvents
from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.events.stamp import Stamp
from garrison.supervisor.sinks.base import Refused, Sink, SinkError
from garrison.supervisor.sinks.file import FileSink
from tests.integration._cgroup_support import eventually


class Scripted(Sink):
    """A sink that fails as it is told to and remembers what it took."""

    name = "scripted"

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.taken: list[Batch] = []
        self.closed = 0
        self.reopened = 0
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()

    def write(self, batches: Sequence[Batch]) -> Sequence[Refused]:
        self.begun.set()
        self.free.wait(60)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, SinkError):
                self.taken += batches[: failure.delivered]
            raise failure
        self.taken += batches
        return ()

    def reopen(self) -> None:
        self.reopened += 1
        if self.failures:
            raise self.failures.pop(0)

    def close(self) -> None:
        self.closed += 1


class Books:
    """A ledger and the batches made on it."""

    def __init__(self) -> None:
        self.ledger = WorkerLedger()

    def batch(self, priority: Priority = "event", count: int = 1, data: bytes = b"") -> Batch:
        self.ledger.emitted += count
        return Batch("w", self.ledger, priority, count, data or b'{"a":1}\n' * count)


def started(sink: Sink, troubles: list[str] | None = None) -> Pipeline:
    pipeline = Pipeline(sink, "host", (troubles if troubles is not None else []).append)
    pipeline.start()
    return pipeline


def test_a_failing_sink_is_offered_the_rest_again_and_the_trouble_is_told_and_taken_back() -> None:
    books, troubles = Books(), list[str]()
    sink = Scripted(SinkError("no", delivered=1), SinkError("no"))
    sink.free.clear()
    pipeline = Pipeline(sink, "host", troubles.append)
    batches = [books.batch() for _ in range(3)]
    for batch in batches:
        pipeline.put(batch)
    pipeline.start()
    sink.free.set()
    eventually(pipeline.idle, "all is written")
    assert sink.taken == batches
    assert (books.ledger.delivered, books.ledger.in_flight) == (3, 0)
    assert troubles == ["no", ""]
    assert pipeline.close(5) == 0


@pytest.mark.parametrize("failure", [ValueError("odd"), RuntimeError("bug"), MemoryError()])
def test_a_mistake_in_a_sink_is_shown_and_does_not_end_the_thread(failure: Exception) -> None:
    books, troubles = Books(), list[str]()
    sink = Scripted(failure)
    pipeline = started(sink, troubles)
    pipeline.put(books.batch())
    eventually(lambda: sink.taken, "it is tried again")
    eventually(lambda: troubles[-1:] == [""], "the trouble is over")
    assert "mistake" in troubles[0]
    assert pipeline.close(5) == 0
    assert books.ledger.delivered == 1


def test_a_reopening_that_fails_is_shown_and_events_flow_on() -> None:
    books, troubles = Books(), list[str]()
    sink = Scripted(OSError(28, "No space left on device"))
    pipeline = started(sink, troubles)
    pipeline.reopen()
    eventually(lambda: troubles, "it is shown")
    pipeline.put(books.batch())
    eventually(lambda: sink.taken, "it is written")
    assert pipeline.close(5) == 0


def test_the_most_important_events_leave_first() -> None:
    books, sink = Books(), Scripted()
    sink.free.clear()
    pipeline = started(sink)
    pipeline.put(books.batch("metric", data=b'{"held":1}\n'))
    assert sink.begun.wait(30)
    for priority in ("metric", "event", "state", "alert"):
        pipeline.put(books.batch(priority))  # type: ignore[arg-type]
    sink.free.set()
    eventually(pipeline.idle, "all is written")
    assert [batch.priority for batch in sink.taken] == ["metric", "alert", "state", "event", "metric"]
    pipeline.close(5)


def test_a_suspended_pipeline_closes_its_sink_and_keeps_what_comes_until_it_is_resumed() -> None:
    books, sink = Books(), Scripted()
    pipeline = started(sink)
    pipeline.put(books.batch())
    pipeline.suspend()
    eventually(lambda: sink.closed, "the sink is closed")
    assert len(sink.taken) == 1
    pipeline.put(books.batch())
    pipeline.reopen()
    assert len(sink.taken) == 1
    pipeline.resume()
    eventually(lambda: len(sink.taken) == 2, "it is written after all")
    assert pipeline.close(5) == 0
    assert sink.closed == 2


def test_a_close_while_suspended_still_delivers() -> None:
    books, sink = Books(), Scripted()
    pipeline = started(sink)
    pipeline.suspend()
    eventually(lambda: sink.closed, "the sink is closed")
    pipeline.put(books.batch())
    assert pipeline.close(10) == 0
    assert len(sink.taken) == 1


def test_a_sink_that_hangs_costs_the_events_in_its_hands_and_never_the_close() -> None:
    books, sink = Books(), Scripted()
    sink.free.clear()
    pipeline = started(sink)
    pipeline.put(books.batch(count=3))
    assert sink.begun.wait(30)
    pipeline.put(books.batch(count=4))
    assert pipeline.close(0.2) == 7
    assert books.ledger.dropped == {"shutdown": 7}
    assert books.ledger.in_flight == 0
    sink.free.set()  # it comes back late: nothing is counted twice
    eventually(lambda: sink.closed, "its thread ends")
    assert (books.ledger.delivered, books.ledger.in_flight) == (0, 0)


def test_a_pipeline_that_was_never_started_can_be_closed() -> None:
    books = Books()
    pipeline = Pipeline(Scripted(), "host", lambda _: None)
    pipeline.put(books.batch(count=2))
    assert pipeline.close(1) == 2
    assert books.ledger.in_flight == 0


def test_the_tiniest_events_of_one_frame_fit_a_file_of_the_smallest_size(tmp_path: Path) -> None:
    books, troubles = Books(), list[str]()
    count = 9000  # about 64 KiB as the worker sends them, more than 1 MiB with the stamp
    data = Stamp("h" * 250, "w" * 60, 2**40).write([b'{"":1'] * count + [b""], "event")
    assert len(data) > 4 * 256 * 1024
    pipeline = started(FileSink(str(tmp_path / "events.ndjson"), 256 * 1024), troubles)
    pipeline.put(books.batch(count=count, data=data))
    pipeline.put(books.batch(data=b'{"last":1}\n'))
    eventually(lambda: books.ledger.delivered == count + 1 or troubles, "all is delivered")
    assert troubles == []
    assert pipeline.close(5) == 0
    files = sorted(tmp_path.iterdir())
    assert all(path.stat().st_size <= 256 * 1024 for path in files)
    assert any(path.read_bytes().endswith(b'{"last":1}\n') for path in files)
    for path in files:
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_lines_that_made_it_onto_a_full_disk_are_not_written_twice(tmp_path: Path) -> None:
    from garrison.supervisor.alternating import AlternatingFileError

    books = Books()
    sink = FileSink(str(tmp_path / "events.ndjson"), 256 * 1024)
    batch = books.batch(count=10, data=b"".join(b'{"n":%d}\n' % n for n in range(10)))
    whole = sink._file.write

    def half(lines: bytes) -> None:
        keep = lines.index(b"\n", len(lines) // 2) + 1
        whole(lines[:keep])
        raise AlternatingFileError(28, "No space left on device", written=keep)

    sink._file.write = half  # type: ignore[method-assign]  # a disk that fills up at exactly this point
    with pytest.raises(SinkError) as failed:
        sink.write([batch])
    assert failed.value.delivered == 0
    sink._file.write = whole  # type: ignore[method-assign]
    sink.write([batch])
    sink.close()
    written = [json.loads(line)["n"] for path in tmp_path.iterdir() for line in path.read_bytes().splitlines()]
    assert written == list(range(10))


@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=60),
    st.lists(st.integers(0, 400_000), max_size=4),
)
def test_batches_that_share_a_write_are_delivered_exactly_once_whatever_fails(
    sizes: list[int], cuts: list[int]
) -> None:
    from garrison.supervisor.alternating import AlternatingFileError

    books = Books()
    batches = [
        books.batch(count=size, data=b"".join(b'{"batch":%d,"n":%d}\n' % (number, n) for n in range(size)))
        for number, size in enumerate(sizes)
    ]
    with tempfile.TemporaryDirectory() as folder:
        sink = FileSink(f"{folder}/events.ndjson", 4 * 1024 * 1024)
        whole = sink._file.write

        def broken(lines: bytes) -> None:
            if not cuts:
                whole(lines)
                return
            keep = lines.rfind(b"\n", 0, cuts.pop()) + 1
            whole(lines[:keep])
            raise AlternatingFileError(28, "No space left on device", written=keep)

        sink._file.write = broken  # type: ignore[method-assign]  # a disk that is full now and then
        left = list(batches)
        while left:
            try:
                sink.write(left)
                left = []
            except SinkError as error:
                del left[: error.delivered]
        sink.close()
        lines = [line for path in sorted(Path(folder).iterdir()) for line in path.read_bytes().splitlines(True)]
    assert b"".join(lines) == b"".join(batch.data for batch in batches)


def test_a_queue_is_congested_only_while_the_sink_makes_progress() -> None:
    books, sink = Books(), Scripted()
    pipeline = Pipeline(sink, "host", lambda _: None, max_bytes=4096)
    pipeline.put(books.batch(data=b'{"a":"' + b"x" * 3000 + b'"}\n'))
    assert not pipeline.congested()  # nobody writes
    pipeline.start()
    eventually(lambda: books.ledger.delivered == 1, "the first is written")
    pipeline.suspend()
    eventually(pipeline.idle, "the sink is closed")
    pipeline.put(books.batch(data=b'{"a":"' + b"x" * 3000 + b'"}\n'))
    assert pipeline.congested()
    eventually(lambda: not pipeline.congested(), "nothing has moved for a while")
    assert pipeline.close(5) == 0


class Patient(Scripted):
    """A sink whose writes are dear."""

    linger_seconds = 3600.0


def patient(books: Books) -> tuple[Patient, Pipeline]:
    """Return a pipeline that has just written, and now waits for company."""
    sink = Patient()
    pipeline = started(sink)
    pipeline.put(books.batch())
    eventually(lambda: books.ledger.delivered == 1, "the first does not wait")
    return sink, pipeline


def test_few_events_wait_for_company_and_an_alert_takes_them_along() -> None:
    books = Books()
    sink, pipeline = patient(books)
    pipeline.put(books.batch())
    pipeline.put(books.batch("metric"))
    time.sleep(0.2)
    assert len(sink.taken) == 1
    pipeline.put(books.batch("alert"))
    eventually(pipeline.idle, "all are written")
    assert [batch.priority for batch in sink.taken] == ["event", "alert", "event", "metric"]
    assert pipeline.close(5) == 0


def test_many_events_wait_for_nobody() -> None:
    books = Books()
    sink, pipeline = patient(books)
    for _ in range(COMPANY_BYTES // 1000):
        pipeline.put(books.batch(data=b'{"a":"' + b"x" * 1000 + b'"}\n'))
    eventually(lambda: len(sink.taken) > COMPANY_BYTES // 2000, "they are written")
    assert pipeline.close(5) == 0
    assert books.ledger.delivered == books.ledger.emitted


def test_the_wait_for_company_ends_by_itself() -> None:
    books, sink = Books(), Patient()
    sink.linger_seconds = 0.3
    pipeline = started(sink)
    for number in range(5):
        pipeline.put(books.batch())
        eventually(lambda number=number: books.ledger.delivered == number + 1, "it is written")  # type: ignore[misc]
    assert pipeline.close(5) == 0


@pytest.mark.parametrize("end", ["close", "suspend"])
def test_nothing_waits_for_company_where_the_sink_is_about_to_close(end: str) -> None:
    books = Books()
    sink, pipeline = patient(books)
    pipeline.put(books.batch())
    if end == "close":
        assert pipeline.close(30) == 0
    else:
        pipeline.suspend()
        eventually(lambda: sink.closed, "it is closed")
        assert pipeline.close(5) == 0
    assert (len(sink.taken), books.ledger.delivered) == (2, 2)


# The agent's own events

texts = st.text(st.characters(codec=None, exclude_categories=()))
fields = st.dictionaries(
    texts,
    st.one_of(
        texts, st.integers(), st.floats(), st.none(), st.binary(), st.lists(texts), st.dictionaries(texts, texts)
    ),
)


@given(st.lists(st.tuples(texts, fields), max_size=5))
def test_every_event_of_the_agent_is_one_line_of_json_and_numbered_without_a_gap(
    emitted: list[tuple[str, dict[str, Any]]],
) -> None:
    batches: list[Batch] = []
    own = OwnEvents("host", batches.append, 3)
    for action, details in emitted:
        own.emit(action, details)
    assert own.ledger.emitted == len(batches) == len(emitted)
    for number, batch in enumerate(batches, 1):
        assert batch.data.count(b"\n") == 1
        document = json.loads(batch.data)
        assert document["event"]["sequence"] == number
        assert document["agent"]["epoch"] == 3


def test_a_name_that_is_no_text_is_shown_with_its_bytes() -> None:
    batches: list[Batch] = []
    OwnEvents("host", batches.append, 1).emit("x", {"path": os.fsdecode(b"/tmp/\xff")})
    assert json.loads(batches[0].data)["garrison"]["path"] == "/tmp/\\udcff"
