"""Hard times: the clock jumps, the state directory goes away, everything stands still for a while."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e._agent import RunningAgent, alive, module, needs_cgroups, until
from tests.e2e._clock import faked, needs_faketime

pytestmark = needs_cgroups

QUIET = (
    f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n[workers.quiet.settings]\nevery_seconds = 0.5\n'
    "[workers.quiet.budget]\nbeat_seconds = 0.5\n"
)
CRASHER = f'[workers.crasher]\nmodules = ["{module("crasher", "Crasher")}"]\n'
STANDSTILL_SECONDS = float(os.environ.get("GARRISON_STANDSTILL_SECONDS", "5"))

Make = Callable[..., RunningAgent]


def greetings(agent: RunningAgent) -> int:
    return sum(event["event"]["action"] == "greeting" for event in agent.events())


@needs_faketime
def test_a_clock_that_jumps_by_a_day_trips_nobody_and_shortens_no_wait(make_agent: Make) -> None:
    agent = make_agent(QUIET + CRASHER)
    offset = agent.folder / "offset"
    offset.write_text("+0")
    agent.start(env=faked(offset))
    pid = agent.wait_worker("quiet", state="running")["pid"]
    waiting = agent.wait_worker("crasher", state="tripped")["breaker"]["retry_in_seconds"]
    begin = time.monotonic()
    for step in ("+1d", "-1d", "+0"):
        offset.write_text(step)
        before = greetings(agent)
        until(lambda before=before: greetings(agent) > before + 1, "the worker goes on")
        assert agent.garrison("stop", "crasher").returncode == 0  # a transition under the new clock
        assert agent.garrison("start", "crasher").returncode in (0, 1)
        crasher = agent.worker("crasher")["breaker"]
        passed = time.monotonic() - begin
        assert crasher["retry_in_seconds"] is not None
        assert abs(waiting - passed - crasher["retry_in_seconds"]) < 3
    worker = agent.worker("quiet")
    assert (worker["pid"], worker["restarts"], worker["breaker"]["trips"]) == (pid, 0, 0)
    stamps = [event["@timestamp"] for event in agent.events() if event["agent"]["worker"] == "agent"]
    assert stamps != sorted(stamps)  # the clock really did jump
    assert agent.stop() == 0


def test_a_state_directory_that_is_removed_comes_back(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    pid = agent.wait_worker("quiet", state="running")["pid"]
    state = agent.folder / "state"
    until(lambda: list(state.glob("*.json")), "there is state")
    for path in sorted(state.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    state.rmdir()
    assert agent.garrison("freeze", "quiet").returncode == 0
    until((state / "local.json").exists, "the state is there again")
    assert agent.garrison("thaw", "quiet").returncode == 0
    assert agent.worker("quiet")["pid"] == pid


def test_an_agent_that_stood_still_as_a_whole_goes_on_and_trips_nobody(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    worker = agent.wait_worker("quiet", state="running")
    pids = sorted(agent.pids("supervisor") | agent.pids("workers"))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in pids:
            until(
                lambda pid=pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T",
                "it stands still",
            )
        time.sleep(STANDSTILL_SECONDS)  # the time itself is what is tested
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
    before = greetings(agent)
    until(lambda: greetings(agent) > before + 1, "the worker goes on")
    after = agent.worker("quiet")
    assert (after["pid"], after["state"], after["breaker"]["trips"]) == (worker["pid"], "running", 0)
    assert all(alive(pid) for pid in pids)
    assert agent.stop() == 0
