"""Low memory: workers are ended by priority, one after the other, and start again when there is ample room.

What is available is the machine's own; what counts as low is set so that it is (`_lowmemory.py`).
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor.hostwatch.host import parse_meminfo
from tests.e2e._agent import RunningAgent, alive, module, needs_cgroups, until
from tests.e2e._hogs import HEALTHY, Follower

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

Make = Callable[..., RunningAgent]
MIB = 1024 * 1024
LOW = Path(__file__).with_name("_lowmemory.py")
NAMES = ("minor", "major", "healthy")
"""By priority; the essential one last."""
AMPLE = 1
"""A bound that every host is above, even twice."""
ALWAYS_LOW = 64 * 1024 * MIB
"""More than is available (the largest that may be set, and more than a machine for tests has)."""
FOREIGN = 900 * MIB
EATEN = 400 * MIB
"""What somebody else takes, and how far above the bound available memory is before."""
EATER = f"""
import time
memory = bytearray({FOREIGN})
memory[::4096] = b"x" * len(memory[::4096])
print("taken", flush=True)
time.sleep(100)
"""


def available() -> int:
    return parse_meminfo(Path("/proc/meminfo").read_text())["MemAvailable"]


def workers(**priorities: int) -> str:
    return "".join(
        f'[workers.{name}]\nmodules = ["{module("healthy", "Healthy")}"]\npriority = {priority}\n'
        for name, priority in priorities.items()
    )


WORKERS = HEALTHY + workers(minor=10, major=90)


def pressure(available_min: int) -> str:
    return f"""
[agent.pressure]
cpu_percent = 100
io_percent = 100
memory_percent = 100
available_min = {available_min}
above_seconds = 2
below_seconds = 1
sample_seconds = 0.25
"""


class Host:
    """An agent that thinks of its host's memory as the test says."""

    def __init__(self, make_agent: Make, agent: str = "") -> None:
        self._more = agent
        self.agent = make_agent(WORKERS, agent=agent, more=pressure(AMPLE))
        self.agent.start(command=[sys.executable, str(LOW), "--config", str(self.agent.config)])
        self.pids = {name: self.agent.wait_worker(name, state="running")["pid"] for name in NAMES}
        self.follower = Follower(self.agent)

    def bound(self, available_min: int) -> None:
        """Change what counts as low."""
        self.agent.write_config(WORKERS, self._more, pressure(available_min))
        assert self.agent.process is not None
        self.agent.process.send_signal(signal.SIGHUP)

    def wait(self, name: str, state: str) -> dict[str, Any]:
        return dict(until(lambda: self._if(name, state), f"{name} is {state}", 60))

    def _if(self, name: str, state: str) -> dict[str, Any] | None:
        worker = self.agent.worker(name)
        return worker if worker["state"] == state else None

    def states(self) -> dict[str, str]:
        return {worker["name"]: worker["state"] for worker in self.agent.client.call("status")["workers"]}

    def problems(self) -> str:
        return "\n".join(self.agent.client.call("status")["agent"]["problems"])

    def first(self, name: str, state: str, since: float = 0.0) -> tuple[float, dict[str, Any]]:
        """Return the first transition of a worker into a state, and when it came."""
        return until(lambda: self.follower.states(name, state, since=since), f"{name} {state} is told")[0]


@contextlib.contextmanager
def foreign_memory() -> Iterator[None]:
    """Take memory from outside of every group of ours."""
    eater = subprocess.Popen([sys.executable, "-I", "-S", "-c", EATER], stdout=subprocess.PIPE)
    try:
        assert eater.stdout is not None
        assert eater.stdout.readline() == b"taken\n"
        yield
    finally:
        eater.kill()
        eater.communicate()


def test_who_else_takes_the_memory_gets_ours_by_priority_and_it_comes_back_with_ample_room(make_agent: Make) -> None:
    host = Host(make_agent)
    agent, follower = host.agent, host.follower
    host.bound(available() - EATEN)
    time.sleep(1.0)
    assert not [event for _, event in follower.seen if event["event"]["action"] == "pressure-stop"]
    with foreign_memory():
        for name in NAMES:
            worker = host.wait(name, "stopped")
            # It is still wanted, and nothing is held against it.
            assert (worker["desired"], worker["pid"], worker["breaker"]["trips"]) == ("start", 0, 0), worker
            assert not alive(host.pids[name])
        assert agent.pids() == set()
        # What is left of the agent is told, and answers.
        assert "available memory is low: ended: healthy, major, minor" in host.problems()
    # One rank after the other, the essential one last; each was told why.
    ends = [host.first(name, "stopping") for name in NAMES]
    assert [at for at, _ in ends] == sorted(at for at, _ in ends)
    assert all("available memory is low" in event["garrison"]["reason"] for _, event in ends)
    stops = [event["garrison"] for _, event in follower.seen if event["event"]["action"] == "pressure-stop"]
    assert [stop["workers"] for stop in stops] == [[name] for name in NAMES]
    assert all(stop["available_bytes"] < stop["available_limit"] for stop in stops)
    # Above the bound again, but not twice: a start would only be the next reason to end it.
    time.sleep(4.0)
    assert set(host.states().values()) == {"stopped"}, host.states()
    since = time.monotonic()
    host.bound(AMPLE)
    for name in NAMES:
        worker = host.wait(name, "running")
        assert (worker["breaker"]["state"], worker["breaker"]["trips"]) == ("closed", 0), worker
    begins = [host.first(name, "running", since)[0] for name in reversed(NAMES)]
    assert begins == sorted(begins)
    until(lambda: "memory is low" not in host.problems(), "nothing is wrong any more")
    # A start for each of them, and not one more: it did not go to and fro.
    for name in NAMES:
        assert len(follower.states(name, "starting", since=ends[0][0])) == 1


def test_between_the_bound_and_twice_of_it_nobody_is_ended_and_nobody_starts(make_agent: Make) -> None:
    host = Host(make_agent)
    host.bound(ALWAYS_LOW)
    host.wait("minor", "stopped")
    host.bound(available() * 3 // 4)
    time.sleep(1.0)  # for the new bound to be in force, and for who was asked to stop by then
    before = host.states()
    # Only as many as it took: the next one would have been ended after two more seconds.
    assert before["healthy"] == "running", before
    time.sleep(5.0)
    assert host.states() == before


def test_what_an_operator_stops_meanwhile_stays_stopped_afterwards(make_agent: Make) -> None:
    host = Host(make_agent)
    host.bound(ALWAYS_LOW)
    for name in NAMES:
        host.wait(name, "stopped")
    assert host.agent.garrison("stop", "major").returncode == 0
    assert host.agent.worker("minor")["state"] == "stopped"
    host.bound(AMPLE)
    for name in ("healthy", "minor"):
        host.wait(name, "running")
    assert host.agent.worker("major")["state"] == "stopped"
    assert not host.follower.states("major", "starting", since=host.first("major", "stopped")[0])


def test_a_policy_that_is_only_tried_out_ends_nobody(make_agent: Make) -> None:
    host = Host(make_agent, "dry_run = true")
    host.bound(ALWAYS_LOW)
    until(lambda: "would be ended: healthy, major, minor" in host.problems(), "it would have ended all", 60)
    event = host.agent.wait_event(event__action="pressure-stop")
    assert event["garrison"]["dry_run"] is True
    for name in NAMES:
        worker = host.agent.worker(name)
        assert (worker["state"], worker["pid"]) == ("running", host.pids[name]), worker
