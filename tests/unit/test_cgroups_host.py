"""Which mode a host can do, and why not the others: from recorded mount tables."""

from __future__ import annotations

import pytest

from garrison.supervisor.cgroups.errors import UnsupportedError
from garrison.supervisor.cgroups.hierarchy import Mount, by_key
from garrison.supervisor.cgroups.host import KERNEL_MODES, reasons
from garrison.supervisor.cgroups.legacy import LegacyCgroups
from garrison.supervisor.cgroups.tree import Tree


def v1(*controllers: str) -> Mount:
    return Mount(1, frozenset(controllers), "", "/", "/sys/fs/cgroup/" + ",".join(controllers))


V2 = Mount(2, frozenset(), "", "/", "/sys/fs/cgroup/unified")
ALL_V1 = (v1("cpu", "cpuacct"), v1("memory"), v1("pids"), v1("freezer"))
CONTROLLERS = frozenset({"cpu", "memory", "pids", "io"})


def judge(
    *mounts: Mount, on_unified: frozenset[str] = frozenset(), kill: bool = True, read_only: str = ""
) -> tuple[str | None, dict[str, str]]:
    writable = {mount.point: mount.point != read_only for mount in mounts}
    against = reasons(by_key(mounts), on_unified, kill=kill, writable=writable)
    first = next((mode for mode in KERNEL_MODES if not against[mode]), None)
    return first, {mode: "; ".join(texts) for mode, texts in against.items()}


def test_v2_with_its_controllers_is_unified() -> None:
    assert judge(V2, on_unified=CONTROLLERS)[0] == "unified"


def test_v2_with_its_controllers_is_preferred_to_v1() -> None:
    assert judge(V2, *ALL_V1, on_unified=CONTROLLERS)[0] == "unified"


def test_controllers_on_v1_beside_a_v2_tree_are_hybrid() -> None:
    mode, against = judge(V2, *ALL_V1)
    assert mode == "hybrid"
    assert against["unified"] == "the cgroup v2 tree at /sys/fs/cgroup/unified does not offer cpu, memory, pids"


def test_hybrid_needs_no_freezer_and_legacy_does() -> None:
    mode, against = judge(V2, *ALL_V1[:-1])
    assert mode == "hybrid"
    assert "freezer" in against["legacy"]


def test_a_v2_tree_that_cannot_kill_makes_legacy() -> None:
    mode, against = judge(V2, *ALL_V1, kill=False)
    assert mode == "legacy"
    assert "no cgroup.kill" in against["hybrid"]


def test_v1_alone_is_legacy() -> None:
    assert judge(*ALL_V1)[0] == "legacy"


def test_each_missing_thing_is_named() -> None:
    mode, against = judge(v1("cpu"), v1("memory"))
    assert mode is None
    assert against["legacy"] == (
        "no cgroup v1 hierarchy with cpuacct, pids is mounted; no cgroup v1 hierarchy with freezer is mounted"
    )
    assert "no cgroup v2 tree is mounted" in against["hybrid"]
    assert against["unified"] == "no cgroup v2 tree is mounted"


@pytest.mark.parametrize("read_only", ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"])
def test_a_hierarchy_that_cannot_be_written_is_named(read_only: str) -> None:
    _, against = judge(V2, *ALL_V1, read_only=read_only)
    assert f"{read_only} is read-only" in against["hybrid"]


def test_unprivileged_is_always_possible_and_never_chosen() -> None:
    mode, against = judge()
    assert mode is None
    assert against["unprivileged"] == ""


def test_legacy_without_a_controller_is_refused_with_how_to_mount_it() -> None:
    trees = {name: Tree(mount, "/garrison") for name, mount in by_key([v1("cpu", "cpuacct"), v1("pids")]).items()}
    with pytest.raises(UnsupportedError, match=r"no cgroup v1 hierarchy with memory.*mount -t cgroup -o memory"):
        LegacyCgroups(trees)


@pytest.mark.parametrize("own", ["/", "", "/elsewhere"])
def test_a_root_that_cannot_be_ours_is_refused(own: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot be our own"):
        Tree(Mount(1, frozenset({"cpu"}), "", "/docker/x", "/sys/fs/cgroup/cpu"), own)
