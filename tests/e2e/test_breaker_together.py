"""Every misbehaving worker at once beside a healthy one: who trips, over what, what is told of it, and who recovers.

The agent runs once for all tests here. The breaker's times are divided (`_scaled.py`); everything else is as on a host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._hogs import BEHAVED, HEALTHY, HOGS, Follower, Hog, Yard, lateness
from tests.e2e._invariants import assert_clean, assert_no_mistake

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

TICK_SECONDS = 1.0
OPEN = ("tripped", "latched")
ENOUGH = 3
"""So often one is tripped before it behaves again: beyond that its cool-downs only take the time of the test."""


@dataclass
class Run:
    """What was seen.

    Attributes:
        pids: Of everybody before it began.
        trips: The first trip of each hog, as the agent told it.
        throttles: The first throttling of each.
        escaped: What still ran below the workers' nodes of those that had tripped.
        ticks: When each tick of the healthy one came (monotonic seconds), by its number.
        after: The workers in the status when the harm was over and they had had their time.
        recovered: Names of those that ran with a closed circuit in the end.
    """

    pids: dict[str, int] = field(default_factory=dict)
    trips: dict[str, dict[str, Any]] = field(default_factory=dict)
    throttles: dict[str, dict[str, Any]] = field(default_factory=dict)
    ticks: dict[int, float] = field(default_factory=dict)
    after: dict[str, dict[str, Any]] = field(default_factory=dict)
    recovered: set[str] = field(default_factory=set)


def workers(agent: RunningAgent) -> dict[str, dict[str, Any]]:
    return {worker["name"]: worker for worker in agent.client.call("status")["workers"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    seen = Run()
    agent = RunningAgent(
        tmp_path_factory.mktemp("together") / "a",
        HEALTHY + "".join(one.toml() for one in (*HOGS, *BEHAVED)),
        agent="stop_grace_seconds = 0.5\nbudget = {cpu_quota_percent = 200, memory_max = '1GiB'}",
    )
    yard = Yard(agent)
    try:
        yard.start()
        for one in (*HOGS, *BEHAVED):
            agent.wait_worker(one.name, state="running")
        seen.pids = {name: worker["pid"] for name, worker in workers(agent).items()}
        follower = Follower(agent)
        yard.loose(*(one.name for one in (*HOGS, *BEHAVED)))

        def all_tripped() -> bool:
            for one in HOGS:
                if len(follower.states(one.name, *OPEN)) >= ENOUGH:
                    yard.call_back(one.name)
            return all(follower.states(one.name, *OPEN) for one in HOGS)

        suppressing(all_tripped, 60.0)
        for one in HOGS:
            for seen_of, states in ((seen.throttles, ("throttled",)), (seen.trips, OPEN)):
                if found := follower.states(one.name, *states):
                    seen_of[one.name] = found[0][1]
        yard.call_back()

        def all_well() -> bool:
            seen.after = workers(agent)
            seen.recovered = {
                name
                for name, worker in seen.after.items()
                if worker["state"] == "running" and worker["breaker"]["state"] == "closed"
            }
            for name, worker in seen.after.items():
                if worker["state"] == "latched":
                    agent.garrison("reset", name)
            return seen.recovered == set(seen.after)

        suppressing(all_well, 90.0)
        assert seen.trips, agent.errors()[-4000:]
        assert_no_mistake(agent)
        assert_clean(agent)
        seen.ticks = follower.ticks()
        assert agent.stop() == 0
        yield seen
    finally:
        yard.call_back()
        agent.cleanup()


def suppressing(condition: Any, seconds: float) -> bool:
    """Wait for something; the tests below tell what has not come."""
    try:
        return bool(until(condition, "it comes", seconds))
    except AssertionError:
        return False


@pytest.mark.parametrize("one", HOGS, ids=lambda one: one.name)
def test_it_is_tripped_over_what_it_did(run: Run, one: Hog) -> None:
    assert one.name in run.trips, f"not tripped; {run.after.get(one.name)}"
    assert run.trips[one.name]["garrison"]["cause"] in one.causes


@pytest.mark.parametrize("one", HOGS, ids=lambda one: one.name)
def test_the_trip_says_why_and_when_it_is_tried_again(run: Run, one: Hog) -> None:
    details = run.trips[one.name]["garrison"]
    assert details["trips"] == 1
    assert details["retry_in_seconds"] >= 0
    assert details["reason"]
    if details["cause"] not in ("crash", "protocol"):
        assert details["resource"], details
        assert details["value"] >= details["limit"] > 0, details
    if details["cause"] not in ("crash", "protocol", "oom"):
        assert details["window_seconds"] > 0
    if not one.external and details["cause"] not in ("crash", "oom"):
        assert details["module"] == one.kind.lower()


@pytest.mark.parametrize("one", [one for one in HOGS if one.causes == ("cpu",)], ids=lambda one: one.name)
def test_who_burns_cpu_is_throttled_before_it_is_killed(run: Run, one: Hog) -> None:
    throttled, tripped = run.throttles[one.name], run.trips[one.name]
    assert throttled["@timestamp"] <= tripped["@timestamp"]


@pytest.mark.parametrize("one", HOGS, ids=lambda one: one.name)
def test_it_recovers_when_it_behaves_again(run: Run, one: Hog) -> None:
    assert one.name in run.recovered, run.after.get(one.name)


@pytest.mark.parametrize("one", BEHAVED, ids=lambda one: one.name)
def test_it_is_not_tripped(run: Run, one: Hog) -> None:
    worker = run.after[one.name]
    assert worker["breaker"]["trips"] == 0, worker
    assert one.name in run.recovered, worker


def test_who_ends_after_it_was_stable_is_started_again_at_once(run: Run) -> None:
    assert run.after["exits-later"]["restarts"] > 0


def test_who_is_busy_in_bursts_was_never_touched(run: Run) -> None:
    assert run.after["bursty"]["pid"] == run.pids["bursty"]
    assert "bursty" not in run.throttles


def test_the_healthy_neighbour_notices_nothing(run: Run) -> None:
    healthy = run.after["healthy"]
    assert (healthy["pid"], healthy["restarts"], healthy["breaker"]["trips"]) == (run.pids["healthy"], 0, 0)
    assert healthy["events"]["dropped"] == {}
    late = lateness(run.ticks, TICK_SECONDS)
    # Heard by a consumer, the way through the master included. Bounds are generous: the machine is shared.
    assert late < float(os.environ.get("GARRISON_LATE_SECONDS", "5")), f"a sign of life came {late:.2f} s late"
