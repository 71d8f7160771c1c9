"""Giving way to the host: our own load never is a reason, somebody else's is, and it ends when that ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until
from tests.e2e._hogs import HEALTHY, Follower, Yard, foreign_hogs, hog

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

Make = Callable[..., RunningAgent]
CPUS = os.cpu_count() or 1
PRESSURE = """
[agent.pressure]
cpu_percent = 95
io_percent = 100
memory_percent = 100
available_min = 0
above_seconds = 2
below_seconds = 1
sample_seconds = 0.25
minimum_duty_percent = 0
"""
HOG_SECONDS = 100
"""A foreign hog ends by itself after this time, however the test ends."""


def worker(name: str, priority: int) -> str:
    return f'[workers.{name}]\nmodules = ["{module("healthy", "Healthy")}"]\npriority = {priority}\n'


def cpu_times() -> tuple[int, int]:
    """Return how long all CPUs were idle (waiting for disks included), and how long they were there, in ticks."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def test_our_own_hogs_are_no_reason_to_give_way(make_agent: Make) -> None:
    # Between them they would use every CPU of the machine.
    patient = {"cpu_trip_samples": 1000, "cpu_quota_percent": 400, "cpu_trip_percent": 400}
    hogs = [hog(f"escapees{number}", "Escapees", **patient) for number in range(2)]
    agent = make_agent(
        HEALTHY + "".join(one.toml() for one in hogs), agent="budget = {cpu_quota_percent = 400}", more=PRESSURE
    )
    yard = Yard(agent)
    yard.start(None)
    for one in hogs:
        agent.wait_worker(one.name, state="running")
    follower = Follower(agent)
    yard.loose(*(one.name for one in hogs))
    for one in hogs:
        yard.began(one.name)
    time.sleep(8.0)  # four times what it takes
    workers = {worker["name"]: worker["state"] for worker in agent.client.call("status")["workers"]}
    assert set(workers.values()) == {"running"}, workers
    assert not [event for _, event in follower.seen if event["event"]["action"].startswith("pressure-")]


def test_who_else_wants_the_machine_gets_it_and_what_stood_still_goes_on_afterwards(make_agent: Make) -> None:
    agent = make_agent(HEALTHY + worker("minor", 10) + worker("major", 90), more=PRESSURE)
    yard = Yard(agent)
    yard.start(None)
    names = ("minor", "major", "healthy")
    pids = {name: agent.wait_worker(name, state="running")["pid"] for name in names}
    follower = Follower(agent)
    with foreign_hogs(HOG_SECONDS):
        for name in names:
            until(lambda name=name: agent.worker(name)["state"] == "frozen", f"{name} stands still", 60)
        assert any("pressure" in problem for problem in agent.client.call("status")["agent"]["problems"])
    before = cpu_times()
    try:
        for name in names:
            until(lambda name=name: agent.worker(name)["state"] == "running", f"{name} goes on", 100)
    except AssertionError:
        idle, whole = (now - then for now, then in zip(cpu_times(), before, strict=True))
        if idle / whole < 0.1:
            pytest.skip(f"others keep this host busy: {idle / whole:.0%} of its CPUs' time was idle")
        raise
    frozen = {name: follower.states(name, "frozen")[0][0] for name in names}
    thawed = {name: follower.states(name, "running", since=frozen[name])[0][0] for name in names}
    # By priority, the essential one last; and back in the other order.
    assert frozen["minor"] < frozen["major"] < frozen["healthy"]
    assert thawed["healthy"] < thawed["major"] < thawed["minor"]
    # Standing still is no hang, and nobody was started anew.
    for name in names:
        status = agent.worker(name)
        assert (status["pid"], status["breaker"]["trips"]) == (pids[name], 0), status
    assert "host pressure" in follower.states("minor", "frozen")[0][1]["garrison"]["reason"]


def test_a_policy_that_is_only_tried_out_freezes_nobody(make_agent: Make) -> None:
    agent = make_agent(HEALTHY + worker("minor", 10), agent="dry_run = true", more=PRESSURE)
    agent.start()
    agent.wait_worker("minor", state="running")
    with foreign_hogs(HOG_SECONDS):
        event = agent.wait_event(seconds=60, event__action="pressure-freeze")
        assert event["garrison"]["dry_run"] is True
        time.sleep(1.0)
        assert agent.worker("minor")["state"] == "running"
