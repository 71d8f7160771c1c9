"""The master at its worst moments: changes that cross each other, signals, and a host that gives nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e._agent import BIN, RunningAgent, alive, module, needs_cgroups, until
from tests.e2e._invariants import assert_clean, assert_no_mistake, nursery_of

pytestmark = needs_cgroups

QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
OTHER = f'[workers.other]\nmodules = ["{module("quiet", "Quiet")}"]\n'
MUTE = f'[workers.mute]\ncommand = ["{sys.executable}", "-S", "-c", "import time; time.sleep(600)"]\n'
"""Never says that it is ready."""
DEAF_TO_TERM = (
    f'[workers.deaf]\ncommand = ["{sys.executable}", "-S", "@/modules/hostile_worker.py", "deaf"]\n'
    '[workers.deaf.environment]\nVERSION = "%s"\n'
)

Make = Callable[..., RunningAgent]


def starve(pid: int) -> tuple[int, int]:
    """Leave a process no descriptor to open anything with; returns the limits of before."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    return soft, hard


def test_a_worker_that_is_removed_and_added_again_waits_for_its_predecessor_and_is_not_killed_with_it(
    make_agent: Make,
) -> None:
    grace = "stop_grace_seconds = 2"
    agent = make_agent(QUIET + MUTE, agent=grace)
    agent.put("server/config/web1/worker/mute", "stop")
    agent.start()
    agent.put("server/config/web1/worker/mute", "start")
    old = until(lambda: agent.worker("mute")["pid"], "it is started")
    os.kill(old, signal.SIGSTOP)  # takes its whole grace to end
    agent.write_config(QUIET, grace)
    os.kill(agent.pid, signal.SIGHUP)
    until(lambda: len(agent.client.call("status")["workers"]) == 1, "it is removed")
    agent.write_config(QUIET + MUTE, grace)
    os.kill(agent.pid, signal.SIGHUP)
    new = until(
        lambda: next((w["pid"] for w in agent.client.call("status")["workers"] if w["name"] == "mute"), 0),
        "it is back",
    )
    assert new != old
    assert not alive(old)
    time.sleep(0.5)  # what the old one's end might still do
    again = agent.worker("mute")
    assert (again["pid"], again["restarts"], again["last_error"]) == (new, 0, None)
    assert agent.stop() == 0
    assert_no_mistake(agent)


@pytest.mark.parametrize("release", [False, True])
def test_a_kill_in_the_middle_of_a_restart_ends_in_killed_and_nowhere_else(make_agent: Make, release: bool) -> None:
    grace = "stop_grace_seconds = 3\nrelease_spread_seconds = 0"
    agent = make_agent(DEAF_TO_TERM % 1, agent=grace)
    agent.start()
    old = agent.wait_worker("deaf", state="running")["pid"]
    os.kill(old, signal.SIGSTOP)
    agent.write_config(DEAF_TO_TERM % 2, grace)
    os.kill(agent.pid, signal.SIGHUP)
    agent.wait_worker("deaf", state="stopping")
    if release:
        agent.killfile.touch()
        until(lambda: not alive(old), "it dies")
        agent.killfile.unlink()
        agent.wait_worker("deaf", state="running")
    else:
        agent.client.call("kill", reason="now")
        assert agent.worker("deaf")["state"] == "killed"
        assert not agent.pids()
        agent.client.call("release")
        agent.wait_worker("deaf", state="running")
    assert agent.stop() == 0
    assert_no_mistake(agent)


def test_term_ends_the_agent_also_before_it_is_ready_and_a_second_term_changes_nothing(make_agent: Make) -> None:
    agent = make_agent(MUTE)
    agent.start(wait=False)
    until(lambda: agent.pids("workers/mute"), "the worker is made")
    agent.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    begin = time.monotonic()
    agent.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    time.sleep(0.2)
    agent.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
    assert agent.process.wait(30) == 0  # type: ignore[union-attr]
    assert time.monotonic() - begin < 9  # READY_SECONDS is 10
    agent.wait_notified("STOPPING=1")
    # Neither the reload nor the end of the wait claimed that it was up.
    assert "READY=1" not in agent.notified
    assert not agent.pids("")
    assert_no_mistake(agent)


def test_a_stop_before_any_worker_was_made_does_not_forget_the_configurations_they_took(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.put("agent/config/web1/plugin/quiet/settings", json.dumps({"greeting": "good"}))
    agent.start()
    agent.wait_event(message="good")
    until(lambda: agent.worker("quiet")["config"]["status"] == "applied", "it is taken")
    assert agent.stop() == 0
    # The control socket cannot be made: the start is refused when the state was read and no worker was made.
    socket = agent.folder / "run" / "control.sock"
    socket.mkdir()
    result = subprocess.run(
        [BIN / "garrisond", "--config", agent.config], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 71, result.stderr
    socket.rmdir()
    agent.put("agent/config/web1/plugin/quiet/settings", json.dumps({"greeting": "x" * 50}))
    agent.start()
    until(lambda: agent.worker("quiet")["config"]["status"] == "rejected", "the bad one is refused")
    old = agent.wait_worker("quiet", state="running")["pid"]
    os.kill(old, signal.SIGKILL)
    until(
        lambda: [event.get("message") for event in agent.events()].count("good") >= 2,
        "its next process has the good one",
    )


def test_a_storm_of_reloads_ends_with_the_last_file_in_force(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    for number in range(60):
        agent.write_config(QUIET + (OTHER if number % 2 else ""))
        os.kill(agent.pid, signal.SIGHUP)
        if number % 10 == 0:
            agent.client.call("status")
    agent.wait_worker("other", state="running")
    assert agent.worker("quiet")["restarts"] == 0
    assert_clean(agent)
    assert agent.stop() == 0
    assert_no_mistake(agent)


def test_a_frozen_worker_takes_another_budget_and_stops_in_good_order(make_agent: Make) -> None:
    agent = make_agent(QUIET, agent="stop_grace_seconds = 20")
    agent.put("server/config/web1/worker/quiet", "freeze")  # wanted before it is ready
    agent.start()
    pid = agent.wait_worker("quiet", state="frozen")["pid"]
    agent.put("agent/config/web1/plugin/quiet/budget", json.dumps({"cpu_quota_percent": 6}))
    until(lambda: agent.worker("quiet")["limits"]["cpu_quota_percent"] == 6, "the new quota is in force")
    begin = time.monotonic()
    assert agent.client.call("stop", worker="quiet")["state"] == "stopped"
    assert time.monotonic() - begin < 10  # asked, not killed after its grace
    assert not alive(pid)
    stopped = agent.wait_event(event__action="worker-stopped")
    assert stopped["garrison"]["exit"] == "exit status 0"
    assert_clean(agent)


def test_a_nursery_that_hangs_holds_up_neither_the_kill_nor_the_end(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    pid = agent.wait_worker("quiet", state="running")["pid"]
    nursery = nursery_of(agent)
    os.kill(nursery, signal.SIGSTOP)
    agent.killfile.touch()
    # A zombie counts as dead: only the nursery could reap it.
    until(lambda: not alive(pid), "the worker is dead", 5)
    begin = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - begin < 25
    assert not alive(nursery)
    assert not agent.pids("")
    assert_no_mistake(agent)


@pytest.mark.parametrize("nofile", ["12:12", "63:63", "12:200"])
def test_too_few_descriptors_are_raised_to_the_hard_limit_or_said_to_be_too_few(make_agent: Make, nofile: str) -> None:
    agent = make_agent(QUIET)
    command = ["prlimit", f"--nofile={nofile}", str(BIN / "garrisond"), "--config", str(agent.config)]
    agent.start(wait=False, command=command)
    assert agent.process is not None
    if nofile.endswith("200"):
        agent.wait_notified("READY=1")
        agent.wait_worker("quiet", state="running")
        assert agent.stop() == 0
    else:
        assert agent.process.wait(30) == 71, agent.errors()
        assert "open files" in agent.errors()
        assert "Traceback" not in agent.errors()


def test_a_master_without_a_descriptor_to_spare_still_kills(make_agent: Make) -> None:
    agent = make_agent(QUIET + OTHER, agent="release_spread_seconds = 0")
    agent.start()
    pids = [agent.wait_worker(name, state="running")["pid"] for name in ("quiet", "other")]
    before = starve(agent.pid)
    try:
        agent.killfile.touch()
        until(lambda: not [pid for pid in pids if alive(pid)], "nobody lives", 20)
    finally:
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, before)
    agent.wait_worker("quiet", state="killed")
    until(lambda: not [node for node in agent.nodes() if "/workers/" in node], "no node is left")
    agent.killfile.unlink()
    for name in ("quiet", "other"):
        agent.wait_worker(name, state="running")
    assert_clean(agent)
    assert agent.stop() == 0
    assert "supervision failed" not in agent.errors()


def test_a_master_without_a_descriptor_to_spare_keeps_its_watchdog_and_its_tasks(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start(env={"WATCHDOG_USEC": "600000"})
    agent.wait_worker("quiet", state="running")
    before = starve(agent.pid)
    try:
        agent.notified.clear()
        agent.wait_notified("WATCHDOG=1")
        time.sleep(1)
        while "WATCHDOG=1" in agent.notified:
            agent.notified.remove("WATCHDOG=1")
        agent.wait_notified("WATCHDOG=1")
    finally:
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, before)
    assert agent.worker("quiet")["state"] == "running"
    assert agent.stop() == 0


def test_a_fork_that_the_host_refuses_is_said_to_be_that_and_tried_again(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.put("server/config/web1/worker/quiet", "stop")
    agent.start()
    agent.client.call("release")  # starts nothing
    agent.put("server/config/web1/worker/quiet", "start")
    agent.wait_worker("quiet", state="running")
    agent.client.call("stop", worker="quiet")
    limits = [Path(node, "pids.max") for node in agent.nodes() if node.endswith("/supervisor")]
    limit = next((path for path in limits if path.exists()), None)
    if limit is None:
        pytest.skip("no pids controller to refuse a fork with")
    limit.write_text(Path(limit.parent, "pids.current").read_text())
    agent.put("server/config/web1/worker/quiet", "start")
    agent.client.call("start", worker="quiet")
    failed = agent.wait_worker("quiet", state="failed")
    assert "fork" in failed["last_error"]
    assert failed["breaker"]["trips"] == 0
    limit.write_text("max")
    agent.wait_worker("quiet", state="running")
    assert_clean(agent)
    assert agent.stop() == 0
    assert_no_mistake(agent)
