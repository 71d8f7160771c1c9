"""What the cgroup tests share: nodes of their own on the real kernel, and gated children to put into them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from garrison.supervisor.cgroups.base import Limits, Mode
from garrison.supervisor.cgroups.detect import describe_host, open_cgroups, trees_by_key
from garrison.supervisor.cgroups.hierarchy import UNIFIED_KEY, read_mounts
from garrison.supervisor.cgroups.nodes import KernelCgroups
from garrison.supervisor.cgroups.unified import UnifiedCgroups

MIB = 1024 * 1024
DEADLINE = 30.0
"""Seconds that a test waits for the kernel: generous, the machine may be busy."""

AGGREGATE = Limits(cpu_quota_percent=80, memory_max=512 * MIB, pids_max=200)
WORKER = Limits(cpu_quota_percent=20, cpu_weight=50, memory_high=64 * MIB, memory_max=96 * MIB, pids_max=32)

Variant = Mode | str
CAPPING: tuple[Variant, ...] = ("unified", "hybrid", "legacy")
"""Modes whose caps the kernel enforces."""
STOPPING: tuple[Variant, ...] = (*CAPPING, "v2-without-controllers")
"""Modes that can freeze and kill: also a v2 tree whose controllers sit elsewhere."""


def unique_root() -> str:
    return f"/garrison-test-{os.getpid()}-{secrets.token_hex(3)}"


def require(variant: Variant) -> None:
    """Skip, with the reason, where this host cannot do it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make cgroups")
    facts = describe_host()
    if variant == "v2-without-controllers":
        if not facts.unified_mount or not facts.writable[facts.unified_mount]:
            pytest.skip("no writable cgroup v2 tree")
        if not facts.cgroup_freeze:
            pytest.skip("the cgroup v2 tree has no cgroup.freeze")
    elif against := facts.why_not[variant]:  # type: ignore[index]
        pytest.skip(f"{variant}: {', '.join(against)}")


def make(variant: Variant, root: str) -> KernelCgroups:
    """Open one agent's cgroups without preparing them."""
    if variant == "v2-without-controllers":
        trees = trees_by_key(read_mounts(), root)
        return UnifiedCgroups(trees[UNIFIED_KEY], required=frozenset(), others=tuple(trees.values()))
    cgroups = open_cgroups(variant, root)  # type: ignore[arg-type]
    assert isinstance(cgroups, KernelCgroups)
    return cgroups


class Agent:
    """One agent's cgroups with a child as the master, because the test itself may not leave its groups."""

    def __init__(self, variant: Variant, root: str | None = None) -> None:
        require(variant)
        self.variant = variant
        self.root = root or unique_root()
        self._stack = contextlib.ExitStack()
        self.cgroups = make(variant, self.root)
        self.master = self.child("")
        self.cgroups._master = self.master.pid

    def prepare(self, aggregate: Limits = AGGREGATE) -> KernelCgroups:
        self.cgroups.prepare(aggregate)
        return self.cgroups

    def child(self, code: str, **options: object) -> Gated:
        return self._stack.enter_context(Gated(code, **options))

    def run(self, worker: str, code: str) -> Gated:
        """Start code as a worker, placed before it runs."""
        child = self.child(code)
        self.cgroups.place(worker, child.pid)
        child.open()
        return child

    def again(self) -> KernelCgroups:
        """Open the same nodes as a master would after a crash: the lock of the first is gone."""
        self.cgroups.unlock()
        self.cgroups = make(self.variant, self.root)
        self.cgroups._master = self.master.pid
        return self.cgroups

    def close(self) -> None:
        try:
            self._stack.close()
        finally:
            self.cgroups._master = None
            self.cgroups.cleanup()


@contextlib.contextmanager
def agent(variant: Variant, root: str | None = None) -> Iterator[Agent]:
    made = Agent(variant, root)
    try:
        yield made
    finally:
        made.close()


class Gated:
    """A Python child that waits on its standard input until it is let go; it ends with the context."""

    def __init__(self, code: str, **options: object) -> None:
        text = f"import sys, os\nsys.stdin.readline()\n{code}\n"
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        self.pid: int = self.process.pid

    def open(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()

    def wait(self) -> int:
        return int(self.process.wait(DEADLINE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(DEADLINE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for something that the kernel offers no event for."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """True when a process is dead, also where nobody has reaped it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


SPIN = "print('on', flush=True)\nwhile True: pass"
WAIT = "print('on', flush=True)\nsys.stdin.readline()"
