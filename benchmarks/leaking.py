"""Nothing but leaking workers, together far above the cap of all: what the kernel's search for memory costs."""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks.context import Context
from benchmarks.neighbours import QUOTA_PERCENT, TICK_SECONDS, crowd
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from tests.e2e._hogs import HOGS, cpu_clock

LEAKERS = 15
WINDOW_SECONDS = 10.0
PERIOD_SECONDS = 0.1
"""Of the quota (``cpu.cfs_period_us``)."""
WATCHED_SECONDS = 12.0
LOOK_SECONDS = 0.05


def leaking(context: Context, report: Report) -> None:
    """Let all loose at once, again and again; add up the CPU that they get."""
    count = context.count(8, 1)
    (one,) = (hog for hog in HOGS if hog.kind == "AllocationBurst")
    hogs = [replace(one, name=f"leaking{number}") for number in range(LEAKERS)]
    late: list[float] = []
    most = Series("workers", "% of a core")
    for turn in range(count):
        context.noise.sample()
        with crowd(context.folder / f"leaking{turn}", hogs, late) as agent:
            used = cpu_clock(agent, "/workers")
            looks = []
            end = time.monotonic() + WATCHED_SECONDS
            while (now := time.monotonic()) < end:
                looks.append((now, used()))
                time.sleep(LOOK_SECONDS)
        most.add(_most(looks) * 100)
    # A window that begins anywhere touches one period more than fits into it.
    bound = QUOTA_PERCENT * (1 + PERIOD_SECONDS / WINDOW_SECONDS)
    what = f"CPU over any {WINDOW_SECONDS:g} s, {LEAKERS} leaking workers at the cap of all"
    goal = f"≤ {bound:.3g}: quota and one period"
    report.rows.append(Row(what, most, goal=goal, met=max(most.values) <= bound))
    what = f"the healthy worker's sign of life each {TICK_SECONDS:g} s meanwhile"
    report.rows.append(Row(what, Series("late", "s", late), goal="≤ one period late", met=max(late) <= TICK_SECONDS))


def _most(looks: list[tuple[float, float]]) -> float:
    """Return the largest use over any window of that length: seconds of CPU a second."""
    most, last = 0.0, 0
    for begin, at_begin in looks:
        while last < len(looks) and looks[last][0] - begin < WINDOW_SECONDS:
            last += 1
        if last == len(looks):
            break
        finish, at_end = looks[last]
        most = max(most, (at_end - at_begin) / (finish - begin))
    return most
