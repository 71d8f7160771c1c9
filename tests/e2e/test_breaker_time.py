"""What only shows with time, on a scaled clock: no restart storm in an hour, no trip of work that keeps to its pace."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._hogs import HEALTHY, Follower, Yard, hog

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

FULL = bool(os.environ.get("GARRISON_FULL"))
HOUR = 3600.0
MAX_FORKS = 20

Make = Callable[..., RunningAgent]


def test_who_always_fails_at_once_is_forked_at_most_twenty_times_in_an_hour(make_agent: Make) -> None:
    # The cool-downs of the first hour are over after a few minutes; what follows is to stay as it is.
    # Not more: three crashes of a busy machine still have to fall into the divided window of 60 s.
    divisor = 60.0 if FULL else 120.0
    kinds = {"exits": "ExitsAtOnce", "garbage": "Garbage", "burst": "AllocationBurst"}
    failing = [hog(name, kind, cpu_quota_percent=100, cpu_trip_percent=100) for name, kind in kinds.items()]
    agent = make_agent(HEALTHY + "".join(one.toml() for one in failing), agent="budget = {cpu_quota_percent = 200}")
    yard = Yard(agent)
    yard.loose(*kinds)
    yard.start(divisor)
    follower = Follower(agent)
    begin = time.monotonic()
    for name in kinds:
        until(lambda name=name: agent.worker(name)["state"] == "latched", f"{name} is latched", 60)
    time.sleep(max(0.0, begin + HOUR / divisor - time.monotonic()))
    for name in kinds:
        worker = agent.worker(name)
        assert worker["state"] == "latched"
        assert 2 <= worker["restarts"] + 1 <= MAX_FORKS, f"{worker['restarts'] + 1} forks in an hour"
        assert len(follower.states(name, "starting")) <= MAX_FORKS
    assert agent.worker("healthy")["restarts"] == 0


def test_who_is_latched_stays_so_until_it_is_reset_and_then_runs(make_agent: Make) -> None:
    agent = make_agent(hog("failing", "ExitsAtOnce").toml())
    yard = Yard(agent)
    yard.loose("failing")
    yard.start(100.0)
    until(lambda: agent.worker("failing")["state"] == "latched", "it is latched", 60)
    yard.call_back()
    assert agent.stop() == 0
    yard.start(100.0)
    assert agent.wait_worker("failing", state="latched")["pid"] == 0
    assert agent.garrison("reset", "failing").returncode == 0
    agent.wait_worker("failing", state="running")


def test_long_work_at_its_pace_is_never_touched(make_agent: Make) -> None:
    # An hour of samples: 720 of them, 0.1 s apart instead of 5 s.
    paced = hog("paced", "Paced", sample_seconds=0.1, cpu_trip_samples=12)
    agent = make_agent(paced.toml(), agent="budget = {cpu_quota_percent = 100}")
    yard = Yard(agent)
    yard.start(50.0)
    pid = agent.wait_worker("paced", state="running")["pid"]
    follower = Follower(agent)
    yard.loose("paced")
    begin = yard.began("paced")
    time.sleep(HOUR / 50.0 if FULL else 12.0)
    worker = agent.worker("paced")
    assert (worker["pid"], worker["breaker"]["trips"], worker["state"]) == (pid, 0, "running"), worker
    assert follower.states("paced", since=begin) == []
    # It did work: at what long work may use, 80 % of its trip value of 5 %, or less on a busy machine.
    used = cpu_seconds(pid) / (time.monotonic() - begin) * 100
    assert 0.5 < used < 5.5, f"{used:.1f} % of a core"


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
