"""(d) After the crash of a worker that had been stable, beside Supervisor with a like program."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.agent import Agent, StateEvents, idle
from benchmarks.context import Context
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from benchmarks.supervisord import Supervisord

STABLE_SECONDS = 60.5
"""The policy's 60 s and a little: nothing in the agent is turned for the benchmark, so it is waited for."""
APART_SECONDS = 0.5


def run(context: Context) -> Report:
    """Wait until all are stable, then kill one after the other, each once."""
    report = Report("restart")
    ours = Series("crash of a stable worker → ready again", "ms")
    peer = Series("Supervisor 4.3, like program", "ms")
    count = min(context.count(16, 2), 48)
    with (
        Agent(context.folder / "restart", "".join(idle(f"idle{n}") for n in range(count))) as agent,
        Supervisord(context.folder / "restart-peer", count) as supervisord,
    ):
        events = StateEvents(agent)
        pids = agent.wait_running()
        programs = sorted(supervisord.pids)
        time.sleep(STABLE_SECONDS)
        for (name, pid), program in zip(sorted(pids.items()), programs, strict=True):
            context.noise.sample()
            events.begin()
            begin = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            ours.add((events.wait(name, "worker-running") - begin) * 1000)
            begin = time.perf_counter()
            os.kill(program, signal.SIGKILL)
            supervisord.forget({program})
            (at,) = supervisord.hellos(1).values()
            peer.add((at - begin) * 1000)
            time.sleep(APART_SECONDS)
        after = agent.wait_running()
        trips = sum(worker["breaker"]["trips"] for worker in agent.workers().values())
    if trips or any(after[name] == pid for name, pid in pids.items()):
        raise AssertionError(f"not each worker was restarted once without a trip ({trips} trips)")
    ratio = peer.p50 / ours.p50
    report.rows.append(
        Row("SIGKILL of a worker stable for 60 s → ready", ours, peer, ratio, "≤ 50 ms at the median", ours.p50 <= 50)
    )
    return report
