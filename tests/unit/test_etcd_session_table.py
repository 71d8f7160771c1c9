"""The table of sessions, the pace of attempts, and how another history is told from this one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.stores.base import Entry
from garrison.supervisor.stores.etcd.history import History, contradiction, judge, observed, remembered
from garrison.supervisor.stores.etcd.lifecycle import (
    BASE_SECONDS,
    CAP_SECONDS,
    STABLE_SECONDS,
    TABLE,
    Event,
    Pace,
    State,
    advance,
)
from garrison.supervisor.stores.etcd.results import Header, KeyValue


def test_the_order_of_a_session_is_obey_list_watch() -> None:
    state = State.WAITING
    for event in (Event.DUE, Event.OPENED, Event.OBEYED, Event.LISTED, Event.WATCHED):
        state = advance(state, event)
    assert state is State.LIVE


@pytest.mark.parametrize("state", [state for state in State if state is not State.STOPPED])
def test_every_failure_ends_in_a_new_session_and_every_stop_in_the_end(state: State) -> None:
    assert advance(state, Event.FAILED) is State.WAITING
    assert advance(state, Event.STOP) is State.STOPPED


def test_nothing_skips_the_killswitch() -> None:
    """Listing is reached only by having obeyed."""
    assert {event for (_, event), after in TABLE.items() if after is State.LISTING} == {Event.OBEYED}
    assert {after for (_, event), after in TABLE.items() if event is Event.AGAIN} == {State.OBEYING}


def test_nothing_leaves_the_end() -> None:
    assert not [row for row in TABLE if row[0] is State.STOPPED]


def _rounds(pace: Pace, endpoints: int, rounds: int, cost: float) -> list[tuple[float, int]]:
    now, begun = 0.0, []
    for _ in range(endpoints * rounds):
        pace.begin(now)
        begun.append((now, pace.index))
        now += cost
        now += pace.failed(now)
    return begun


@given(host=st.text(min_size=1, max_size=20), count=st.integers(1, 7), cost=st.floats(0, 5), first=st.integers(0, 50))
def test_every_endpoint_is_tried_in_each_round_and_rounds_are_never_far_apart(
    host: str, count: int, cost: float, first: int
) -> None:
    begun = _rounds(Pace(host, count, first), count, 8, cost)
    for start in range(0, len(begun), count):
        assert {index for _, index in begun[start : start + count]} == set(range(count))
    starts = [begun[start][0] for start in range(0, len(begun), count)]
    for before, after in pairwise(starts):
        assert after - before <= max(CAP_SECONDS, count * cost + BASE_SECONDS) + 1e-6
        assert after - before >= count * cost + BASE_SECONDS / 2 - 1e-6


@given(host=st.text(min_size=1, max_size=20), lives=st.lists(st.floats(0.001, STABLE_SECONDS - 1), max_size=30))
def test_sessions_that_do_not_last_are_made_ever_more_seldom(host: str, lives: list[float]) -> None:
    pace, now = Pace(host, 3, 0), 0.0
    for lived in lives:
        pace.begin(now)
        now += lived
        wait = pace.failed(now, lived)
        assert BASE_SECONDS / 2 <= wait <= max(BASE_SECONDS, CAP_SECONDS - lived)
        now += wait
    pace.begin(now)
    assert pace.failed(now + STABLE_SECONDS, STABLE_SECONDS) <= BASE_SECONDS


@given(host=st.text(min_size=1, max_size=20), lived=st.floats(0.001, 0.5), count=st.integers(1, 7))
def test_sessions_that_break_at_once_begin_at_growing_intervals(host: str, lived: float, count: int) -> None:
    pace, now, begun = Pace(host, count, 0), 0.0, []
    for _ in range(10):
        pace.begin(now)
        begun.append(now)
        now += lived
        now += pace.failed(now, lived)
    for number, (before, after) in enumerate(pairwise(begun)):
        whole = min(CAP_SECONDS, BASE_SECONDS * 2**number)
        assert after - before >= whole / 2 - 1e-6
        assert after - before <= max(whole, lived + BASE_SECONDS) + 1e-6


HEADER = Header(7, 1, 100, 5)


def test_the_first_history_is_no_news() -> None:
    history, reason = judge(History(), HEADER)
    assert (str(history), reason) == ("etcd-7-1", "")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (HEADER._replace(cluster_id=8), "another cluster"),
        (HEADER._replace(revision=99), "revision"),
        (HEADER._replace(term=4, revision=500), "term"),
    ],
)
def test_another_history_is_told_and_has_another_name(header: Header, word: str) -> None:
    known, _ = judge(History(), HEADER)
    history, reason = judge(known, header)
    assert word in reason
    assert str(history) != str(known)


@given(steps=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3)), max_size=20))
def test_growth_is_never_taken_for_another_history(steps: list[tuple[int, int]]) -> None:
    history, _ = judge(History(), HEADER)
    header = HEADER
    for revisions, terms in steps:
        header = header._replace(revision=header.revision + revisions, term=header.term + terms)
        history, reason = judge(history, header)
        assert not reason
        history = observed(history, header.revision)
    assert str(history) == "etcd-7-1"


def test_a_cached_history_goes_on_and_another_stores_does_not() -> None:
    assert remembered("etcd-7-3", 100) == History(7, 3, 100)
    assert remembered("dir-abc.1-3", 100) == History()
    assert remembered("etcd-xyz-3", 100) == History()


def test_keys_contradict_only_when_they_go_back_or_change_without_a_revision() -> None:
    before = {"/a": Entry(b"x", 10), "/unknown": Entry(b"", 10)}

    def read(key: str, value: bytes, revision: int) -> KeyValue:
        return KeyValue(key, value, 1, revision, 1, 0)

    assert contradiction(before, [read("/a", b"x", 9)])
    assert contradiction(before, [read("/a", b"y", 10)])
    assert not contradiction(before, [read("/a", b"x", 10), read("/a", b"y", 11), read("/b", b"", 1)])
    assert not contradiction(before, [read("/unknown", b"whatever", 10)])
