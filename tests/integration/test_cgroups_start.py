"""Beginning and end: the lock, leftovers of a crashed master, the master's own place, cleaning up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.cgroups.detect import describe_host, detect, open_cgroups, own_path, trees_by_key
from garrison.supervisor.cgroups.errors import CgroupError, UnsupportedError
from garrison.supervisor.cgroups.hierarchy import UNIFIED_KEY, by_key, read_membership, read_mounts
from garrison.supervisor.cgroups.unified import UnifiedCgroups
from tests.integration._cgroup_support import (
    AGGREGATE,
    SPIN,
    STOPPING,
    WAIT,
    WORKER,
    Agent,
    agent,
    make,
    require,
    unique_root,
)

MASTER = """
import os, sys
from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.cgroups.detect import open_cgroups
mode, root, step = sys.argv[1:]
cgroups = open_cgroups(mode, root)
found = cgroups.prepare(Limits(cpu_quota_percent=50))
print(step, len(found.pids), sorted({p for p in open("/proc/self/cgroup").read().split() if root in p}), flush=True)
if step == "first":
    if os.fork() == 0:
        sys.stdout.close()
        os.execvp("sleep", ["sleep", "600"])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-1], "second"])
try:
    os.wait()
except ChildProcessError:
    pass
cgroups.cleanup()
print("alive", os.path.isdir(cgroups.path("w")), flush=True)
"""


@pytest.fixture(params=STOPPING)
def host(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with agent(request.param) as made:
        yield made


def test_a_second_agent_gets_no_lock_and_kills_nothing(host: Agent) -> None:
    host.prepare()
    host.cgroups.create("w", WORKER)
    child = host.run("w", WAIT)
    child.line()
    second = make(host.variant, host.root)
    second._master = host.master.pid
    assert not second.lock()
    with pytest.raises(CgroupError, match="another agent holds"):
        second.prepare(AGGREGATE)
    with pytest.raises(CgroupError, match="another agent holds"):
        second.cleanup()
    assert child.process.poll() is None
    assert host.cgroups.members("w") == [child.pid]


def test_the_lock_comes_before_anything_is_killed_and_ends_with_its_holder(host: Agent) -> None:
    assert host.cgroups.lock()
    assert host.cgroups.lock()
    second = make(host.variant, host.root)
    assert not second.lock()
    host.cgroups.unlock()
    assert second.lock()
    second.unlock()


def test_agents_of_two_modes_share_one_lock() -> None:
    require("legacy")
    with agent("hybrid") as host:
        assert host.cgroups.lock()
        assert not make("legacy", host.root).lock()
        assert not make("v2-without-controllers", host.root).lock()


def test_a_crashed_masters_workers_are_killed_and_removed(host: Agent) -> None:
    host.prepare(Limits(cpu_quota_percent=20))
    children = []
    for name in ("known", "frozen", "throttled"):
        host.cgroups.create(name, Limits(cpu_quota_percent=1))
        child = host.run(name, SPIN)
        child.line()
        children.append(child)
    host.cgroups.freeze("frozen", True)
    tree = host.cgroups._stopper.tree
    inner = os.path.join(tree.node("known"), "inner")
    os.mkdir(inner)
    nursery = host.child("")
    for used in host.cgroups._trees:
        used.place(used.supervisor, nursery.pid)
    old = host.cgroups.path("throttled")

    fresh = host.again()
    found = fresh.prepare(AGGREGATE)

    assert set(found.pids) == {nursery.pid, *(child.pid for child in children)}
    assert inner in found.nodes
    assert old in found.nodes
    assert [child.wait() for child in (*children, nursery)] == [-9] * 4
    assert not os.path.exists(old)
    assert fresh.members() == []
    assert host.master.process.poll() is None
    assert fresh.prepare(AGGREGATE).pids == ()


def test_nodes_of_another_mode_are_leftovers_too() -> None:
    require("legacy")
    with agent("hybrid") as host, agent("legacy", host.root) as before:
        before.prepare()
        before.cgroups.create("w", WORKER)
        child = before.run("w", SPIN)
        child.line()
        before.cgroups.freeze("w", True)
        node = before.cgroups._stopper.tree.node("w")
        before.cgroups.unlock()
        found = host.cgroups.prepare(AGGREGATE)
        assert child.pid in found.pids
        assert child.wait() == -9
        assert not os.path.exists(node)
        host.cgroups.unlock()


def test_the_master_goes_into_supervisor_and_a_restart_by_exec_kills_its_old_nursery_only(host: Agent) -> None:
    if host.variant == "v2-without-controllers":
        pytest.skip("a master cannot start in this mode")
    result = subprocess.run(
        [sys.executable, "-c", MASTER, str(host.variant), host.root, "first"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    first, second, end = result.stdout.splitlines()
    assert first.startswith("first 0 ")
    assert f"{host.root}/supervisor" in first
    assert f"{host.root}/workers" not in first
    assert second == first.replace("first 0", "second 1")
    assert end == "alive False"
    for tree in host.cgroups._trees:
        assert os.path.isdir(tree.supervisor), "the last master was in it"


def test_a_process_among_its_own_leftovers_is_not_killed(host: Agent) -> None:
    host.prepare()
    host.cgroups.create("w", WORKER)
    other = host.run("w", SPIN)
    other.line()
    host.cgroups.place("w", host.master.pid)
    found = host.again().prepare(AGGREGATE)
    assert found.pids == (other.pid,)
    assert other.wait() == -9
    assert host.master.process.poll() is None


def test_an_ancestor_among_the_leftovers_is_named_and_not_killed(host: Agent) -> None:
    host.prepare()
    host.cgroups.create("w", WORKER)
    parent = host.run(
        "w", "import subprocess\np = subprocess.Popen(['sleep', '600'])\nprint(p.pid, flush=True)\np.wait()"
    )
    grandchild = int(parent.line())
    fresh = host.again()
    fresh._master = grandchild
    with pytest.raises(CgroupError, match=str(parent.pid)):
        fresh.prepare(AGGREGATE)
    assert parent.process.poll() is None
    fresh._master = host.master.pid
    fresh.kill()


def test_cleanup_removes_everything_that_is_ours(host: Agent) -> None:
    host.prepare()
    host.cgroups.create("w", WORKER)
    child = host.run("w", WAIT)
    child.line()
    strangers = os.path.join(host.cgroups._stopper.tree.directory, "strange")
    os.mkdir(strangers)
    host.master.process.kill()
    host.master.process.wait()
    host.cgroups._master = None
    found = host.cgroups.cleanup()
    assert child.pid in found.pids
    assert strangers in found.nodes
    for tree in host.cgroups._trees:
        assert tree.directory in found.nodes
        assert not os.path.exists(tree.directory)


def test_v2_without_its_controllers_is_refused_with_what_to_do_before_anything_is_made() -> None:
    require("v2-without-controllers")
    facts = describe_host()
    if not facts.why_not["unified"]:
        pytest.skip("this host has the controllers on v2")
    trees = trees_by_key(read_mounts(), unique_root())
    cgroups = UnifiedCgroups(trees[UNIFIED_KEY])
    with pytest.raises(UnsupportedError, match=r"cpu, memory, pids.*unprivileged"):
        cgroups.prepare(AGGREGATE)
    assert not os.path.exists(trees[UNIFIED_KEY].directory)
    with pytest.raises(UnsupportedError, match=r"'unified' is not possible here.*unprivileged"):
        open_cgroups("unified")


READ_ONLY = """
import subprocess, sys
point, root = sys.argv[1:]
subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.cgroups.detect import describe_host, open_cgroups
from garrison.supervisor.cgroups.errors import UnsupportedError
from garrison.supervisor.cgroups.hierarchy import by_key, read_mounts
from garrison.supervisor.cgroups.tree import Tree
print(describe_host().writable[point])
try:
    print(open_cgroups("auto", root).mode)
except UnsupportedError as error:
    print(error)
mount = next(mount for mount in read_mounts() if mount.point == point)
try:
    Tree(mount, mount.path(root)).lock()
except UnsupportedError as error:
    print(error)
"""


def test_a_read_only_hierarchy_is_refused_with_what_to_do() -> None:
    """In a mount namespace of its own, where one hierarchy is made read-only."""
    facts = describe_host()
    if facts.mode is None or os.geteuid() != 0:
        pytest.skip("needs root and cgroups that can be written")
    point = facts.controllers["cpu"]
    result = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", READ_ONLY, point, unique_root()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode != 0 and ("unshare" in result.stderr or "mount" in result.stderr):
        pytest.skip(f"no mount namespace of our own: {result.stderr.strip().splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    writable, refused, made = result.stdout.splitlines()
    assert writable == "False"
    assert f"{point} is read-only" in refused
    assert "unprivileged" in refused
    assert point in made
    assert "mount it read-write" in made


def test_auto_takes_the_first_possible_mode() -> None:
    facts = describe_host()
    if facts.mode is None:
        with pytest.raises(UnsupportedError, match="unprivileged"):
            detect()
    else:
        assert detect() == facts.mode
        assert open_cgroups("auto", unique_root()).mode == facts.mode


def test_nothing_mounted_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)unified: .*hybrid: .*legacy: .*run as root.*unprivileged"):
        detect([])


def test_a_unit_that_systemd_delegated_is_our_own_and_a_bare_one_is_not() -> None:
    require("v2-without-controllers")
    mount = by_key(read_mounts())[UNIFIED_KEY]
    root = unique_root()
    directory = mount.directory(mount.path(root))
    assert directory is not None
    unit = f"{directory}/garrison.service"
    path = mount.path(f"{root}/garrison.service")
    os.mkdir(directory)
    try:
        os.mkdir(unit)
        try:
            assert own_path(mount, {"": path}, [mount]) == (mount.path("/garrison"), False)
            os.setxattr(unit, "trusted.delegate", b"1")
            assert own_path(mount, {"": path}, [mount]) == (path, True)
            assert own_path(mount, {"": f"{path}/supervisor"}, [mount]) == (path, True)
            assert own_path(mount, {"": f"{path}/elsewhere"}, [mount]) == (mount.path("/garrison"), False)
            assert own_path(mount, {"": path}, [mount], "/mine") == (mount.path("/mine"), False)
        finally:
            os.rmdir(unit)
    finally:
        os.rmdir(directory)


def test_the_default_root_is_used_where_nothing_was_delegated() -> None:
    for mount in read_mounts():
        path, delegated = own_path(mount, read_membership(), read_mounts())
        assert delegated or path == mount.path("/garrison")
