"""What a look at a worker costs the master: one sample of the kernel's counters, beside bare reads of the files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from benchmarks.agent import Agent, idle
from benchmarks.context import Context
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from garrison.supervisor.cgroups.detect import open_cgroups
from garrison.supervisor.sampler import SAMPLE_SECONDS, Facts, Sampler

ROUND = 200
"""Samples in one measurement."""
READ_BYTES = 16384


def sampling(context: Context, report: Report) -> None:
    """Sample a live worker of a real agent with the agent's own code, from here: nothing is written for it."""
    ours, bare = Series("a sample", "µs"), Series("bare reads", "µs")
    with Agent(context.folder / "sampling", idle("idle")) as agent:
        pid = agent.wait_running()["idle"]
        sampler = Sampler(open_cgroups(root=f"/{agent.running.root}"))
        facts = Facts(pid=pid)
        sampler.sample("idle", 1, time.monotonic(), 0.0, facts)
        files = _opened_by(lambda: sampler.sample("idle", 1, time.monotonic(), 0.0, facts))
        for _ in range(context.count(20, 3)):
            context.noise.sample()
            begin = time.process_time()
            for _ in range(ROUND):
                sampler.sample("idle", 1, time.monotonic(), 0.0, facts)
            ours.add((time.process_time() - begin) / ROUND * 1e6)
            begin = time.process_time()
            for _ in range(ROUND):
                for path in files:
                    _read(path)
            bare.add((time.process_time() - begin) / ROUND * 1e6)
        if sampler.error:
            raise AssertionError(sampler.error)
    report.rows.append(Row("CPU for one look at one worker", ours, bare, bare.p50 / ours.p50))
    share = ours.p50 / 1e6 / SAMPLE_SECONDS * 100
    report.notes.append(
        f"a look reads {len(files)} files of the kernel; one each {SAMPLE_SECONDS:g} s takes {share:.4f} % of a core"
    )


def _opened_by(call: Callable[[], object]) -> list[str]:
    """Return the paths that a call opens for reading, once each."""
    found: list[str] = []
    listening = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open" and isinstance(arguments[0], str):
            found.append(arguments[0])

    # There is no way to take it off again; it does nothing afterwards.
    sys.addaudithook(hook)
    call()
    listening = False
    return [path for path in dict.fromkeys(found) if os.path.isfile(path)]


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, READ_BYTES)
    finally:
        os.close(file)
