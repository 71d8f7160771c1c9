"""(e) What the agent costs while nothing happens: CPU, wakeups and memory of all its processes, beside Supervisor."""

from __future__ import annotations

import time
from collections.abc import Iterable

from benchmarks.agent import Agent, idle
from benchmarks.context import Context
from benchmarks.proc import pss_mib, usage
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from benchmarks.supervisord import Supervisord

WORKERS = 8
SLICE_SECONDS = 10.0
QUIET_SECONDS = 3.0
"""After the start: state is cached and files are written then."""


def run(context: Context) -> Report:
    """Watch both in the same minute, in slices."""
    report = Report("idle")
    slices, length = context.count(6, 2), context.seconds(SLICE_SECONDS, 3.0)
    with (
        Agent(context.folder / "idle", "".join(idle(f"idle{n}") for n in range(WORKERS))) as agent,
        Supervisord(context.folder / "idle-peer", WORKERS) as supervisord,
    ):
        workers = tuple(agent.wait_running().values())
        master, nursery = agent.running.pid, agent.nursery()
        groups: dict[str, Iterable[int]] = {
            "agent": (master, nursery, *workers),
            "master": (master,),
            "nursery": (nursery,),
            "workers": workers,
            "supervisord": (supervisord.pid,),
        }
        cpu = {name: Series(name, "% of a core") for name in groups}
        wakeups = {name: Series(name, "/s") for name in groups}
        memory = {name: Series(name, "MiB", [sum(map(pss_mib, pids))]) for name, pids in groups.items()}
        programs = Series("programs", "MiB", [sum(map(pss_mib, supervisord.pids))])
        time.sleep(QUIET_SECONDS)
        for _ in range(slices):
            context.noise.sample()
            before, begin = {name: usage(pids) for name, pids in groups.items()}, time.monotonic()
            time.sleep(length)
            elapsed = time.monotonic() - begin
            for name, pids in groups.items():
                used = usage(pids) - before[name]
                cpu[name].add(used.cpu_seconds / elapsed * 100)
                wakeups[name].add(used.wakeups / elapsed)
    cpu["supervisord"].name = wakeups["supervisord"].name = "supervisord alone"
    whole = sum(cpu["agent"].values) / slices
    seconds = slices * length
    report.rows += [
        Row(
            f"idle CPU over {seconds:.0f} s: master, nursery, 8 workers",
            cpu["agent"],
            cpu["supervisord"],
            cpu["supervisord"].p50 / cpu["agent"].p50,
            "< 0.3 % over the whole time",
            whole < 0.3,
        ),
        Row(
            "wakeups a second, the whole agent",
            wakeups["agent"],
            wakeups["supervisord"],
            _over(wakeups["supervisord"].p50, wakeups["agent"].p50),
        ),
    ]
    memory["agent"].name = "agent"
    both = Series("supervisord and 8 programs that import nothing", "MiB")
    both.add(memory["supervisord"].values[0] + programs.values[0])
    report.rows.append(
        Row("total PSS: master, nursery, 8 workers", memory["agent"], both, both.p50 / memory["agent"].p50)
    )
    for name in ("master", "nursery", "workers", "supervisord"):
        report.notes.append(
            f"{name}: {cpu[name].p50:.4f} % of a core, {wakeups[name].p50:.2f} wakeups/s, "
            f"PSS {memory[name].values[0]:.1f} MiB"
        )
    report.notes.append(f"the whole agent over the whole time: {whole:.4f} % of a core")
    return report


def _over(peer: float, ours: float) -> float | None:
    return peer / ours if ours else None
