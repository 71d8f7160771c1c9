"""How a new process gets into its node by itself, and that the master's look has the last word."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from garrison.supervisor.cgroups.base import Entry
from garrison.supervisor.cgroups.errors import PlacementError
from garrison.supervisor.cgroups.hierarchy import read_membership
from garrison.supervisor.nursery import fork
from garrison.supervisor.nursery.child import AT_THE_GATE
from garrison.supervisor.nursery.client import Child, NurseryClient
from garrison.supervisor.nursery.protocol import Spawn
from tests.integration._cgroup_support import STOPPING, WORKER, Agent, agent
from tests.integration._nursery_support import DEADLINE, eventually, house, state_of


@pytest.fixture(params=STOPPING)
def host(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with agent(request.param) as made:
        made.prepare()
        made.cgroups.create("w", WORKER)
        yield made


class Waiting:
    """A child of a real nursery at its gate, and the test's end of that gate."""

    def __init__(self, child: Child, gate: socket.socket) -> None:
        self.child = child
        self.pid = child.pid
        self.gate = gate

    async def at_gate(self) -> bytes:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(self.gate, 1), DEADLINE)


@contextlib.asynccontextmanager
async def entered(nursery: NurseryClient, entry: Entry) -> AsyncIterator[Waiting]:
    ours, theirs = socket.socketpair()
    null = os.open(os.devnull, os.O_RDWR)
    with ours:
        ours.setblocking(False)
        try:
            request = Spawn(
                id=0,
                worker="w",
                host="h",
                state_dir="/nonexistent",
                command=("/bin/true",),
                born_in=entry.born_in,
                tasks=entry.tasks,
            )
            child = await nursery.spawn(request, (null, null, null, theirs.fileno()))
        finally:
            theirs.close()
            os.close(null)
        try:
            yield Waiting(child, ours)
        finally:
            # Closed here and not at the end of the with: the child ends by it.
            ours.close()
            await asyncio.wait_for(asyncio.shield(child.exit), DEADLINE)
            child.close()


def with_nursery(test: Callable[[NurseryClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with house() as made:
            await test(await made.keeper.get())

    asyncio.run(main())


def holding(host: Agent, pid: int) -> list[bool]:
    membership = read_membership(pid)
    return [tree.holds(tree.node("w"), membership) for tree in host.cgroups._trees]


def test_a_child_is_in_every_hierarchy_before_the_master_does_anything(host: Agent) -> None:
    entry = host.cgroups.entry("w")
    if not entry.tasks and fork.why_not():
        pytest.skip(f"no clone3 into a cgroup: {fork.why_not()}")

    async def test(nursery: NurseryClient) -> None:
        async with entered(nursery, entry) as child:
            if entry.tasks:
                assert await child.at_gate() == AT_THE_GATE
            born = not fork.why_not()
            assert holding(host, child.pid) == [
                born if tree.mount.version == 2 else True for tree in host.cgroups._trees
            ]
            host.cgroups.place("w", child.pid)
            assert list(host.cgroups.members("w")) == [child.pid]

    with_nursery(test)


def test_the_cpu_cap_comes_last(host: Agent) -> None:
    entry = host.cgroups.entry("w")
    cpu = host.cgroups._resources.cpu_tree
    if cpu.mount.version == 1:
        assert entry.tasks[-1] == f"{cpu.node('w')}/tasks"
    v1 = [tree for tree in host.cgroups._trees if tree.mount.version == 1]
    assert len(entry.tasks) == len(v1)
    assert bool(entry.born_in) == any(tree.mount.version == 2 for tree in host.cgroups._trees)


def test_a_child_that_cannot_get_in_by_itself_waits_all_the_same_and_is_moved(host: Agent) -> None:
    async def test(nursery: NurseryClient) -> None:
        nowhere = Entry(born_in="/sys/fs/cgroup/nowhere", tasks=("/sys/fs/cgroup/nowhere/tasks", "/"))
        async with entered(nursery, nowhere) as child:
            assert await child.at_gate() == AT_THE_GATE
            assert not any(holding(host, child.pid))
            host.cgroups.place("w", child.pid)
            assert all(holding(host, child.pid))

    with_nursery(test)


def test_a_child_that_was_killed_in_its_node_is_not_taken_for_a_living_one(host: Agent) -> None:
    entry = host.cgroups.entry("w")

    async def test(nursery: NurseryClient) -> None:
        async with entered(nursery, entry) as child:
            if entry.tasks:
                await child.at_gate()
            # Nobody reaps it: v2 shows a zombie as still in the node.
            os.kill(nursery.pid, signal.SIGSTOP)
            await eventually(lambda: state_of(nursery.pid) == "T", "the nursery stands")
            try:
                os.kill(child.pid, signal.SIGKILL)
                await eventually(lambda: state_of(child.pid) == "Z", "it is a zombie")
                with pytest.raises(PlacementError, match=str(child.pid)):
                    host.cgroups.place("w", child.pid)
            finally:
                os.kill(nursery.pid, signal.SIGCONT)

    with_nursery(test)


def test_a_kill_of_the_node_reaches_a_child_at_its_gate(host: Agent) -> None:
    entry = host.cgroups.entry("w")

    async def test(nursery: NurseryClient) -> None:
        async with entered(nursery, entry) as child:
            if entry.tasks:
                await child.at_gate()
            host.cgroups.place("w", child.pid)
            await asyncio.to_thread(host.cgroups.kill)
            report = await asyncio.wait_for(asyncio.shield(child.child.exit), DEADLINE)
            assert report is not None
            assert os.waitstatus_to_exitcode(report.status) == -signal.SIGKILL
            with pytest.raises(PlacementError):
                host.cgroups.place("w", child.pid)

    with_nursery(test)
