"""Reconciling: what arrived beside what was said, and a verdict on the rest."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.fleet.reconcile import reading
from garrison.fleet.reconcile.evidence import Accounting, Drop, Evidence, Through, TooMuchError
from garrison.fleet.reconcile.intervals import Intervals, count, split
from garrison.fleet.reconcile.reading import Reader
from garrison.fleet.reconcile.verdict import WorkerVerdict, judge

spans = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8)).map(lambda s: (s[0], s[0] + s[1])), max_size=40)


@given(spans, st.integers(1, 70), st.integers(0, 20))
def test_intervals_are_what_a_plain_set_is(made: list[tuple[int, int]], first: int, length: int) -> None:
    intervals, model = Intervals(), set[int]()
    for a, b in made:
        numbers = set(range(a, b + 1))
        assert intervals.add(a, b) == len(model & numbers)
        model |= numbers
    found = list(intervals)
    assert {n for a, b in found for n in range(a, b + 1)} == model
    assert all(left[1] + 1 < right[0] for left, right in pairwise(found))
    assert (intervals.count, intervals.first, intervals.last) == (
        len(model),
        min(model, default=0),
        max(model, default=0),
    )
    wanted = set(range(first, first + length + 1))
    missing = intervals.missing(first, first + length)
    assert {n for a, b in missing for n in range(a, b + 1)} == wanted - model
    inside, outside = split([(first, first + length)], intervals)
    assert {n for a, b in inside for n in range(a, b + 1)} == wanted & model
    assert outside == missing
    assert count(missing) == len(wanted - model)


def one(evidence: Evidence, **keywords: Any) -> WorkerVerdict:
    [verdict] = [verdict for verdict in judge(evidence, **keywords) if verdict.worker == "w"]
    return verdict


def said(**fields: Any) -> Accounting:
    return Accounting(**fields)


def test_without_a_gap_all_is_well() -> None:
    evidence = Evidence()
    evidence.arrived("h", ("w", 1, "event"), 1, 50)
    evidence.arrived("h", ("w", 1, "alert"), 1, 2)
    verdict = one(evidence, complete=True)
    assert (verdict.arrived, verdict.missing, verdict.good) == (52, 0, True)


def test_a_gap_that_nobody_explains_is_named_once_a_heartbeat_has_come_after_it() -> None:
    evidence = Evidence()
    evidence.arrived("h", ("w", 1, "event"), 1, 10)
    evidence.arrived("h", ("w", 1, "event"), 14, 20)
    assert (one(evidence).pending, one(evidence).unexplained) == (3, 0)
    evidence.told("h", "w", (1, 1), 1, said(through=[Through(1, "event", 20, 20)]))
    verdict = one(evidence)
    assert (verdict.missing, verdict.unexplained, verdict.pending) == (3, 3, 0)
    assert verdict.where[0].ranges == [(11, 13)]
    assert not verdict.good


def test_a_gap_with_a_reason_is_explained_and_only_as_far_as_the_reason_goes() -> None:
    evidence = Evidence()
    evidence.arrived("h", ("w", 1, "event"), 1, 10)
    evidence.arrived("h", ("w", 1, "event"), 21, 30)
    evidence.told("h", "w", (1, 1), 1, said(drops=[Drop(1, "event", 11, 15, "rate_limit")]))
    evidence.told("h", "w", (1, 2), 1, said(through=[Through(1, "event", 30, 30)]))
    verdict = one(evidence)
    assert verdict.explained == {"rate_limit": 5}
    assert verdict.where[0].ranges == [(16, 20)]
    evidence.told(
        "h", "w", (1, 3), 1, said(drops=[Drop(1, "event", 16, 20, "spool_full")], through=[Through(1, "event", 30, 30)])
    )
    assert one(evidence).good
    assert one(evidence).explained == {"rate_limit": 5, "spool_full": 5}


def test_what_the_newest_heartbeat_counts_as_in_flight_is_not_missing_yet() -> None:
    evidence = Evidence()
    evidence.arrived("h", ("w", 1, "event"), 1, 10)
    books = said(emitted=15, delivered=10, in_flight=5, through=[Through(1, "event", 15, 15)])
    evidence.told("h", "w", (1, 2), 1, books)
    assert (one(evidence).pending, one(evidence).unexplained) == (5, 0)
    # An older heartbeat that is read later changes nothing.
    evidence.told("h", "w", (1, 1), 1, said(through=[Through(1, "event", 3, 3)]))
    assert one(evidence).pending == 5
    evidence.told("h", "w", (1, 3), 1, said(emitted=15, delivered=15, through=[Through(1, "event", 15, 15)]))
    assert one(evidence).unexplained == 5


def test_what_came_after_a_killed_masters_last_record_is_lost_without_an_end() -> None:
    evidence = Evidence()
    evidence.arrived("h", ("w", 1, "event"), 1, 10)
    evidence.arrived("h", ("w", 1, "event"), 13, 14)
    evidence.told("h", "w", (2, 1), 2, said(drops=[Drop(1, "event", 11, 2**53, "lost_at_exit")]))
    verdict = one(evidence)
    assert (verdict.missing, verdict.explained, verdict.good) == (2, {"lost_at_exit": 2}, True)


def test_the_start_of_the_oldest_process_may_be_gone_by_age_and_that_of_a_later_one_may_not() -> None:
    evidence = Evidence()
    evidence.arrived("h", ("w", 1, "event"), 91, 100)
    evidence.arrived("h", ("w", 2, "event"), 6, 10)
    evidence.told("h", "w", (1, 1), 2, said(through=[Through(2, "event", 10, 10)]))
    assert (one(evidence).before, one(evidence).unexplained) == (90, 5)
    assert (one(evidence, complete=True).before, one(evidence, complete=True).unexplained) == (0, 95)


def test_what_came_twice_is_counted() -> None:
    evidence = Evidence()
    evidence.arrived("h", ("w", 1, "event"), 1, 10)
    evidence.arrived("h", ("w", 1, "event"), 5, 12)
    assert (one(evidence).arrived, one(evidence).duplicates) == (12, 6)


def test_books_that_do_not_balance_are_no_good() -> None:
    evidence = Evidence()
    evidence.told("h", "w", (1, 1), 1, said(emitted=10, delivered=5, in_flight=1, dropped={"rate_limit": 3}))
    assert not one(evidence).good


def test_more_than_fits_is_an_error_and_not_a_full_memory() -> None:
    evidence = Evidence(max_streams=10)
    with pytest.raises(TooMuchError):
        for number in range(20):
            evidence.arrived(f"h{number}", ("w", 1, "event"), 1, 1)
    evidence = Evidence(max_intervals=10)
    with pytest.raises(TooMuchError):
        for number in range(1, 100, 2):
            evidence.arrived("h", ("w", 1, "event"), number, number)


@given(st.data())
def test_every_number_that_was_emitted_is_in_exactly_one_class(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 40))
    fate = [data.draw(st.sampled_from(["arrived", "dropped", "vanished"])) for _ in range(total)]
    evidence = Evidence()
    order = data.draw(st.permutations(range(1, total + 1)))
    for number in order:
        if fate[number - 1] == "arrived":
            evidence.arrived("h", ("w", 1, "event"), number, number)
    drops = [Drop(1, "event", n, n, "rate_limit") for n in range(1, total + 1) if fate[n - 1] == "dropped"]
    evidence.told("h", "w", (1, 1), 1, said(drops=drops, through=[Through(1, "event", total, total)]))
    verdict = one(evidence, complete=True)
    assert verdict.arrived == fate.count("arrived")
    assert sum(verdict.explained.values()) == fate.count("dropped")
    assert verdict.unexplained == fate.count("vanished")
    assert verdict.missing == total - verdict.arrived


# Reading


def line(name: str = "w", sequence: Any = 1, *, host: str = "h", epoch: int = 1, **more: Any) -> bytes:
    event = {"sequence": sequence, "action": more.pop("action", "x")}
    stamp = {"type": "garrison", "worker": name, "epoch": epoch, "priority": more.pop("priority", "event")}
    return json.dumps({"event": event, "garrison": more, "host": {"name": host}, "agent": stamp}).encode()


def read(data: bytes, monkeypatch: pytest.MonkeyPatch | None = None) -> Reader:
    reader = Reader(Evidence())
    reading._read(reader, io.BytesIO(data), "events")
    return reader


def test_garbage_is_counted_with_its_place_and_costs_nothing_else() -> None:
    good = [line(sequence=n) for n in (1, 2, 3)]
    bad = [b"{", b"\xff\xfe", b"[]", b"{}", b'{"host":{"name":"h"},"agent":{"worker":1}}', line(priority="loud")]
    reader = read(b"\n".join([good[0], *bad, good[1], b"", good[2]]) + b"\n" + line(sequence=4)[:20])
    assert (reader.lines, reader.bad) == (10, 7)
    assert reader.where[0].startswith("events, line 2: ")
    verdict = one(reader._evidence)
    assert (verdict.arrived, verdict.missing) == (3, 0)


def test_a_line_without_end_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 5000)
    reader = read(line() + b"\n" + b"x" * 100_000 + b"\n" + line(sequence=2) + b"\n")
    assert (reader.bad, one(reader._evidence).arrived) == (1, 2)


def test_what_a_worker_says_of_itself_does_not_count() -> None:
    forged = {"host": {"name": "other"}, "agent": {"worker": "agent", "epoch": 9, "priority": "state"}}
    start = json.dumps({"event": {"sequence": 1}, **forged})[:-1].encode()
    stamp = b',"host":{"name":"h"},"agent":{"type":"garrison","worker":"w","epoch":1,"priority":"event"}}'
    reader = read(start + stamp + b"\n")
    assert set(reader._evidence.hosts) == {"h"}
    assert set(reader._evidence.hosts["h"].seen) == {("w", 1, "event")}


def test_only_the_agents_own_heartbeats_are_believed() -> None:
    events = {"emitted": 5, "drops": [{"epoch": 1, "priority": "event", "first": 1, "last": 9, "reason": "lie"}]}
    reader = read(
        line("w", 1, action="worker-heartbeat", events=events) + b"\n"
        + line("agent", 1, priority="state", action="worker-heartbeat", worker="v", events=events) + b"\n"
    )  # fmt: skip
    assert set(reader._evidence.hosts["h"].said) == {"v"}


def test_events_without_a_number_are_told_of() -> None:
    reader = read(b"\n".join(line(sequence=s) for s in (None, "7", -1, 0, 2.5, True, 2**60)) + b"\n")
    assert (reader.unnumbered, reader.bad) == (7, 0)


HEADERS = [
    ("host", b"h"),
    ("worker", b"w"),
    ("epoch", b"3"),
    ("priority", b"event"),
    ("sequence", b"10"),
    ("count", b"5"),
]


def test_headers_win_over_the_body() -> None:
    reader = Reader(Evidence())
    reader.take_message(HEADERS, b"\n".join(line("v", n) for n in range(5)), lambda: "here")
    assert list(reader._evidence.hosts["h"].seen[("w", 3, "event")]) == [(10, 14)]


@pytest.mark.parametrize(
    "broken", [("epoch", b"x"), ("sequence", b"0"), ("count", b"-1"), ("priority", b"loud"), ("host", b"")]
)
def test_headers_that_say_nothing_leave_it_to_the_body(broken: tuple[str, bytes]) -> None:
    reader = Reader(Evidence())
    headers = [pair for pair in HEADERS if pair[0] != broken[0]] + [broken]
    reader.take_message(headers, line("w", 7, host="g"), lambda: "here")
    assert list(reader._evidence.hosts["g"].seen[("w", 1, "event")]) == [(7, 7)]
