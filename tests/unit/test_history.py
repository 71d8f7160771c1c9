"""The history: the last events of each worker, bounded."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from garrison.fleet.cli.history import line_of
from garrison.supervisor.control.status import HistoryEntry
from garrison.supervisor.history import MAX_NAMES, MAX_PER_WORKER, MAX_TEXT, History, HistoryState

events = st.lists(
    st.tuples(st.sampled_from(["", "a", "b"]), st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.none())),
    max_size=200,
)


def filled(entries: list[tuple[str, dict[str, Any]]]) -> History:
    history = History()
    for number, (worker, fields) in enumerate(entries):
        history.add(float(number), "worker-running", {**fields, "worker": worker})
    return history


@given(events)
def test_the_last_entries_of_each_worker_are_kept_in_their_order(entries: list[tuple[str, dict[str, Any]]]) -> None:
    history = filled(entries)
    for worker in ("", "a", "b"):
        times = [float(number) for number, (name, _) in enumerate(entries) if name == worker]
        assert [entry.at for entry in history.last(worker, 1000)] == times[-MAX_PER_WORKER:]
    numbers = [entry.number for entry in history.last(None, 1000)]
    assert numbers == sorted(set(numbers))


@given(events, st.integers(0, 5))
def test_what_is_kept_survives_being_written_and_read(entries: list[tuple[str, dict[str, Any]]], count: int) -> None:
    history = filled(entries)
    again = History(msgspec.json.decode(msgspec.json.encode(history.state()), type=HistoryState))
    assert again.last(None, 1000) == history.last(None, 1000)
    assert again.last("a", count) == history.last("a", 1000)[-count:] * bool(count)
    again.add(0.0, "more", {})
    numbers = [entry.number for entry in again.last(None, 1000)]
    assert all(a < b for a, b in itertools.pairwise(numbers))


def test_a_flood_of_names_and_texts_costs_a_bounded_memory() -> None:
    history = History()
    for number in range(1000):
        history.add(
            0.0, "x", {"worker": f"w{number}", "reason": "y" * 10_000, "list": list(range(1000)), "d": [[[[1]]]]}
        )
    assert len({entry.worker for entry in history.last(None, 10_000)}) == MAX_NAMES
    entry = history.last("w999", 1)[0]
    assert len(entry.facts["reason"]) == MAX_TEXT
    assert len(entry.facts["list"]) == 16


def test_one_busy_worker_does_not_push_the_others_out() -> None:
    history = History()
    history.add(0.0, "worker-tripped", {"worker": "quiet"})
    for _ in range(10_000):
        history.add(0.0, "worker-running", {"worker": "busy"})
    assert len(history.last("quiet", 10)) == 1


def test_what_json_cannot_carry_is_made_text() -> None:
    history = History()
    history.add(0.0, "x", {"worker": "w", "name": "\udcff", "object": object()})
    assert msgspec.json.encode(history.state())


def test_a_line_says_from_what_to_what_and_why_first() -> None:
    facts = {"from": "running", "to": "tripped", "event": "trip", "pid": 7, "cause": "cpu", "value": 9.9, "limit": 5}
    line = line_of(HistoryEntry(at=0.0, number=1, worker="net", action="worker-tripped", facts=facts)).plain
    assert line == "1970-01-01 00:00:00 net running → tripped (trip) cause=cpu value=9.9 limit=5 pid=7"


def test_a_line_of_the_agent_itself_and_an_impossible_time() -> None:
    line = line_of(HistoryEntry(at=1e300, number=1, worker="", action="agent\x1b[31m", facts={"a\nb": ["x", 1]})).plain
    assert "\x1b" not in line
    assert "\n" not in line
    assert line.startswith("- - agent")
