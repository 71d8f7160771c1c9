"""Log lines as events: rated, never about the way out, every line counted."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.logevents import (
    BURST,
    MAX_SOURCES,
    MAX_WAITING,
    PER_SECOND,
    SOURCE_BURST,
    SOURCE_PER_SECOND,
    Admission,
    LogEvents,
    about,
    document,
)
from garrison.supervisor.logsinks import Line

LINE = Line(0.0, 3, "agent", "text")


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "agent.sink"]), st.floats(0, 20), st.booleans()), max_size=300)
)
def test_what_passes_is_within_the_rates_and_what_does_not_is_told(lines: list[tuple[str, float, bool]]) -> None:
    admission, now = Admission(), 0.0
    passed: dict[str, int] = {}
    told: dict[str, int] = {}
    offered: dict[str, int] = {}
    last: dict[str, int] = {}
    for source, step, well in lines:
        now += step
        offered[source] = offered.get(source, 0) + 1
        before = admission.admit(source, now, well=well)
        if before is not None:
            assert well
            passed[source] = passed.get(source, 0) + 1
            told[source] = told.get(source, 0) + before
            last[source] = offered[source]
    assert "agent.sink" not in passed
    assert sum(passed.values()) <= BURST + PER_SECOND * now + 1
    for source, count in passed.items():
        assert count <= SOURCE_BURST + SOURCE_PER_SECOND * now + 1
        assert told[source] + count == last[source]


def test_a_source_that_floods_takes_nothing_from_the_others() -> None:
    admission = Admission()
    flood = sum(admission.admit("worker.bad", 0.0, well=True) is not None for _ in range(100_000))
    assert flood == SOURCE_BURST
    assert admission.admit("worker.good", 0.0, well=True) == 0


def test_sources_are_bounded() -> None:
    admission = Admission()
    for number in range(10 * MAX_SOURCES):
        admission.admit(f"worker.x.{number}", 0.0, well=True)
    assert len(admission._sources) == MAX_SOURCES
    assert len(admission._suppressed) <= MAX_SOURCES


class Loop:
    """Collects what is to be called from the loop."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call(self, what: Callable[[], None]) -> None:
        self.calls.append(what)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def test_while_the_sink_is_not_well_nothing_passes_and_it_is_counted() -> None:
    loop, emitted, well = Loop(), [], [False]
    events = LogEvents(lambda line, before: emitted.append((line.text, before)), lambda: well[0], loop.call, float)
    for _ in range(3):
        events.take(LINE)
    loop.turn()
    well[0] = True
    events.take(LINE)
    loop.turn()
    assert emitted == [("text", 3)]
    assert (events.sent, events.suppressed) == (1, 3)


def test_lines_that_emitting_causes_wait_for_the_next_turn_and_end_at_the_rate() -> None:
    loop, count = Loop(), 0

    def emit(line: Line, before: int) -> None:
        nonlocal count
        count += 1
        events.take(line)  # the worst that could be: each event makes a line

    events = LogEvents(emit, lambda: True, loop.call, lambda: 0.0)
    events.take(LINE)
    for _ in range(1000):
        loop.turn()
    assert count == SOURCE_BURST
    assert loop.calls == []


def test_what_waits_is_bounded_and_no_line_is_lost_uncounted_among_threads() -> None:
    loop = Loop()
    events = LogEvents(lambda line, before: None, lambda: True, loop.call, lambda: 0.0)
    threads = [threading.Thread(target=lambda: [events.take(LINE) for _ in range(500)]) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(events._waiting) == MAX_WAITING
    loop.turn()
    assert events.sent + events.suppressed == 5000


def test_the_event_names_source_level_and_worker() -> None:
    line = Line(0.0, 4, "worker.files.scan", "it failed")
    found = document(line, 7)
    assert found["message"] == "it failed"
    assert found["log"] == {"level": "err", "logger": "worker.files.scan"}
    assert found["garrison"] == {"lines_left_out": 7}
    assert "garrison" not in document(line, 0)
    assert [about(Line(0.0, 4, source, "")) for source in ("worker.files.scan", "worker.files", "agent", "worker")] == [
        *("files", "files", "agent", "agent")
    ]
