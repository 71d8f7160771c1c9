"""A real nursery for tests: started, reaped and ended by the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from garrison.supervisor.cgroups.base import KillPlan
from garrison.supervisor.nursery.child import GATE_OPEN
from garrison.supervisor.nursery.client import Child, NurseryClient
from garrison.supervisor.nursery.keeper import NurseryKeeper
from garrison.supervisor.nursery.protocol import Exited, Spawn

DEADLINE = 30.0


class House:
    """A keeper, and what it said and did."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.losses = 0
        self.keeper = NurseryKeeper("host", KillPlan, (), self._lost, self.said.append)

    def _lost(self) -> None:
        self.losses += 1


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[House]:
    made = House()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, made.keeper.reap)
    try:
        yield made
    finally:
        await made.keeper.close()
        loop.remove_signal_handler(signal.SIGCHLD)


class Spawned:
    """A child and the test's ends of its pipes."""

    def __init__(self) -> None:
        self.theirs: list[int] = []
        self.ours: dict[str, int] = {}
        for name, reads in (("config", True), ("events", False), ("output", False), ("gate", True)):
            read, write = os.pipe()
            self.theirs.append(read if reads else write)
            self.ours[name] = write if reads else read
        self.child: Child | None = None

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def open_gate(self) -> None:
        os.write(self.ours["gate"], GATE_OPEN)
        self.shut("gate")

    def shut(self, name: str) -> None:
        os.close(self.ours.pop(name))

    async def ended(self) -> Exited | None:
        assert self.child is not None
        return await asyncio.wait_for(asyncio.shield(self.child.exit), DEADLINE)

    def output(self) -> str:
        """Return all that it printed; it must have ended."""
        with os.fdopen(self.ours.pop("output"), "rb") as file:
            return file.read().decode()

    def close(self) -> None:
        for fd in self.ours.values():
            os.close(fd)
        self.ours.clear()
        if self.child is not None:
            self.child.close()


@contextlib.asynccontextmanager
async def spawned(nursery: NurseryClient, *command: str) -> AsyncIterator[Spawned]:
    made = Spawned()
    try:
        request = Spawn(id=0, worker="test", host="host", state_dir="/nonexistent", command=command or ("/bin/true",))
        made.child = await nursery.spawn(request, tuple(made.theirs))  # type: ignore[arg-type]
    finally:
        for fd in made.theirs:
            os.close(fd)
        if made.child is None:
            made.close()
    try:
        yield made
    finally:
        made.close()


def state_of(pid: int) -> str:
    """Return the letter of a process's state; X where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait, with the loop turning, for something that nobody tells of."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        await asyncio.sleep(0.01)
