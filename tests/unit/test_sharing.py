"""The common CPU budget shared out: nobody starves, and all together stay below it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.supervisor.budget.sharing import (
    CALM_LOOKS,
    LEAST_PERCENT,
    SHARED,
    Member,
    State,
    share,
)


def hog(name: str, cpu: float = 5.0, **options: float) -> Member:
    return msgspec.convert({"name": name, "cpu_percent": cpu, "stopped_share": 0.9, **options}, Member)


def little(name: str, cpu: float = 0.2, **options: float) -> Member:
    return msgspec.convert({"name": name, "cpu_percent": cpu, **options}, Member)


members = st.lists(
    st.builds(
        Member,
        name=st.sampled_from([f"w{number}" for number in range(12)]),
        cpu_percent=st.floats(0, 100),
        stopped_share=st.floats(0, 1),
        quota_percent=st.floats(1, 400),
        weight=st.integers(1, 10_000),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda member: member.name,
)


def test_nothing_is_shared_while_there_is_enough() -> None:
    assert share(State(), [little("a"), hog("b", 4.0)], 20.0, stopped_by_quota=False) == State()


@pytest.mark.parametrize(("used", "stopped"), [(19.5, False), (0.5, True)])
def test_it_begins_when_the_room_is_used_up_or_the_kernel_stops_them(used: float, stopped: bool) -> None:
    assert share(State(), [hog("a", used)], 20.0, stopped_by_quota=stopped).active


def test_the_greedy_share_what_the_modest_leave() -> None:
    shared = share(
        State(), [little("modest"), *(hog(f"h{number}") for number in range(4))], 10.0, stopped_by_quota=True
    )
    hogs = [shared.caps[f"h{number}"] for number in range(4)]
    assert hogs == pytest.approx([(SHARED * 10.0 - 0.4) / 4] * 4)
    assert shared.caps["modest"] == pytest.approx(SHARED * 10.0 / 5)


def test_who_got_nothing_is_entitled_to_its_part() -> None:
    shared = share(State(), [hog("a", 9.8), Member(name="starved")], 10.0, stopped_by_quota=True)
    assert shared.caps["starved"] == pytest.approx(SHARED * 10.0 / 2)


def test_weight_decides_among_the_greedy() -> None:
    shared = share(State(), [hog("heavy", weight=300), hog("light", weight=100)], 10.0, stopped_by_quota=True)
    assert shared.caps["heavy"] == pytest.approx(3 * shared.caps["light"])


def test_it_ends_after_some_calm_looks_and_gives_all_back() -> None:
    state = share(State(), [hog("a", 10.0)], 10.0, stopped_by_quota=True)
    for _ in range(CALM_LOOKS - 1):
        state = share(state, [little("a")], 10.0, stopped_by_quota=False)
        assert state.active
    assert share(state, [little("a")], 10.0, stopped_by_quota=False) == State()


def test_one_look_that_is_not_calm_begins_the_count_anew() -> None:
    state = share(State(), [hog("a", 10.0)], 10.0, stopped_by_quota=True)
    for cpu in (0.1, 0.1, 7.0, 0.1, 0.1):
        state = share(state, [little("a", cpu)], 10.0, stopped_by_quota=False)
        assert state.active


def test_a_cap_that_would_hardly_change_stays() -> None:
    first = share(State(), [hog("a"), hog("b"), little("c", 0.20)], 10.0, stopped_by_quota=True)
    again = share(first, [hog("a"), hog("b"), little("c", 0.21)], 10.0, stopped_by_quota=True)
    assert again.caps == first.caps


def test_a_share_that_was_not_used_up_goes_to_the_others_at_the_next_look() -> None:
    first = share(State(), [hog("a"), hog("b")], 10.0, stopped_by_quota=True)
    again = share(first, [hog("a"), little("b")], 10.0, stopped_by_quota=True)
    assert again.caps["a"] > 1.5 * first.caps["a"]


@settings(max_examples=500)
@given(st.lists(members, min_size=1, max_size=4), st.floats(1, 400))
def test_nobody_starves_nobody_exceeds_its_own_quota_and_the_hungry_fit(looks: list[list[Member]], room: float) -> None:
    state = State()
    for look in looks:
        state = share(state, look, room, stopped_by_quota=True)
        assert set(state.caps) == {member.name for member in look}
        whole = sum(member.weight for member in look)
        for member in look:
            cap = state.caps[member.name]
            assert cap <= member.quota_percent
            # What it is entitled to, but for the tenth by which an old cap may differ.
            entitled = min(member.quota_percent, max(LEAST_PERCENT, SHARED * room * member.weight / whole))
            assert cap >= 0.9 * min(entitled, member.quota_percent) - 1e-9
        stopped = [member for member in look if member.stopped_share >= 0.2]
        together = sum(state.caps[member.name] for member in stopped)
        assert together <= 1.12 * SHARED * room + LEAST_PERCENT * len(stopped) + 1e-6
