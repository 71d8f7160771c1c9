"""A foreign process burns all CPUs: how soon the agent stands still, and how soon it goes on afterwards."""

from __future__ import annotations

import time

from benchmarks.context import Context
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from tests.e2e._agent import RunningAgent, until
from tests.e2e._hogs import HEALTHY, Follower, foreign_hogs

ABOVE_SECONDS, BELOW_SECONDS = 2.0, 2.0
BOUND_SECONDS = 60.0
PRESSURE = f"""
[agent.pressure]
cpu_percent = 80
io_percent = 100
memory_percent = 100
available_min = 0
above_seconds = {ABOVE_SECONDS}
below_seconds = {BELOW_SECONDS}
sample_seconds = 0.25
minimum_duty_percent = 0
"""


def giving_way(context: Context, report: Report) -> None:
    """Measure both, beside what the settings ask for."""
    froze, thawed = Series("freeze", "ms"), Series("thaw", "ms")
    agent = RunningAgent(context.folder / "giving-way", HEALTHY, more=PRESSURE)
    try:
        agent.start()
        agent.wait_worker("healthy", state="running")
        follower = Follower(agent)
        for _ in range(context.count(3, 1)):
            with foreign_hogs(BOUND_SECONDS):
                begin = time.monotonic()
                froze.add((_next(follower, "frozen", begin) - begin) * 1000)
            begin = time.monotonic()
            thawed.add((_next(follower, "running", begin) - begin) * 1000)
    finally:
        agent.cleanup()
    bound = Series("its setting", "ms", [ABOVE_SECONDS * 1000])
    report.rows.append(Row("others burn all CPUs → worker frozen", froze, bound))
    bound = Series("its setting", "ms", [BELOW_SECONDS * 1000])
    report.rows.append(Row("they are gone → it goes on", thawed, bound))


def _next(follower: Follower, state: str, since: float) -> float:
    what = f"it is {state}"
    found: float = until(lambda: follower.states("healthy", state, since=since), what, 2 * BOUND_SECONDS)[0][0]
    return found
