"""Without cgroups, on real processes; needs no rights."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.cgroups.detect import open_cgroups
from garrison.supervisor.cgroups.errors import CgroupError, PlacementError
from garrison.supervisor.cgroups.unprivileged import UnprivilegedCgroups, default_lock_file
from tests.integration._cgroup_support import SPIN, WAIT, Gated, eventually, gone


@pytest.fixture
def cgroups(tmp_path: object) -> Iterator[UnprivilegedCgroups]:
    made = UnprivilegedCgroups(f"{tmp_path}/lock")
    try:
        yield made
    finally:
        made.cleanup()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def run(stack: ExitStack, cgroups: UnprivilegedCgroups, worker: str, code: str) -> Gated:
    child = stack.enter_context(Gated(code, start_new_session=True))
    cgroups.place(worker, child.pid)
    child.open()
    return child


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_it_is_what_cgroup_mode_unprivileged_opens() -> None:
    assert open_cgroups("unprivileged").mode == "unprivileged"
    assert os.path.isabs(default_lock_file())


def test_a_second_agent_is_kept_out(cgroups: UnprivilegedCgroups, tmp_path: object) -> None:
    cgroups.prepare(Limits(memory_max=5))
    assert cgroups.limits() == Limits(memory_max=5)
    second = UnprivilegedCgroups(f"{tmp_path}/lock")
    assert not second.lock()
    with pytest.raises(CgroupError, match="another agent"):
        second.prepare(Limits())
    cgroups.unlock()
    assert second.lock()
    second.unlock()


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: object) -> None:
    os.symlink(f"{tmp_path}/elsewhere", f"{tmp_path}/link")
    with pytest.raises(CgroupError, match="link"):
        UnprivilegedCgroups(f"{tmp_path}/link").lock()
    assert not os.path.exists(f"{tmp_path}/elsewhere")


def test_a_worker_is_placed_counted_stopped_and_killed(cgroups: UnprivilegedCgroups, stack: ExitStack) -> None:
    cgroups.create("w", Limits(memory_max=1))
    assert cgroups.limits("w").memory_max == 1
    child = run(stack, cgroups, "w", SPIN)
    child.line()
    assert cgroups.members("w") == cgroups.members() == [child.pid]
    eventually(lambda: cgroups.usage("w").cpu_seconds > 0.05, "it has used CPU time")
    usage = cgroups.usage("w")
    assert usage.pids == 1
    assert usage.memory_bytes > usage.memory_working_bytes > 0

    cgroups.freeze("w", True)
    eventually(lambda: state(child.pid) == "T", "stopped")
    cgroups.freeze("w", False)
    eventually(lambda: state(child.pid) == "R", "continued")
    cgroups.freeze("w", True)
    assert cgroups.kill("w") == 1
    assert child.wait() == -9
    assert cgroups.remove("w")


def test_descendants_are_members_also_when_they_leave_the_session(
    cgroups: UnprivilegedCgroups, stack: ExitStack
) -> None:
    cgroups.create("w", Limits())
    child = run(
        stack,
        cgroups,
        "w",
        "import time\npid = os.fork()\nif pid == 0:\n    os.setsid()\n"
        "    if os.fork():\n        sys.stdin.readline()\n        os._exit(0)\n"
        "    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
        "os.waitpid(pid, 0)",
    )
    grandchild = int(child.line())
    assert grandchild in cgroups.members("w")
    child.open()
    child.wait()
    assert cgroups.members("w") == [grandchild]
    assert not cgroups.remove("w")
    with pytest.raises(CgroupError, match=str(grandchild)):
        cgroups.create("w", Limits())
    cgroups.kill()
    eventually(lambda: gone(grandchild), "the grandchild is dead")
    assert cgroups.members("w") == []


def test_who_shares_our_session_is_no_member(cgroups: UnprivilegedCgroups, stack: ExitStack) -> None:
    cgroups.create("w", Limits())
    bystander = stack.enter_context(Gated(WAIT))
    child = stack.enter_context(Gated(WAIT))
    cgroups.place("w", child.pid)
    assert cgroups.members("w") == [child.pid]
    cgroups.kill("w")
    assert child.wait() == -9
    assert bystander.process.poll() is None


def test_a_dead_process_is_not_placed(cgroups: UnprivilegedCgroups, stack: ExitStack) -> None:
    cgroups.create("w", Limits())
    child = stack.enter_context(Gated(""))
    child.process.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(PlacementError):
        cgroups.place("w", child.pid)
    child.wait()
    with pytest.raises(PlacementError, match="gone"):
        cgroups.place("w", child.pid)


def test_an_unknown_worker_is_an_error_to_use_and_nothing_to_look_at(cgroups: UnprivilegedCgroups) -> None:
    assert cgroups.members("nobody") == []
    assert cgroups.kill("nobody") == 0
    assert cgroups.remove("nobody")
    with pytest.raises(CgroupError, match="nobody"):
        cgroups.limit("nobody", Limits())
    with pytest.raises(CgroupError, match="nobody"):
        cgroups.place("nobody", os.getpid())


def test_cpu_time_of_children_that_ended_stays_counted(cgroups: UnprivilegedCgroups, stack: ExitStack) -> None:
    cgroups.create("w", Limits())
    child = run(
        stack,
        cgroups,
        "w",
        "import time\npid = os.fork()\nif pid == 0:\n"
        "    while time.process_time() < 0.2: pass\n    os._exit(0)\n"
        "os.waitpid(pid, 0)\n" + WAIT,
    )
    assert child.line() == "on"
    assert cgroups.usage("w").cpu_seconds >= 0.15
    before = cgroups.usage("w").cpu_seconds
    child.open()
    child.wait()
    time.sleep(0)
    assert cgroups.usage("w").cpu_seconds >= before - 0.3
