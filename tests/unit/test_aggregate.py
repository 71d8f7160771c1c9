"""Who answers for it when all together break their budget. The policy alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.budget.aggregate import Budget, Member, Own, State, Verdict, judge, memory_room

MIB = 1024 * 1024
BUDGET = Budget(cpu_percent=20.0, memory_max=256 * MIB)
OWN = Own(cpu_percent=1.0, memory_bytes=40 * MIB)


def worker(name: str, mib: float = 10, high: int = 64, cpu: float = 0.5, throttled: bool = False) -> Member:
    return Member(name=name, memory_bytes=int(mib * MIB), memory_high=high * MIB, cpu_percent=cpu, throttled=throttled)


def test_three_leakers_and_the_healthy_larger_neighbour_lives() -> None:
    state, tripped = State(), []
    leak = dict.fromkeys(("a", "b", "c"), 5.0)
    for second in range(200):
        members = [worker("healthy", 90, high=100), *(worker(name, size, high=100) for name, size in leak.items())]
        state, verdicts = judge(state, float(second), OWN, members, BUDGET)
        for verdict in verdicts:
            assert verdict.action == "trip"
            tripped.append(verdict.worker)
            del leak[verdict.worker]
        leak = {name: size + 1.0 for name, size in leak.items()}
    assert tripped
    assert "healthy" not in tripped


def test_who_is_above_its_own_bound_goes_before_who_has_grown_more() -> None:
    state, _ = judge(State(), 0.0, OWN, [worker("above", 66), worker("grown", 10, high=200)], BUDGET)
    _, (verdict, *_) = judge(state, 1.0, OWN, [worker("above", 70), worker("grown", 150, high=200)], BUDGET)
    assert (verdict.worker, verdict.resource, verdict.share) == ("above", "memory", 64 * MIB)


def test_no_more_than_needed_and_the_one_that_is_going_is_not_counted() -> None:
    members = [worker("a", 120), worker("b", 100), worker("c", 50)]
    state, first = judge(State(), 0.0, OWN, members, BUDGET)
    assert [verdict.worker for verdict in first] == ["a"]
    state, second = judge(state, 0.2, OWN, members, BUDGET)
    assert second == ()
    _, again = judge(state, 6.0, OWN, members, BUDGET)
    assert [verdict.worker for verdict in again] == ["a"]  # it did not go


def test_many_leakers_at_once_go_before_they_reach_the_cap_however_fast_they_are() -> None:
    cap = BUDGET.memory_max - OWN.memory_bytes
    leakers = {f"leak{number}": 3.0 for number in range(15)}
    state, at, most = State(), 0.0, 0.0
    while leakers:
        at += 0.2  # an alerted watch
        members = [worker("healthy", 60, high=100), *(worker(name, size, high=100) for name, size in leakers.items())]
        most = max(most, sum(member.memory_bytes for member in members))
        state, verdicts = judge(state, at, OWN, members, BUDGET)
        for verdict in verdicts:
            del leakers[verdict.worker]  # and not the healthy one, though it is the largest
        # Together 100 MiB a second, as fast as a tenth of a core can touch new pages.
        leakers = {name: size + 20.0 / len(leakers) for name, size in leakers.items()}
    assert most < cap


def test_growth_alone_is_no_breach() -> None:
    state, _ = judge(State(), 0.0, OWN, [worker("a", 10), worker("b", 10)], BUDGET)
    assert judge(state, 0.2, OWN, [worker("a", 90), worker("b", 90)], BUDGET)[1] == ()


def test_who_does_not_grow_does_not_go_for_the_growth_of_others() -> None:
    state, _ = judge(State(), 0.0, OWN, [worker("large", 120, high=200), worker("a", 5), worker("b", 5)], BUDGET)
    _, verdicts = judge(state, 0.2, OWN, [worker("large", 120, high=200), worker("a", 40), worker("b", 35)], BUDGET)
    assert [verdict.worker for verdict in verdicts] == ["a", "b"]


def test_what_the_master_uses_never_takes_more_than_half_from_the_workers() -> None:
    huge = Own(memory_bytes=1024 * MIB)
    _, verdicts = judge(State(), 0.0, huge, [worker("small", 20)], BUDGET)
    assert verdicts == ()
    assert memory_room(huge, BUDGET) == BUDGET.memory_max / 2


def cpu(seconds: int, members: list[Member], **more: bool) -> Verdict | None:
    state = State()
    for second in range(0, seconds + 1, 5):
        state, verdicts = judge(state, float(second), OWN, members, BUDGET, **more)
        if verdicts:
            (verdict,) = verdicts
            return verdict
    return None


def test_the_greediest_is_throttled_when_all_together_use_up_the_cpu_budget() -> None:
    members = [worker("greedy", cpu=10), worker("busy", cpu=6), worker("quiet", cpu=3.5)]
    assert cpu(10, members) is None
    verdict = cpu(15, members)
    assert verdict is not None
    assert (verdict.worker, verdict.action, verdict.resource) == ("greedy", "throttle", "cpu")


def test_who_is_throttled_already_is_not_throttled_again() -> None:
    verdict = cpu(15, [worker("greedy", cpu=10, throttled=True), worker("busy", cpu=9), worker("quiet", cpu=1)])
    assert verdict is not None
    assert verdict.worker == "busy"


def test_being_stopped_at_the_common_quota_counts_as_having_used_it_up() -> None:
    members = [worker("greedy", cpu=9), worker("quiet", cpu=0.5)]
    assert cpu(60, members) is None
    verdict = cpu(60, [worker("greedy", cpu=12), worker("quiet", cpu=0.5)], stopped_by_quota=True)
    assert verdict is not None
    assert verdict.worker == "greedy"


members = st.lists(
    st.builds(
        worker,
        st.sampled_from("abcdefgh"),
        mib=st.floats(0, 300),
        high=st.integers(4, 200),
        cpu=st.floats(0, 100),
        throttled=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda member: member.name,
)


@given(st.lists(st.tuples(st.floats(-10, 30), members), max_size=40))
def test_a_verdict_names_a_living_worker_above_its_share_and_never_one_below_budget(
    steps: list[tuple[float, list[Member]]],
) -> None:
    state, at = State(), 0.0
    for delta, living in steps:
        at += delta
        old, (state, verdicts) = state, judge(state, at, OWN, living, BUDGET)
        if old.at is not None and at <= old.at:
            assert (state, verdicts) == (old, ())
            at = old.at
            continue
        assert state.sizes.keys() <= {"a", "b", "c", "d", "e", "f", "g", "h"}
        named = [verdict.worker for verdict in verdicts]
        assert len(set(named)) == len(named)
        assert set(named) <= {member.name for member in living}
        for verdict in verdicts:
            if verdict.resource == "memory":
                assert sum(member.memory_bytes for member in living) > memory_room(OWN, BUDGET)
            else:
                assert verdict.mine >= verdict.share
                assert sum(member.cpu_percent for member in living) > BUDGET.cpu_percent / 2
        spared = [member for member in living if member.name not in state.pending]
        assert sum(member.memory_bytes for member in spared) <= memory_room(OWN, BUDGET)


def test_two_samples_are_not_enough_however_long_the_time_between_them() -> None:
    state, _ = judge(State(), 0.0, OWN, [worker("greedy", cpu=50)], BUDGET)
    _, verdicts = judge(state, 3600.0, OWN, [worker("greedy", cpu=50)], BUDGET)
    assert verdicts == ()
