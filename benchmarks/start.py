"""(b) A worker's start, beside a fresh interpreter with the same imports; and what an idle worker keeps of memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.agent import Agent, StateEvents, idle
from benchmarks.context import Context, Deadline
from benchmarks.proc import pss_mib
from benchmarks.report import Report, Row
from benchmarks.stats import Series

WORKERS = 8
APART_SECONDS = 1.05
"""Between two starts: a tight loop would flatter, because the first move into a cgroup after a pause waits for a
grace period of the kernel."""
IMPORTS = Path(__file__).parent / "peers" / "imports.py"


def fresh() -> float:
    """Start an interpreter that imports what a worker has loaded; return the time until it says so, ms."""
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, "-I", IMPORTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.read(1) != b"r":
            raise AssertionError("the fresh interpreter did not come up")
        end = time.perf_counter()
        process.communicate(b"q")
    return (end - begin) * 1000


def start(agent: Agent, events: StateEvents, name: str) -> float:
    """Stop a worker, wait, start it; return the time from the request until it is running, ms."""
    agent.running.client.call("stop", worker=name)
    time.sleep(APART_SECONDS)
    events.begin()
    begin = time.perf_counter()
    agent.running.client.call("start", worker=name)
    return (events.wait(name, "worker-running") - begin) * 1000


def run(context: Context) -> Report:
    """Measure in turns; the other seven workers idle meanwhile."""
    report = Report("start")
    ours = Series("worker: request → ready", "ms")
    peer = Series("fresh interpreter, same imports", "ms")
    memory = Series("PSS of an idle worker", "MiB")
    count, deadline = context.count(30, 4), Deadline(context.seconds(60, 20))
    with Agent(context.folder / "start", "".join(idle(f"idle{n}") for n in range(WORKERS))) as agent:
        events = StateEvents(agent)
        start(agent, events, "idle0")
        fresh()
        for turn in range(count):
            if deadline.over:
                break
            context.noise.sample()
            ours.add(start(agent, events, f"idle{turn % WORKERS}"))
            peer.add(fresh())
        for pid in agent.wait_running().values():
            memory.add(pss_mib(pid))
        others = {"master": agent.running.pid, "nursery": agent.nursery()}
        pss = ", ".join(f"{name} {pss_mib(pid):.1f} MiB" for name, pid in others.items())
    ratio = peer.p50 / ours.p50
    report.rows.append(Row("a worker's start, ≥ 1 s after the last one", ours, peer, ratio, "≥ 4×", ratio >= 4))
    worst = max(memory.values)
    report.rows.append(Row("memory of an idle worker, 8 running", memory, goal="≤ 5 MB", met=worst * 1.048576 <= 5))
    report.notes.append(f"PSS of the other processes: {pss}")
    return report
