"""(a) From the killswitch file to the end of the last of 8 workers, beside Supervisor and the kernel's own limit."""

from __future__ import annotations

import glob
import os
import random
import secrets
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.agent import Agent, idle
from benchmarks.context import Context, Deadline
from benchmarks.proc import Gone
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from benchmarks.supervisord import PROGRAM, Supervisord

WORKERS = 8
GONE_SECONDS = 30.0
SETTLE_SECONDS = 0.15
"""Between the last start and the shot; long enough for a spinning worker to have met its quota."""
QUOTA_PERIOD_SECONDS = 0.1
BUSY_EVERY, BARE_EVERY = 2, 4
"""The agent with busy workers is shot every second turn, the bare group every fourth, to keep the time bounded."""

SPINNING = "".join(
    f"""[workers.spin{number}]
modules = ["@/modules/bench_modules.py:Spin"]
[workers.spin{number}.budget]
cpu_quota_percent = 10
cpu_trip_percent = 10
cpu_trip_samples = 1000
"""
    for number in range(WORKERS)
)
AGGREGATE = f"[agent.budget]\ncpu_quota_percent = {WORKERS * 10}\n"
"""So that each of the busy workers is held by its own quota and not by that of all together."""


class BareGroup:
    """Processes in a cgroup of our own, for the kernel's kill without anybody around it."""

    def __init__(self, folder: Path) -> None:
        mounts = [
            path for path in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.path.exists(f"{path}/cgroup.procs")
        ]
        self._mount = next((path for path in mounts if self._can_kill(path)), "")
        self._node = f"{self._mount}/garrison-bench-{os.getpid()}-{secrets.token_hex(3)}"
        self._hello = str(folder / "bare-hello")
        self._children: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def _can_kill(mount: str) -> bool:
        # Only a group that is not the root has the file.
        return bool(glob.glob(f"{mount}/*/cgroup.kill"))

    @property
    def possible(self) -> bool:
        """False where the kernel has no cgroup.kill (before 5.14) or no v2 tree."""
        return bool(self._mount)

    def __enter__(self) -> Self:
        if self.possible:
            os.mkdir(self._node)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for child in self._children:
            child.kill()
        self._reap()
        if self.possible:
            os.rmdir(self._node)

    def shoot(self) -> float:
        """Start like programs in the group, kill it, return how long that took, ms."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hello:
            hello.bind(self._hello)
            hello.settimeout(GONE_SECONDS)
            try:
                for _ in range(WORKERS):
                    child = subprocess.Popen(
                        [sys.executable, "-I", PROGRAM],
                        env={"BENCH_HELLO": self._hello},
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                    self._children.append(child)
                    _write(f"{self._node}/cgroup.procs", b"%d" % child.pid)
                for _ in range(WORKERS):
                    hello.recv(64)
            finally:
                os.unlink(self._hello)
        time.sleep(SETTLE_SECONDS)
        with Gone([child.pid for child in self._children]) as gone:
            begin = time.perf_counter()
            _write(f"{self._node}/cgroup.kill", b"1")
            end = gone.wait(GONE_SECONDS)
        self._reap()
        return (end - begin) * 1000

    def _reap(self) -> None:
        for child in self._children:
            child.wait()
        self._children.clear()


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def shoot(agent: Agent, *, busy: bool = False) -> float:
    """Wait until all workers run, write the killswitch file, return how long the last one lived, ms."""
    path = agent.running.killfile
    path.unlink(missing_ok=True)
    pids = agent.wait_running()
    # At any point of the quota's period, or a rhythm of ours would meet it always at the same one.
    time.sleep(SETTLE_SECONDS + (random.random() + 1) * QUOTA_PERIOD_SECONDS * busy)
    with Gone(pids.values()) as gone:
        begin = time.perf_counter()
        path.write_text("on\n")
        end = gone.wait(GONE_SECONDS)
    return (end - begin) * 1000


def stop_all(peer: Supervisord) -> float:
    """Have Supervisor start all programs, then ``supervisorctl stop all``; return how long the last one lived, ms."""
    peer.start_all()
    pids = set(peer.hellos(WORKERS))
    time.sleep(SETTLE_SECONDS)
    with Gone(pids) as gone:
        begin = time.perf_counter()
        command = peer.stop_all()
        end = gone.wait(GONE_SECONDS)
        # The programs are gone. It would wait another second for supervisord's loop to notice.
        command.kill()
        command.wait()
    peer.forget(pids)
    return (end - begin) * 1000


def run(context: Context) -> Report:
    """Measure in turns: the agent, Supervisor, the bare kernel, the agent with busy workers."""
    report = Report("killswitch")
    ours = Series("killswitch file, 8 idle workers", "ms")
    busy = Series("killswitch file, 8 workers spinning at their 10 % quota", "ms")
    ctl = Series("`supervisorctl stop all`", "ms")
    bare = Series("bare `cgroup.kill`", "ms")
    count = context.count(200, 12)
    folder = context.folder / "killswitch"
    folder.mkdir()
    with ExitStack() as stack:
        agent = stack.enter_context(Agent(folder / "idle", "".join(idle(f"idle{n}") for n in range(WORKERS))))
        shoot(agent)  # the first shot of each is thrown away: caches are cold
        spinning = stack.enter_context(Agent(folder / "spin", SPINNING, "", AGGREGATE))
        shoot(spinning, busy=True)
        peer = stack.enter_context(Supervisord(folder / "peer", WORKERS, startsecs=0))
        group = stack.enter_context(BareGroup(folder))
        peer.call("stopAllProcesses", True)
        peer.forget(peer.pids)
        deadline = Deadline(context.seconds(250, 12))
        for turn in range(count):
            if turn and deadline.over:
                report.notes.append(f"the time was over after {turn} of {count} turns")
                break
            context.noise.sample()
            ours.add(shoot(agent))
            if turn % BUSY_EVERY == 0:
                busy.add(shoot(spinning, busy=True))
            if group.possible and turn % BARE_EVERY == 0:
                bare.add(group.shoot())
            ctl.add(stop_all(peer))
    report.rows.append(
        Row(
            "killswitch file written → last of 8 workers gone",
            ours,
            ctl,
            ctl.p50 / ours.p50,
            "≥ 10× at the median; p99 below the peer's median",
            ctl.p50 / ours.p50 >= 10 and ours.p99 < ctl.p50,
        )
    )
    if bare.values:
        report.rows.append(Row("the same, beside the kernel's limit", ours, bare, bare.p50 / ours.p50))
    report.rows.append(
        Row("the same, all 8 spinning at their quota", busy, ctl, ctl.p50 / busy.p50, "p99 < 30 ms", busy.p99 < 30)
    )
    return report
