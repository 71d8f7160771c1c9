"""Caps on the real kernel: written before anything runs, read back, and enforced."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.supervisor.cgroups.base import Limits, OomWatch
from garrison.supervisor.cgroups.errors import CgroupError, LimitError, PlacementError
from garrison.supervisor.cgroups.files import apply, read
from garrison.supervisor.cgroups.legacy_controllers import Cpu
from tests.integration._cgroup_support import (
    AGGREGATE,
    CAPPING,
    DEADLINE,
    MIB,
    SPIN,
    WAIT,
    WORKER,
    Agent,
    agent,
    eventually,
)


@pytest.fixture(params=CAPPING)
def host(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with agent(request.param) as made:
        made.prepare()
        yield made


@pytest.fixture(params=["hybrid", "legacy"])
def v1_host(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with agent(request.param) as made:
        made.prepare()
        yield made


def quota(host: Agent, worker: str | None) -> int | None:
    tree = host.cgroups._resources.cpu_tree
    if tree.mount.version == 1:
        return Cpu(tree.node(worker)).number("cfs_quota_us")
    first = read(os.path.join(tree.node(worker), "cpu.max")).split()[0]
    return None if first == "max" else int(first)


def drained(watch: OomWatch) -> bool:
    watch.drain()
    return not select.select([watch], [], [], 0.05)[0]


def test_caps_are_in_force_before_the_process_runs(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.child(WAIT)
    host.cgroups.place("w", child.pid)

    assert host.cgroups.members("w") == [child.pid]
    assert quota(host, "w") == 20_000
    assert quota(host, None) == 80_000


def test_a_spinner_is_held_to_its_quota(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", SPIN)
    child.line()
    began, before = time.monotonic(), host.cgroups.usage("w")
    eventually(lambda: host.cgroups.usage("w").periods >= before.periods + 20, "20 periods")
    spent = host.cgroups.usage("w").cpu_seconds - before.cpu_seconds
    elapsed = time.monotonic() - began

    # 20 % of one core; a slice can run over its period by a tick or two.
    assert spent <= elapsed * 0.20 * 1.5 + 0.05
    after = host.cgroups.usage("w")
    assert after.throttled_periods > before.throttled_periods
    assert after.throttled_seconds > before.throttled_seconds
    assert after.pids == 1
    assert host.cgroups.usage().cpu_seconds >= after.cpu_seconds - 0.5


def test_a_process_past_its_memory_cap_is_killed_and_the_watch_tells(host: Agent) -> None:
    host.cgroups.create("w", Limits(memory_max=32 * MIB))
    host.cgroups.create("neighbour", WORKER)
    neighbour = host.run("neighbour", WAIT)
    neighbour.line()
    watch = host.cgroups.oom_watch("w")
    assert watch is not None
    try:
        child = host.run("w", f"b = bytearray({128 * MIB})\nfor i in range(0, len(b), 4096): b[i] = 1")
        assert child.wait() == -9
        assert select.select([watch], [], [], DEADLINE)[0], "the watch did not fire"
        # v2 tells of several kinds of events, the last of them up to 10 ms late.
        eventually(lambda: drained(watch), "a drained watch is quiet")
        # With memory.oom.group the kernel counts the one that it chose a second time, as one of the group (v2).
        kills = host.cgroups.usage("w").oom_kills
        assert kills in ((1, 2) if host.cgroups.mode == "unified" else (1,))
        assert host.cgroups.usage().oom_kills == kills
        assert host.cgroups.usage("neighbour").oom_kills == 0
        assert neighbour.process.poll() is None
    finally:
        watch.close()
        watch.close()


def test_removing_a_watched_node_is_harmless(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    watch = host.cgroups.oom_watch("w")
    assert watch is not None
    try:
        assert host.cgroups.remove("w")
        select.select([watch], [], [], 0.2)
        watch.drain()
        watch.drain()
        assert host.cgroups.usage("w").oom_kills == 0
    finally:
        watch.close()


def test_a_watch_of_a_missing_node_is_refused(host: Agent) -> None:
    with pytest.raises(CgroupError, match="nobody"):
        host.cgroups.oom_watch("nobody")


def test_anonymous_memory_is_working_memory_and_page_cache_is_not(host: Agent, tmp_path: object) -> None:
    host.cgroups.create("w", WORKER)
    file = os.path.join(str(tmp_path), "cache")
    child = host.run(
        "w",
        f"b = b'x' * {8 * MIB}\n"
        f"f = open({file!r}, 'wb')\nf.write(bytes({24 * MIB}))\nf.flush()\nos.fsync(f.fileno())\n" + WAIT,
    )
    assert child.line() == "on"
    usage = host.cgroups.usage("w")

    assert usage.memory_working_bytes >= 8 * MIB
    assert usage.memory_bytes >= usage.memory_working_bytes
    assert usage.memory_working_bytes < 28 * MIB


def test_a_fork_bomb_stops_at_its_cap(host: Agent) -> None:
    host.cgroups.create("w", Limits(pids_max=8, cpu_quota_percent=50))
    child = host.run(
        "w",
        "import time\nmade = 0\n"
        "for _ in range(30):\n"
        "    try:\n        pid = os.fork()\n"
        "    except OSError:\n        break\n"
        "    if pid == 0: time.sleep(600)\n"
        "    made += 1\n"
        "print(made, flush=True)\ntime.sleep(600)",
    )
    assert child.line() == "7"
    usage = host.cgroups.usage("w")
    assert usage.pids == 8
    assert usage.pids_refused >= 1
    host.cgroups.kill("w")
    eventually(lambda: host.cgroups.remove("w"), "the bomb is gone")


def test_a_changed_cap_is_in_force_at_once(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    host.cgroups.limit("w", Limits(cpu_quota_percent=2.5, memory_max=48 * MIB, pids_max=5))
    assert quota(host, "w") == 2_500
    host.cgroups.limit("w", Limits(memory_max=96 * MIB))
    assert quota(host, "w") is None


def test_a_quota_below_a_millisecond_a_period_has_a_longer_period_and_comes_back(v1_host: Agent) -> None:
    v1_host.cgroups.create("w", WORKER)
    node = Cpu(v1_host.cgroups.path("w"))
    for percent, quota_us, period_us in ((0.5, 1000, 200_000), (0.2, 1000, 500_000), (20.0, 20_000, 100_000)):
        v1_host.cgroups.limit("w", Limits(cpu_quota_percent=percent, memory_max=96 * MIB))
        assert (node.number("cfs_quota_us"), node.number("cfs_period_us")) == (quota_us, period_us)


def test_a_common_quota_below_a_workers_share_of_another_period_lowers_it(v1_host: Agent) -> None:
    v1_host.cgroups.create("w", WORKER)
    v1_host.cgroups.limit("w", Limits(cpu_quota_percent=0.5, memory_max=96 * MIB))
    v1_host.cgroups.limit_aggregate(Limits(cpu_quota_percent=2, memory_max=256 * MIB))
    node = Cpu(v1_host.cgroups.path("w"))
    assert (node.number("cfs_quota_us"), node.number("cfs_period_us")) == (1000, 200_000)
    v1_host.cgroups.limit("w", Limits(cpu_quota_percent=5, memory_max=96 * MIB))
    assert (node.number("cfs_quota_us"), node.number("cfs_period_us")) == (2000, 100_000)


def test_a_refused_cap_leaves_the_old_ones_in_force(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    with pytest.raises(LimitError, match=r"w: .*0\.1 %"):
        host.cgroups.limit("w", Limits(cpu_quota_percent=0.05, pids_max=7))
    with pytest.raises(LimitError, match=r"pids\.max"):
        host.cgroups.limit("w", Limits(cpu_quota_percent=5, memory_max=32 * MIB, pids_max=-5))
    assert quota(host, "w") == 20_000
    host.cgroups.limit("w", WORKER)


def test_a_node_whose_cap_is_refused_is_removed_again(host: Agent) -> None:
    with pytest.raises(LimitError):
        host.cgroups.create("w", Limits(pids_max=-5))
    assert not os.path.exists(host.cgroups.path("w"))


def test_v1_refuses_a_child_quota_above_its_parents_and_that_is_seen(v1_host: Agent) -> None:
    v1_host.cgroups.create("w", WORKER)
    node = Cpu(v1_host.cgroups.path("w"))
    with pytest.raises(LimitError, match=r"cfs_quota_us.*above that of a parent"):
        apply([node.change("cfs_quota_us", 90_000)])
    assert node.number("cfs_quota_us") == 20_000


def test_a_worker_quota_above_the_aggregate_is_held_at_the_aggregate(v1_host: Agent) -> None:
    v1_host.cgroups.create("w", Limits(cpu_quota_percent=150))
    assert quota(v1_host, "w") == 80_000


def test_a_lowered_aggregate_lowers_its_children_first_and_a_raised_one_gives_it_back(host: Agent) -> None:
    host.cgroups.create("a", Limits(cpu_quota_percent=60))
    host.cgroups.create("b", Limits(cpu_quota_percent=10))
    host.cgroups.create("c", Limits())

    host.cgroups.limit_aggregate(Limits(cpu_quota_percent=30))
    assert quota(host, None) == 30_000
    if host.variant != "unified":
        assert quota(host, "a") == 30_000
    assert (quota(host, "b"), quota(host, "c")) == (10_000, None)

    host.cgroups.limit_aggregate(Limits(cpu_quota_percent=50))
    if host.variant != "unified":
        assert quota(host, "a") == 50_000

    host.cgroups.limit_aggregate(Limits())
    assert (quota(host, None), quota(host, "a"), quota(host, "b")) == (None, 60_000, 10_000)


quotas = st.none() | st.integers(1, 100)


def test_quotas_of_aggregate_and_workers_may_change_in_any_order(v1_host: Agent) -> None:
    """What v1's rules about parents and children must never show: the lower of the two is in force, always."""
    asked: dict[str, int | None] = {"a": None, "b": None}
    for name in asked:
        v1_host.cgroups.create(name, Limits())

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["a", "b", ""]), quotas), min_size=1, max_size=8))
    def check(steps: list[tuple[str, int | None]]) -> None:
        for name, percent in steps:
            limits = Limits(cpu_quota_percent=percent)
            if name:
                asked[name] = percent
                v1_host.cgroups.limit(name, limits)
            else:
                v1_host.cgroups.limit_aggregate(limits)
            aggregate = quota(v1_host, None)
            for worker, wanted in asked.items():
                expected = None if wanted is None else min(wanted * 1000, aggregate or wanted * 1000)
                assert quota(v1_host, worker) == expected

    check()


def test_a_refused_aggregate_leaves_everything_as_it_was(host: Agent) -> None:
    host.cgroups.create("a", Limits(cpu_quota_percent=60))
    with pytest.raises(LimitError, match="workers"):
        host.cgroups.limit_aggregate(Limits(cpu_quota_percent=30, pids_max=-5))
    assert (quota(host, None), quota(host, "a")) == (80_000, 60_000)


def test_memory_caps_can_be_raised_and_lowered_in_any_order(host: Agent) -> None:
    host.cgroups.create("w", Limits(memory_max=32 * MIB))
    for size in (64 * MIB, 16 * MIB, None, 48 * MIB, 48 * MIB + 100, None):
        host.cgroups.limit("w", Limits(memory_max=size))
        host.cgroups.limit_aggregate(Limits(memory_max=size))


def test_a_dead_process_is_not_placed(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.child("")
    child.process.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(PlacementError, match=str(child.pid)):
        host.cgroups.place("w", child.pid)
    child.process.wait()
    with pytest.raises(PlacementError, match="gone"):
        host.cgroups.place("w", child.pid)


def test_a_process_is_not_placed_in_a_node_that_was_not_made(host: Agent) -> None:
    child = host.child("")
    with pytest.raises(PlacementError, match="nobody"):
        host.cgroups.place("nobody", child.pid)


def test_a_node_is_made_anew_with_fresh_counters(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", "pass")
    assert child.wait() == 0
    assert host.cgroups.usage("w").cpu_seconds > 0
    host.cgroups.create("w", WORKER)
    assert host.cgroups.usage("w").cpu_seconds == 0


def test_a_node_with_processes_is_neither_made_anew_nor_removed(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", WAIT)
    child.line()
    with pytest.raises(CgroupError, match=str(child.pid)):
        host.cgroups.create("w", WORKER)
    assert not host.cgroups.remove("w")
    assert host.cgroups.members("w") == [child.pid]


def test_what_does_not_exist_counts_nothing_and_is_removed(host: Agent) -> None:
    assert host.cgroups.usage("nobody").cpu_seconds == 0
    assert host.cgroups.members("nobody") == []
    assert host.cgroups.remove("nobody")
    assert host.cgroups.kill("nobody") == 0


@pytest.mark.parametrize("name", ["", "..", "a/b", "memory.max", "a\n", "x" * 200])
def test_a_name_that_cannot_be_a_node_is_refused(host: Agent, name: str) -> None:
    with pytest.raises(CgroupError, match="cannot name"):
        host.cgroups.create(name, AGGREGATE)
