"""The v2 caps on a recorded tree: plain files with the names and first contents that Linux gives a node.

The kernel's own rules are tested in a virtual machine with v2; this shows what is written where and in which case.
"""

from __future__ import annotations

import os
import select

import pytest

from garrison.supervisor.cgroups.base import Limits, Usage
from garrison.supervisor.cgroups.errors import LimitError, UnsupportedError
from garrison.supervisor.cgroups.files import read, write
from garrison.supervisor.cgroups.hierarchy import Mount
from garrison.supervisor.cgroups.tree import Tree
from garrison.supervisor.cgroups.unified import UnifiedCgroups, UnifiedResources

MIB = 1024 * 1024
NODE = {
    "cgroup.controllers": "cpu io memory pids",
    "cgroup.events": "populated 0\nfrozen 0",
    "cgroup.freeze": "0",
    "cgroup.kill": "",
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "cpu.max": "max 100000",
    "cpu.stat": (
        "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n"
        "nr_periods 40\nnr_throttled 7\nthrottled_usec 1500000"
    ),
    "cpu.weight": "100",
    "memory.current": "9000000",
    "memory.events": "low 0\nhigh 3\nmax 2\noom 1\noom_kill 1\noom_group_kill 1",
    "memory.events.local": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
    "memory.high": "max",
    "memory.max": "max",
    "memory.oom.group": "0",
    "memory.stat": "anon 4000000\nfile 3000000\nkernel 1500000\nsock 0\nshmem 0\nslab_reclaimable 1000000",
    "memory.swap.max": "max",
    "pids.current": "3",
    "pids.events": "max 5",
    "pids.max": "max",
}


class RecordedTree(Tree):
    """Gives a new directory its files, and takes them back with it, as the kernel does."""

    absent: frozenset[str] = frozenset()

    def _mkdir(self, directory: str) -> None:
        super()._mkdir(directory)
        fill(directory, self.absent)

    def _rmdir(self, directory: str) -> None:
        for name in NODE:
            if os.path.exists(os.path.join(directory, name)):
                os.unlink(os.path.join(directory, name))
        super()._rmdir(directory)


def fill(directory: str, absent: frozenset[str] = frozenset()) -> None:
    for name in NODE.keys() - absent:
        with open(os.path.join(directory, name), "w") as file:
            file.write(NODE[name] + "\n")


def recorded(tmp_path: object, absent: frozenset[str] = frozenset(), *, delegated: bool = False) -> UnifiedCgroups:
    fill(str(tmp_path), absent)
    tree = RecordedTree(Mount(2, frozenset(), "", "/", str(tmp_path)), "/garrison", delegated=delegated)
    tree.absent = absent
    cgroups = UnifiedCgroups(tree)
    resources = cgroups._resources
    for directory in (tree.directory, tree.supervisor):
        tree.make(directory)
    resources.set_up_own()
    tree.make(tree.workers)
    resources.set_up_workers()
    return cgroups


def texts(cgroups: UnifiedCgroups, worker: str | None, *names: str) -> list[str]:
    node = cgroups._stopper.tree.node(worker)
    return [read(os.path.join(node, name)).strip() for name in names]


def test_a_workers_caps_are_all_written(tmp_path: object) -> None:
    cgroups = recorded(tmp_path)
    cgroups.create("w", Limits(12.5, 50, 64 * MIB, 96 * MIB + 5, 32))
    assert texts(cgroups, "w", "cpu.max", "cpu.weight", "pids.max") == ["12500 100000", "50", "32"]
    assert texts(cgroups, "w", "memory.high", "memory.max") == [str(64 * MIB), str(96 * MIB)]
    assert texts(cgroups, "w", "memory.swap.max", "memory.oom.group") == ["0", "1"]
    cgroups.limit("w", Limits())
    assert texts(cgroups, "w", "cpu.max", "memory.max", "memory.swap.max", "pids.max") == [
        "max 100000",
        "max",
        "max",
        "max",
    ]
    assert cgroups.remove("w")


def test_an_oom_of_all_workers_takes_one_of_them_and_a_workers_own_takes_all_of_it(tmp_path: object) -> None:
    cgroups = recorded(tmp_path)
    cgroups.create("w", Limits())
    assert texts(cgroups, "w", "memory.oom.group") == ["1"]
    cgroups.limit_aggregate(Limits(cpu_quota_percent=20, memory_max=256 * MIB))
    assert texts(cgroups, None, "memory.oom.group", "memory.max", "cpu.max") == ["0", str(256 * MIB), "20000 100000"]


def test_controllers_are_enabled_from_the_top_to_the_workers(tmp_path: object) -> None:
    cgroups = recorded(tmp_path)
    top = str(tmp_path)
    for node in (top, f"{top}/garrison", f"{top}/garrison/workers"):
        assert read(f"{node}/cgroup.subtree_control") == "+cpu +memory +pids"
    assert read(f"{top}/garrison/supervisor/cgroup.subtree_control").strip() == ""
    assert cgroups.enforced == {"cpu", "memory", "pids", "freeze", "kill"}


def test_nothing_above_a_delegated_unit_is_touched(tmp_path: object) -> None:
    os.mkdir(f"{tmp_path}/garrison")
    fill(f"{tmp_path}/garrison")
    recorded(tmp_path, delegated=True)
    assert read(f"{tmp_path}/cgroup.subtree_control").strip() == ""
    assert read(f"{tmp_path}/garrison/cgroup.subtree_control") == "+cpu +memory +pids"


def test_a_delegated_unit_without_a_controller_is_told_to_delegate(tmp_path: object) -> None:
    tree = Tree(Mount(2, frozenset(), "", "/", str(tmp_path)), "/garrison.service", delegated=True)
    os.mkdir(tree.directory)
    fill(tree.directory)
    write(os.path.join(tree.directory, "cgroup.controllers"), "cpu pids")
    (text,) = UnifiedResources(tree).missing()
    assert text.startswith(f"no memory in {tree.directory}/cgroup.controllers (set Delegate=yes in the unit;")
    with pytest.raises(UnsupportedError, match="Delegate=yes"):
        UnifiedCgroups(tree).prepare(Limits())


def test_old_kernels_without_swap_accounting_or_oom_groups_are_capped_all_the_same(tmp_path: object) -> None:
    cgroups = recorded(tmp_path, frozenset({"memory.swap.max", "memory.oom.group"}))
    cgroups.create("w", Limits(memory_max=96 * MIB))
    assert texts(cgroups, "w", "memory.max") == [str(96 * MIB)]


def test_a_missing_cap_file_is_a_limit_error_and_the_node_goes_again(tmp_path: object) -> None:
    cgroups = recorded(tmp_path, frozenset({"pids.max"}))
    with pytest.raises(LimitError, match=r"pids\.max"):
        cgroups.create("w", Limits(pids_max=3))
    assert not os.path.exists(cgroups.path("w"))


def test_the_counters_are_read_from_their_files(tmp_path: object) -> None:
    cgroups = recorded(tmp_path)
    cgroups.create("w", Limits())
    usage = cgroups.usage("w")
    assert (usage.cpu_seconds, usage.throttled_seconds) == (2.5, 1.5)
    assert (usage.periods, usage.throttled_periods) == (40, 7)
    assert (usage.memory_bytes, usage.memory_working_bytes) == (9_000_000, 4_500_000)
    assert (usage.pids, usage.pids_refused, usage.oom_kills) == (3, 5, 1)


def test_the_watch_tells_that_memory_events_changed(tmp_path: object) -> None:
    cgroups = recorded(tmp_path)
    cgroups.create("w", Limits())
    watch = cgroups.oom_watch("w")
    assert watch is not None
    try:
        assert not select.select([watch], [], [], 0)[0]
        write(os.path.join(cgroups.path("w"), "memory.events"), "oom_kill 2")
        assert select.select([watch], [], [], 30)[0]
        watch.drain()
        assert not select.select([watch], [], [], 0)[0]
        watch.drain()
    finally:
        watch.close()
        watch.close()


@pytest.mark.parametrize("name", ["memory.events.local", "memory.events"])
def test_the_watch_on_all_workers_does_not_hear_of_what_is_one_workers_own_where_the_kernel_can_tell(
    tmp_path: object, name: str
) -> None:
    cgroups = recorded(tmp_path, frozenset() if name.endswith("local") else frozenset({"memory.events.local"}))
    watch = cgroups.memory_watch(200 * MIB)
    assert watch is not None
    workers = os.path.dirname(cgroups.path("w"))
    try:
        if name.endswith("local"):
            write(os.path.join(workers, "memory.events"), "high 4")  # a worker's, counted above it too
            assert not select.select([watch], [], [], 0)[0]
        write(os.path.join(workers, name), "max 3")
        assert select.select([watch], [], [], 30)[0]
    finally:
        watch.close()


@pytest.mark.parametrize(
    ("events", "origin"),
    [
        ("low 0\nhigh 9\nmax 9\noom 1\noom_kill 1\noom_group_kill 1", "own"),
        # Its own cap was never the reason: the kill was that of the node above, or of the host.
        ("low 0\nhigh 9\nmax 9\noom 0\noom_kill 1", "ancestor"),
        ("low 0\nhigh 9\nmax 9\noom 0\noom_kill 0", None),
        # At its cap, and the allocation failed without a victim.
        ("low 0\nhigh 9\nmax 9\noom 3\noom_kill 0", None),
    ],
)
def test_whose_oom_it_was_is_told_from_the_victims_own_events(
    tmp_path: object, events: str, origin: str | None
) -> None:
    cgroups = recorded(tmp_path)
    cgroups.create("w", Limits())
    write(os.path.join(cgroups.path("w"), "memory.events"), events)
    assert cgroups.usage("w").oom_origin == origin


def test_counters_of_a_controller_that_is_off_are_zero_and_cpu_time_is_there_without_one(tmp_path: object) -> None:
    cgroups = recorded(tmp_path)
    cgroups.create("w", Limits())
    write(os.path.join(cgroups.path("w"), "cpu.stat"), "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000")
    for name in ("memory.stat", "memory.events", "memory.current", "pids.current", "pids.events"):
        os.unlink(os.path.join(cgroups.path("w"), name))
    assert cgroups.usage("w") == Usage(cpu_seconds=2.5)


def test_the_kill_plan_names_cgroup_kill_and_the_quota(tmp_path: object) -> None:
    cgroups = recorded(tmp_path)
    plan = cgroups.kill_plan()
    workers = f"{tmp_path}/garrison/workers"
    assert plan.kill_files == (f"{workers}/cgroup.kill",)
    assert plan.freezer == ""
    assert plan.quota_files == ((f"{workers}/cpu.max", "max"),)


def test_before_linux_5_14_the_plan_freezes_the_node(tmp_path: object) -> None:
    cgroups = recorded(tmp_path, frozenset({"cgroup.kill"}))
    plan = cgroups.kill_plan()
    assert plan.kill_files == ()
    assert plan.freezer == f"{tmp_path}/garrison/workers"


def test_before_linux_5_2_nothing_can_be_frozen(tmp_path: object) -> None:
    cgroups = recorded(tmp_path, frozenset({"cgroup.kill", "cgroup.freeze"}))
    assert cgroups.kill_plan().freezer == ""
    assert "freeze" not in cgroups.enforced
