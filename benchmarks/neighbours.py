"""All misbehaving workers at once, and two processes outside: how fast one works, and how late the other wakes."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.context import Context
from benchmarks.probe import Probe, speed
from benchmarks.report import Report, Row
from benchmarks.stats import Series, number
from benchmarks.supervisord import Supervisord
from tests.e2e._agent import MISBEHAVING, RunningAgent
from tests.e2e._hogs import HOGS, Follower, Hog, Yard, among, cpu_clock, lateness

QUOTA_PERCENT = 5 * (os.cpu_count() or 1)
"""Of one core: 5 % of the machine."""
SETTLE_SECONDS = 1.0
WINDOW_SECONDS = 3.0
TICK_SECONDS = 5.0

UNSHED = "[agent.own]\ncpu_percent = 400\n"
"""The first thing that a busy master gives up is the live view, and that is how the healthy worker is watched here."""


class Felt:
    """What the probes felt in one kind of window."""

    def __init__(self, name: str) -> None:
        self.speed = Series(name, "pieces of work/s")
        self.late = Series(name, "ms")

    def take(self, latency: Probe, work: Probe, seconds: float) -> None:
        """Measure one window."""
        latency.begin()
        self.speed.add(speed(work.measure(seconds)))
        self.late.add(latency.end()["p99"])


def neighbours(context: Context, report: Report) -> None:
    """Alternate: the agent with all of them, nothing, nothing; now and then Supervisor with the same ones."""
    count, window = context.count(12, 2), context.seconds(WINDOW_SECONDS, 1.5)
    with_agent, off, again = Felt("agent"), Felt("off"), Felt("off again")
    with_peer = Felt("Supervisor 4.3, the same ones")
    late: list[float] = []
    used = Series("agent", "% of a core")
    with Probe("latency") as latency, Probe("work") as work:
        for turn in range(count):
            context.noise.sample()
            with crowd(context.folder / f"neighbours{turn}", HOGS, late) as agent:
                clock = cpu_clock(agent)
                time.sleep(SETTLE_SECONDS)
                before, begin = clock(), time.monotonic()
                with_agent.take(latency, work, window)
                used.add((clock() - before) / (time.monotonic() - begin) * 100)
            time.sleep(SETTLE_SECONDS)
            off.take(latency, work, window)
            again.take(latency, work, window)
            if turn % 4 == 0:
                with _supervisor(context.folder / f"neighbours-peer{turn}"):
                    with_peer.take(latency, work, window)
                time.sleep(SETTLE_SECONDS)
    ours = _percent("of its speed with the agent off", with_agent, off)
    peer = _percent("Supervisor 4.3, the same ones", with_peer, off)
    control = _percent("off beside off", again, off)
    report.rows += [
        Row(
            f"a neighbour's speed, all at once, {QUOTA_PERCENT} % of a core for all workers",
            ours,
            peer,
            ours.p50 / peer.p50,
            "≥ 95 % at the median",
            ours.p50 >= 95,
        ),
        Row("the same with the agent off both times: the control", control),
        Row(
            "a neighbour's sleep of 2 ms, late at p99",
            with_agent.late,
            with_peer.late,
            with_peer.late.p50 / with_agent.late.p50,
        ),
        Row("the same with the agent off", off.late),
        Row("CPU of master, nursery and all workers meanwhile", used),
    ]
    beats = Series("late", "s", late)
    what = f"the healthy worker's sign of life each {TICK_SECONDS:g} s among all of them"
    report.rows.append(Row(what, beats, goal="≤ one period late", met=max(late) <= TICK_SECONDS))
    report.notes.append(
        f"{len(HOGS)} misbehaving workers and a healthy one, default budgets (but a master that sheds nothing), "
        f"{count} alternations of {window:g} s; "
        f"a neighbour alone does {number(off.speed.p50)} pieces of work a second"
    )


def _percent(name: str, these: Felt, those: Felt) -> Series:
    """Return the speeds as percent of the others', turn by turn."""
    values = those.speed.values
    step = len(values) // len(these.speed.values)
    return Series(name, "%", [100 * speed / values[turn * step] for turn, speed in enumerate(these.speed.values)])


@contextlib.contextmanager
def crowd(folder: Path, hogs: Sequence[Hog], late: list[float]) -> Iterator[RunningAgent]:
    """Run an agent whose misbehaving workers have just been let loose, and a healthy one among them.

    Args:
        folder: For the agent; removed.
        hogs: All but the healthy one.
        late: Gets the seconds by which the healthy one's sign of life was late at most.
    """
    quota = f"budget = {{cpu_quota_percent = {QUOTA_PERCENT}}}"
    agent = RunningAgent(folder, among(hogs, TICK_SECONDS), agent=quota, more=UNSHED)
    yard = Yard(agent)
    try:
        yard.start(None)
        for one in hogs:
            agent.wait_worker(one.name, state="running")
        follower = Follower(agent)
        yard.loose(*(one.name for one in hogs))
        begin = time.monotonic()
        yield agent
        # A sign of life that may be late by a period is only missed in a longer time than that.
        time.sleep(max(0.0, begin + 2 * TICK_SECONDS + 1 - time.monotonic()))
        end = time.monotonic()
        # Ticks each 0.5 s, so that a short window has some; late by more than a beat's period is what must not be.
        if follower.error is not None:
            raise AssertionError(f"the events could not be followed: {follower.error}")
        ticks = follower.ticks(begin, end)
        times = [begin, *sorted(ticks.values()), end]
        silence = max(after - before for before, after in itertools.pairwise(times))
        late.append(max(0.0, silence - 0.5, lateness(ticks, 0.5) if ticks else 0.0))
    finally:
        yard.call_back()
        agent.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _supervisor(folder: Path) -> Iterator[None]:
    switches = folder.with_name(f"{folder.name}-switches")
    switches.mkdir()
    sections = []
    for one in HOGS:
        if one.external:
            continue
        (switches / one.name).touch()
        sections.append(
            f"[program:{one.name}]\n"
            f"command = {sys.executable} {MISBEHAVING / 'hogs.py'} {one.kind} {switches / one.name}\n"
            "stopwaitsecs = 2\nautorestart = true\nstartsecs = 0\n"
            "stdout_logfile_maxbytes = 1MB\nstdout_logfile_backups = 1\n"
            "stderr_logfile_maxbytes = 1MB\nstderr_logfile_backups = 1\n"
        )
    try:
        with Supervisord(folder, 1, more="".join(sections)):
            time.sleep(SETTLE_SECONDS)
            yield
            # Before it ends: what has left their process groups is ended by the missing switch alone.
            shutil.rmtree(switches)
    finally:
        shutil.rmtree(switches, ignore_errors=True)
