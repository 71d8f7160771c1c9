"""Freezing and killing on the real kernel, in every mode that this host can do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from garrison.supervisor.cgroups.base import KillPlan, Limits
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.cgroups.files import read
from garrison.supervisor.cgroups.kill import carry_out, frozen_state, kill_processes, listed
from tests.integration._cgroup_support import (
    AGGREGATE,
    SPIN,
    STOPPING,
    WAIT,
    WORKER,
    Agent,
    agent,
    eventually,
    gone,
)

HOG = Limits(cpu_quota_percent=2)
ESCAPE = """
import signal, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture(params=STOPPING)
def host(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with agent(request.param) as made:
        made.prepare()
        yield made


def test_a_frozen_worker_stands_still_and_goes_on_when_thawed(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", "while sys.stdin.readline(): print('tick', flush=True)")
    child.open()
    assert child.line() == "tick"
    node = host.cgroups._stopper.tree.node("w")

    host.cgroups.freeze("w", True)
    assert frozen_state(node)
    host.cgroups.freeze("w", True)
    child.open()
    host.cgroups.freeze("w", False)
    assert frozen_state(node) is False
    assert child.line() == "tick"


def test_an_empty_node_can_be_frozen(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    host.cgroups.freeze("w", True)
    host.cgroups.freeze("w", False)


def test_freezing_a_missing_node_is_an_error(host: Agent) -> None:
    with pytest.raises(CgroupError, match="nobody"):
        host.cgroups.freeze("nobody", True)


def test_a_kill_takes_the_worker_and_leaves_its_neighbour(host: Agent) -> None:
    for name in ("w", "neighbour"):
        host.cgroups.create(name, WORKER)
    victim, neighbour = host.run("w", WAIT), host.run("neighbour", WAIT)
    assert (victim.line(), neighbour.line()) == ("on", "on")

    host.cgroups.kill("w")
    assert victim.wait() == -9
    assert host.cgroups.members() == [neighbour.pid]
    assert neighbour.process.poll() is None
    eventually(lambda: host.cgroups.remove("w"), "the node can be removed")


def test_the_common_quota_is_the_same_after_a_worker_was_killed(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    victim = host.run("w", SPIN)
    victim.line()
    common = host.cgroups._resources.quota_file(None)[0]
    if not os.path.exists(common):
        host.cgroups.kill("w")
        assert victim.wait() == -9
        pytest.skip("no CPU controller in this mode: it was killed all the same")
    before = read(common)
    host.cgroups.kill("w")
    assert victim.wait() == -9
    assert read(common) == before
    # And one that a kill of all has lifted stays lifted: the next start puts it back.
    host.cgroups.kill(None)
    lifted = read(common)
    host.cgroups.kill("w")
    assert read(common) == lifted != before


def test_a_frozen_worker_dies(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", SPIN)
    child.line()
    host.cgroups.freeze("w", True)
    host.cgroups.kill("w")
    assert child.wait() == -9


def test_all_workers_die_the_frozen_and_the_throttled_too(host: Agent) -> None:
    children = []
    for index in range(4):
        name = f"w{index}"
        host.cgroups.create(name, HOG)
        child = host.run(name, SPIN)
        child.line()
        children.append(child)
        if index % 2:
            host.cgroups.freeze(name, True)
    host.cgroups.kill()
    assert [child.wait() for child in children] == [-9] * 4
    host.cgroups.kill()
    host.cgroups.limit_aggregate(AGGREGATE)
    for index in range(4):
        eventually(lambda name=f"w{index}": host.cgroups.remove(name), "removed")


def test_the_kill_plan_alone_kills_all(host: Agent) -> None:
    """What the nursery does: another process, which knows nothing but the plan."""
    host.cgroups.create("a", HOG)
    host.cgroups.create("b", WORKER)
    children = [host.run("a", SPIN), host.run("b", WAIT)]
    for child in children:
        child.line()
    host.cgroups.freeze("b", True)
    code = (
        "import sys\n"
        "from garrison.supervisor.cgroups.base import KillPlan\n"
        "from garrison.supervisor.cgroups.kill import carry_out\n"
        f"carry_out({host.cgroups.kill_plan()!r})\n"
        "heavy = {'asyncio', 'psutil', 'cgroupspy', 'subprocess', 'select'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert [child.wait() for child in children] == [-9, -9]
    carry_out(host.cgroups.kill_plan())


def test_a_kill_lifts_the_quotas_of_the_node_and_of_all_below(host: Agent) -> None:
    if "cpu" not in host.cgroups.enforced:
        pytest.skip("no CPU caps in this mode")
    host.cgroups.create("late", WORKER)
    path, lifted = host.cgroups.kill_plan().quota_files[0]
    files = [path, os.path.join(host.cgroups.path("late"), os.path.basename(path))]
    host.cgroups.kill()
    for file in files:
        with open(file) as opened:
            assert opened.read().split()[0] == lifted
    host.cgroups.limit_aggregate(AGGREGATE)


def test_a_grandchild_that_left_its_session_and_ignores_term_dies(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", ESCAPE)
    grandchild = int(child.line())
    child.wait()
    assert host.cgroups.members("w") == [grandchild]
    host.cgroups.kill("w")
    eventually(lambda: gone(grandchild), "the grandchild is dead")
    eventually(lambda: host.cgroups.remove("w"), "the node can be removed")


def test_a_process_in_a_node_of_its_own_making_dies(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", WAIT)
    child.line()
    tree = host.cgroups._stopper.tree
    inner = os.path.join(tree.node("w"), "inner")
    os.mkdir(inner)
    tree.place(inner, child.pid)
    assert child.pid in host.cgroups.members("w")
    host.cgroups.kill("w")
    assert child.wait() == -9
    eventually(lambda: host.cgroups.remove("w"), "the nodes can be removed")


def test_a_forking_worker_does_not_outrun_the_kill(host: Agent) -> None:
    host.cgroups.create("w", Limits(pids_max=20, cpu_quota_percent=60))
    child = host.run(
        "w",
        "print('on', flush=True)\n"
        "for _ in range(3000):\n"
        "    try:\n        pid = os.fork()\n"
        "    except OSError:\n        continue\n"
        "    if pid: os._exit(0)\n"
        "import time; time.sleep(600)",
    )
    child.line()
    child.wait()
    host.cgroups.kill("w")
    eventually(lambda: not host.cgroups.members("w"), "nobody is left")
    assert host.cgroups.remove("w")


def test_a_kill_comes_from_another_thread(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    child = host.run("w", SPIN)
    child.line()
    thread = threading.Thread(target=host.cgroups.kill)
    thread.start()
    thread.join(30)
    assert child.wait() == -9
    host.cgroups.limit_aggregate(AGGREGATE)


def test_who_is_in_the_node_of_one_hierarchy_only_dies_too() -> None:
    with agent("hybrid") as host:
        host.prepare()
        host.cgroups.create("w", WORKER)
        child = host.child(WAIT)
        tree = host.cgroups._resources.cpu_tree
        tree.place(tree.node("w"), child.pid)
        assert host.cgroups.kill() == 1
        assert child.wait() == -9


def test_a_kernel_without_cgroup_kill_freezes_kills_and_needs_no_thaw() -> None:
    """The plan for v2 from Linux 5.2 up to 5.14."""
    with agent("v2-without-controllers") as host:
        host.prepare()
        host.cgroups.create("w", WORKER)
        child = host.run("w", SPIN)
        child.line()
        node = host.cgroups._stopper.tree.node("w")
        carry_out(KillPlan(freezer=node, procs_dirs=(node,)))
        assert child.wait() == -9


def test_a_kernel_without_any_freezer_signals_one_by_one() -> None:
    with agent("v2-without-controllers") as host:
        host.prepare()
        host.cgroups.create("w", WORKER)
        child = host.run("w", SPIN)
        child.line()
        carry_out(KillPlan(procs_dirs=(host.cgroups._stopper.tree.node("w"),)))
        assert child.wait() == -9


def test_a_process_that_has_left_the_node_is_not_signalled(host: Agent) -> None:
    host.cgroups.create("w", WORKER)
    bystander = host.child(WAIT)
    node = host.cgroups._stopper.tree.node("w")
    assert kill_processes([bystander.pid], [node]) == set()
    assert bystander.process.poll() is None


def test_a_plan_for_nodes_that_are_not_there_does_nothing() -> None:
    missing = "/sys/fs/cgroup/garrison-test-missing"
    carry_out(KillPlan((f"{missing}/cgroup.kill",), missing, (missing,), ((f"{missing}/cpu.max", "max"),)))
    assert listed([missing]) == []
