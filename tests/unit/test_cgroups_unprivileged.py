"""Without cgroups: the pure parts."""

from __future__ import annotations

import resource

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.cgroups.base import KillPlan, Limits
from garrison.supervisor.cgroups.unprivileged import CPU_NICE, CpuLedger, UnprivilegedCgroups, nice, rlimits

times = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6))
looks = st.lists(st.dictionaries(st.tuples(st.integers(1, 5), st.just(0.0)), times, max_size=5), max_size=8)


def test_memory_is_capped_per_process_and_no_core_is_written() -> None:
    assert rlimits(Limits(memory_max=1000, pids_max=3)) == {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_DATA: (1000, 1000),
    }
    assert rlimits(Limits()) == {resource.RLIMIT_CORE: (0, 0)}


@given(st.none() | st.integers(1, 10_000), st.none() | st.floats(1, 100))
def test_nobody_gets_a_better_nice_value_than_the_host(weight: int | None, quota: float | None) -> None:
    value = nice(Limits(cpu_weight=weight, cpu_quota_percent=quota))
    assert 0 <= value <= 19
    assert quota is None or value >= CPU_NICE


def test_less_weight_is_nicer() -> None:
    assert [nice(Limits(cpu_weight=weight)) for weight in (10_000, 100, 50, 10, 1)] == [0, 0, 3, 10, 19]


@given(looks)
def test_cpu_time_never_falls(sequence: list[dict[tuple[int, float], tuple[float, float]]]) -> None:
    ledger, last = CpuLedger(), 0.0
    for look in sequence:
        total = ledger.update(look)
        assert total >= last
        last = total


def test_a_waited_for_childs_time_is_counted_once() -> None:
    ledger = CpuLedger()
    parent, child = (1, 0.0), (2, 0.0)
    assert ledger.update({parent: (1.0, 0.0), child: (5.0, 0.0)}) == 6.0
    # The child ended at 5.5 seconds and its parent waited for it.
    assert ledger.update({parent: (1.25, 5.5)}) == 6.75
    assert ledger.update({parent: (1.25, 5.5)}) == 6.75


def test_a_child_that_lived_between_two_looks_is_counted_through_its_parent() -> None:
    ledger = CpuLedger()
    ledger.update({(1, 0.0): (1.0, 0.0)})
    assert ledger.update({(1, 0.0): (1.0, 3.0)}) == 4.0


def test_a_child_that_nobody_in_sight_waited_for_stays_counted() -> None:
    ledger = CpuLedger()
    ledger.update({(1, 0.0): (1.0, 0.0), (2, 0.0): (5.0, 0.0)})
    assert ledger.update({(1, 0.0): (2.0, 0.0)}) == 7.0


def test_a_pid_that_came_round_again_is_another_process() -> None:
    ledger = CpuLedger()
    ledger.update({(1, 0.0): (10.0, 0.0)})
    assert ledger.update({(1, 99.0): (1.0, 0.0)}) == 11.0


def test_nothing_is_claimed_to_be_enforced() -> None:
    cgroups = UnprivilegedCgroups("/nowhere")
    assert cgroups.enforced == frozenset()
    assert cgroups.kill_plan() == KillPlan()
    assert cgroups.path("w") == ""
    assert cgroups.oom_watch("w") is None
