"""More busy workers than the common CPU budget holds: it is shared out, and the one that wants little goes on."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._hogs import HEALTHY, HOGS, Follower, Yard

pytestmark = [needs_cgroups, pytest.mark.timeout(240)]

QUOTA_PERCENT = 10
OWN_PERCENT = 10
"""The quota of each of them: the default."""
BUSY = tuple(replace(HOGS[0], name=f"busy{number}") for number in range(12))
WATCHED_SECONDS = 12.0
BEAT_SECONDS = 5.0
"""The default: no sign of life may be later than that."""


def quota_percent(agent: RunningAgent, worker: str) -> float:
    """Return the CPU quota that the kernel holds a worker to, percent of one core."""
    for folder in agent.nodes():
        node = Path(folder, "workers", worker)
        if (legacy := node / "cpu.cfs_quota_us").exists():
            return 100 * int(legacy.read_text()) / int((node / "cpu.cfs_period_us").read_text())
        if (unified := node / "cpu.max").exists():
            quota, period = unified.read_text().split()
            return 100 * int(quota) / int(period)
    raise AssertionError(f"no node of {worker} has a quota: {agent.nodes()}")


def test_all_busy_at_once_and_one_that_wants_little(tmp_path: Path) -> None:
    budget = f"budget = {{sample_seconds = 5, beat_seconds = {BEAT_SECONDS:g}}}"
    tables = [f"{one.toml().partition('budget = ')[0]}{budget}\n" for one in BUSY]
    healthy = HEALTHY.replace("every_seconds = 1.0", "every_seconds = 0.5").replace("beat_seconds = 1.0", "")
    agent = RunningAgent(
        tmp_path / "a",
        healthy + "".join(tables),
        agent=f"budget = {{cpu_quota_percent = {QUOTA_PERCENT}}}",
        more="[agent.own]\ncpu_percent = 400\n",
    )
    yard = Yard(agent)
    names = [one.name for one in BUSY]
    try:
        yard.start(None)
        for name in ("healthy", *names):
            agent.wait_worker(name, state="running")
        pid = agent.worker("healthy")["pid"]
        follower = Follower(agent)

        def told(action: str) -> bool:
            return any(event["event"]["action"] == action for _, event in list(follower.seen))

        yard.loose(*names)
        until(lambda: all(quota_percent(agent, name) < OWN_PERCENT for name in names), "each has a share only", 60)
        assert sum(quota_percent(agent, name) for name in names) <= QUOTA_PERCENT
        began = time.monotonic()
        time.sleep(WATCHED_SECONDS)  # the time itself is what is looked at
        ended = time.monotonic()
        times = [began, *sorted(follower.ticks(began, ended).values()), ended]
        assert max(after - before for before, after in itertools.pairwise(times)) <= BEAT_SECONDS + 0.5, times
        assert follower.error is None

        yard.call_back()
        until(lambda: told("aggregate-unshared"), "it is not shared out any more", 90)
        running = [name for name in names if agent.worker(name)["state"] == "running"]
        until(lambda: all(quota_percent(agent, name) == OWN_PERCENT for name in running), "each has its own again", 30)
        assert agent.worker("healthy")["pid"] == pid
        assert agent.stop() == 0
    finally:
        yard.call_back()
        agent.cleanup()
