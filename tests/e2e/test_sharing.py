"""More busy, or more leaking, workers than the common budget holds, and one beside them that wants little."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._hogs import HOGS, Follower, Hog, Yard, among

pytestmark = [needs_cgroups, pytest.mark.timeout(240)]

QUOTA_PERCENT = 10
OWN_PERCENT = 10
"""The quota of each of them: the default."""
BUSY = tuple(replace(HOGS[0], name=f"busy{number}") for number in range(12))
LEAKING = tuple(replace(HOGS[2], name=f"leaking{number}") for number in range(12))
"""Each takes as much memory as it can, together several times the common cap."""
WATCHED_SECONDS = 12.0
BEAT_SECONDS = 5.0
"""The default: no sign of life may be later than that."""


class Crowd(NamedTuple):
    """An agent with a healthy worker, and others that can be let loose."""

    agent: RunningAgent
    yard: Yard
    names: tuple[str, ...]


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


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Callable[[tuple[Hog, ...]], Crowd]]:
    """Return what starts a healthy worker among others; they are not let loose yet."""
    made: list[Crowd] = []

    def make(hogs: tuple[Hog, ...]) -> Crowd:
        agent = RunningAgent(
            tmp_path / "a",
            among(hogs, BEAT_SECONDS),
            agent=f"budget = {{cpu_quota_percent = {QUOTA_PERCENT}}}",
            more="[agent.own]\ncpu_percent = 400\n",
        )
        made.append(Crowd(agent, Yard(agent), tuple(one.name for one in hogs)))
        made[0].yard.start(None)
        # So many starts at once use up the common budget themselves: for that one of them may be throttled.
        for name in ("healthy", *made[0].names):
            until(lambda name=name: agent.worker(name)["state"] in ("running", "throttled"), f"{name} is up", 60)
        return made[0]

    yield make
    for one in made:
        one.yard.call_back()
        one.agent.cleanup()


def watch(follower: Follower) -> None:
    """Follow the healthy worker's signs of life for some time: none may be later than one period of its beat."""
    began = time.monotonic()
    time.sleep(WATCHED_SECONDS)  # the time itself is what is looked at
    ended = time.monotonic()
    times = [began, *sorted(follower.ticks(began, ended).values()), ended]
    assert follower.error is None
    assert max(after - before for before, after in itertools.pairwise(times)) <= BEAT_SECONDS + 0.5, times


def test_all_busy_at_once_and_one_that_wants_little(crowd: Callable[[tuple[Hog, ...]], Crowd]) -> None:
    agent, yard, names = crowd(BUSY)
    pid = agent.worker("healthy")["pid"]
    follower = Follower(agent)
    yard.loose(*names)
    until(lambda: all(quota_percent(agent, name) < OWN_PERCENT for name in names), "each has a share only", 60)
    assert sum(quota_percent(agent, name) for name in names) <= QUOTA_PERCENT
    watch(follower)

    yard.call_back()

    def told(action: str) -> bool:
        return any(event["event"]["action"] == action for _, event in list(follower.seen))

    until(lambda: told("aggregate-unshared"), "it is not shared out any more", 90)
    running = [name for name in names if agent.worker(name)["state"] == "running"]
    until(lambda: all(quota_percent(agent, name) == OWN_PERCENT for name in running), "each has its own again", 30)
    assert agent.worker("healthy")["pid"] == pid
    assert agent.stop() == 0


def test_all_leak_at_once_and_those_that_are_killed_for_it_exit_and_the_healthy_one_goes_on(
    crowd: Callable[[tuple[Hog, ...]], Crowd],
) -> None:
    agent, yard, names = crowd(LEAKING)
    pid = agent.worker("healthy")["pid"]
    follower = Follower(agent)
    yard.loose(*names)
    until(lambda: sum(bool(follower.states(name, "tripped")) for name in names) >= 3, "some are ended for it", 60)
    since = time.monotonic()
    until(lambda: follower.ticks(since), "the healthy one goes on", 60)
    assert follower.error is None
    assert agent.worker("healthy")["pid"] == pid
    yard.call_back()
    assert agent.stop() == 0
