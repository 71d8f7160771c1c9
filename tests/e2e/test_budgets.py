"""Budgets and breaker in the whole agent: throttle, trip, dry run, run-time changes, restarts, history."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until

pytestmark = needs_cgroups

MIB = 1024 * 1024
SCALED = Path(__file__).with_name("_scaled.py")
FAST = "sample_seconds = 0.2\ncpu_trip_samples = 5\nbeat_seconds = 0.5\n"


def worker(name: str, file: str, kind: str, budget: str = "", settings: str = "") -> str:
    return (
        f'[workers.{name}]\nmodules = ["{module(file, kind)}"]\n[workers.{name}.settings]\n{settings}\n'
        f"[workers.{name}.budget]\n{FAST}{budget}\n"
    )


HOG = worker("hog", "cpu_hog", "CpuHog")
QUIET = worker("quiet", "quiet", "Quiet")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[list[RunningAgent]]:
    """Collects the agents of a test; cleans up after them."""
    agents: list[RunningAgent] = []
    yield agents
    for agent in agents:
        agent.cleanup()


def run(
    agents: list[RunningAgent], tmp_path: Path, workers: str, agent: str = "", divisor: float | None = 20
) -> RunningAgent:
    """Start an agent whose breaker's times are divided."""
    made = RunningAgent(tmp_path / f"agent{len(agents)}", workers, agent)
    agents.append(made)
    start(made, divisor)
    return made


def start(agent: RunningAgent, divisor: float | None = 20) -> None:
    agent.start(
        command=None if divisor is None else [sys.executable, str(SCALED), str(divisor), "--config", str(agent.config)]
    )


def states(agent: RunningAgent, name: str) -> list[dict[str, Any]]:
    return [event for event in agent.events() if event.get("garrison", {}).get("worker") == name]


def actions(agent: RunningAgent, name: str) -> list[str]:
    return [event["event"]["action"] for event in states(agent, name)]


def test_a_hog_is_throttled_first_then_tripped_and_each_step_says_why(
    folder: list[RunningAgent], tmp_path: Path
) -> None:
    agent = run(folder, tmp_path, HOG + QUIET)
    throttle = agent.wait_event(event__action="worker-throttled", garrison__worker="hog")["garrison"]
    assert (throttle["cause"], throttle["resource"], throttle["limit"]) == ("cpu", "cpu_trip_percent", 5)
    assert throttle["value"] > 5
    assert (throttle["cap_percent"], throttle["module"]) == (2.5, "cpuhog")
    trip = agent.wait_event(event__action="worker-tripped", garrison__worker="hog")["garrison"]
    assert (trip["cause"], trip["resource"], trip["trips"]) == ("cpu", "throttled_periods_percent", 1)
    assert trip["value"] >= 20
    assert trip["throttled_periods"] > 0
    assert trip["retry_in_seconds"] > 0
    # On probation there is no second throttle: the next breach trips at once.
    probation = agent.wait_event(event__action="worker-probation", garrison__worker="hog")
    assert probation["garrison"]["from"] == "starting"
    agent.wait_event(event__action="worker-tripped", garrison__trips=2)
    assert actions(agent, "hog").count("worker-throttled") == 1
    assert agent.worker("quiet")["breaker"]["trips"] == 0
    assert "worker-stopping" in actions(agent, "hog")


def test_the_status_shows_cap_and_remaining_time_of_a_throttle(folder: list[RunningAgent], tmp_path: Path) -> None:
    agent = run(folder, tmp_path, HOG, divisor=1)
    shown = agent.wait_worker("hog", state="throttled")
    assert shown["limits"]["cpu_quota_percent"] == 2.5
    breaker = shown["breaker"]
    assert (breaker["state"], breaker["throttled_to_percent"], breaker["cause"]) == ("throttled", 2.5, "cpu")
    assert 0 < breaker["throttled_for_seconds"] <= 60
    text = agent.garrison("status").stdout
    assert "throttled" in text
    # Operators are obeyed all the same, and nobody has to stop at a lowered quota.
    assert agent.garrison("stop", "hog").returncode == 0
    assert agent.worker("hog")["breaker"]["state"] == "closed"
    assert agent.garrison("start", "hog").returncode == 0
    assert agent.worker("hog")["limits"]["cpu_quota_percent"] == 10
    # It has not been forgiven: what follows within 180 s of the throttle is a trip.
    agent.wait_event(event__action="worker-tripped", garrison__worker="hog", garrison__cause="cpu")


def test_a_worker_that_does_with_less_has_its_quota_back(folder: list[RunningAgent], tmp_path: Path) -> None:
    # A throttle of 7.5 s: on a busy machine it takes a while until a worker with 2.5 % of a core has heard of it.
    agent = run(folder, tmp_path, worker("polite", "polite", "Polite"), divisor=8)
    agent.wait_event(event__action="worker-throttled", garrison__worker="polite")
    restored = agent.wait_event(event__action="worker-running", garrison__event="restore")["garrison"]
    assert restored.get("throttled_periods_percent", 0.0) < 20
    shown = agent.wait_worker("polite", state="running")
    assert shown["limits"]["cpu_quota_percent"] == 10
    assert (shown["breaker"]["trips"], shown["restarts"]) == (0, 0)


@pytest.mark.parametrize("where", ["agent", "budget"])
def test_a_dry_run_reports_and_does_nothing(folder: list[RunningAgent], tmp_path: Path, where: str) -> None:
    hog = worker("hog", "cpu_hog", "CpuHog", budget="dry_run = true" if where == "budget" else "")
    agent = run(folder, tmp_path, hog, "dry_run = true" if where == "agent" else "")
    pid = agent.wait_worker("hog", state="running")["pid"]
    would = agent.wait_event(event__action="breaker-would-throttle", garrison__worker="hog")["garrison"]
    assert (would["dry_run"], would["cause"], would["limit"]) == (True, "cpu", 5)
    time.sleep(3.0)  # more than two windows of a second
    shown = agent.worker("hog")
    assert (shown["state"], shown["pid"], shown["breaker"]["trips"], shown["breaker"]["dry_run"]) == (
        "running",
        pid,
        0,
        True,
    )
    assert shown["limits"]["cpu_quota_percent"] == 10
    assert actions(agent, "hog").count("breaker-would-throttle") == 1  # once a minute


def test_a_breaker_survives_the_death_of_its_master(folder: list[RunningAgent], tmp_path: Path) -> None:
    agent = run(folder, tmp_path, worker("crasher", "crasher", "Crasher"), divisor=1)
    until(lambda: agent.worker("crasher")["breaker"]["trips"] == 1, "it trips", 60)
    before = agent.wait_worker("crasher", state="tripped")["breaker"]
    until((agent.folder / "state" / "breakers.json").exists, "it is on disk")
    agent.kill()
    start(agent, 1)
    after = agent.wait_worker("crasher", state="tripped")["breaker"]
    assert (after["trips"], after["level"], after["cause"]) == (1, 1, "crash")
    assert after["retry_in_seconds"] <= before["retry_in_seconds"]
    entries = json.loads(agent.garrison("history", "crasher", "--json").stdout)["entries"]
    assert [entry["action"] for entry in entries].count("worker-tripped") >= 1
    # A torn file forgives nobody.
    agent.kill()
    (agent.folder / "state" / "breakers.json").write_text("{")
    start(agent, 1)
    until(lambda: agent.worker("crasher")["state"] == "latched", "the first breach latches", 60)
    assert any("breakers.json" in problem for problem in agent.status()["agent"]["problems"])
    agent.garrison("reset", "crasher", "--no-wait")  # which says that it has crashed again, if it has by then
    until(lambda: agent.worker("crasher")["breaker"]["state"] != "latched", "a reset closes it")


def test_a_latched_worker_stays_latched_until_its_configuration_changes(
    folder: list[RunningAgent], tmp_path: Path
) -> None:
    agent = run(folder, tmp_path, worker("crasher", "crasher", "Crasher"), divisor=600)
    until(lambda: agent.worker("crasher")["state"] == "latched", "it latches", 60)
    forks = sum(action == "worker-starting" for action in actions(agent, "crasher"))
    assert forks <= 20
    agent.stop()
    start(agent, 600)
    time.sleep(1.0)
    assert agent.worker("crasher")["state"] == "latched"
    agent.put("agent/config/@all/plugin/crasher/budget", json.dumps({"pids_max": 40}))
    until(
        lambda: agent.worker("crasher")["breaker"]["trips"] == 0 or agent.worker("crasher")["restarts"] > 0,
        "it is tried",
    )


def test_a_suspended_agent_takes_nobody_for_hung(folder: list[RunningAgent], tmp_path: Path) -> None:
    agent = run(folder, tmp_path, QUIET)
    pid = agent.wait_worker("quiet", state="running")["pid"]
    everybody = [agent.pid, *agent.pids("supervisor"), *agent.pids("workers")]
    for signo in (signal.SIGSTOP, signal.SIGCONT):
        for each in dict.fromkeys(everybody):
            os.kill(each, signo)
        time.sleep(4.0 if signo == signal.SIGSTOP else 1.0)
    shown = agent.worker("quiet")
    assert (shown["state"], shown["pid"], shown["breaker"]["trips"]) == ("running", pid, 0)


def test_a_stopped_worker_hangs_and_a_frozen_one_does_not(folder: list[RunningAgent], tmp_path: Path) -> None:
    agent = run(folder, tmp_path, QUIET + worker("still", "quiet", "Quiet"))
    assert agent.garrison("freeze", "still").returncode == 0
    os.kill(agent.wait_worker("quiet", state="running")["pid"], signal.SIGSTOP)
    trip = agent.wait_event(event__action="worker-tripped", garrison__worker="quiet")["garrison"]
    assert (trip["cause"], trip["limit"]) == ("hang", 1.5)
    assert agent.worker("still")["state"] == "frozen"
    assert agent.worker("still")["breaker"]["trips"] == 0
    # And it recovers.
    agent.wait_worker("quiet", state="running")


def budget_key(agent: RunningAgent, name: str, **budget: Any) -> None:
    agent.put(f"agent/config/@all/plugin/{name}/budget", json.dumps(budget))


def test_a_new_budget_applies_to_the_running_worker(folder: list[RunningAgent], tmp_path: Path) -> None:
    agent = run(folder, tmp_path, QUIET)
    pid = agent.wait_worker("quiet", state="running")["pid"]
    budget_key(agent, "quiet", cpu_quota_percent=7, memory_max=80 * MIB, pids_max=20, nofile=99)
    wanted = {"cpu_quota_percent": 7, "memory_max": 80 * MIB, "pids_max": 20, "memory_high": 64 * MIB}
    until(lambda: agent.worker("quiet")["limits"] == wanted, "the caps are in force")
    until(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE) == (99, 99), "and the one on open files")
    assert agent.worker("quiet")["pid"] == pid


@pytest.mark.parametrize("force", [False, True])
def test_a_memory_cap_that_does_not_fit_is_refused_or_trips(
    folder: list[RunningAgent], tmp_path: Path, force: bool
) -> None:
    agent = run(folder, tmp_path, worker("quiet", "quiet", "Quiet", settings="ballast_mib = 40"))
    pid = agent.wait_worker("quiet", state="running")["pid"]
    until(lambda: agent.worker("quiet")["memory_bytes"] > 40 * MIB, "it has its ballast")
    budget_key(agent, "quiet", memory_max=24 * MIB, memory_high=20 * MIB, cpu_quota_percent=6, force=force)
    if force:
        trip = agent.wait_event(event__action="worker-tripped", garrison__worker="quiet")["garrison"]
        assert (trip["cause"], trip["resource"], trip["limit"]) == ("memory", "memory_max", 24 * MIB)
        return
    until(lambda: agent.worker("quiet")["limits"]["cpu_quota_percent"] == 6, "the rest of it is in force")
    shown = agent.worker("quiet")
    assert (shown["pid"], shown["limits"]["memory_max"], shown["breaker"]["trips"]) == (pid, 96 * MIB, 0)
    assert "more than the new memory_max" in shown["last_error"]
    # One that fits is taken, and the complaint is gone.
    budget_key(agent, "quiet", memory_max=90 * MIB)
    until(lambda: agent.worker("quiet")["limits"]["memory_max"] == 90 * MIB, "a cap that fits is in force")
    assert agent.worker("quiet")["last_error"] is None


def test_a_memory_cap_of_all_workers_that_does_not_hold_them_is_refused(
    folder: list[RunningAgent], tmp_path: Path
) -> None:
    agent = run(folder, tmp_path, worker("quiet", "quiet", "Quiet", settings="ballast_mib = 40"))
    pid = agent.wait_worker("quiet", state="running")["pid"]
    until(lambda: agent.worker("quiet")["memory_bytes"] > 40 * MIB, "it has its ballast")
    agent.put("server/config/@all/master", json.dumps({"aggregate": {"memory_max": 32 * MIB}}))
    text = "more than the new memory_max"
    until(lambda: any(text in problem for problem in agent.status()["agent"]["problems"]), "it is refused")
    assert agent.worker("quiet")["pid"] == pid


def test_history_is_bounded_ordered_and_knows_its_workers(folder: list[RunningAgent], tmp_path: Path) -> None:
    agent = run(folder, tmp_path, QUIET)
    for _ in range(3):
        agent.garrison("stop", "quiet")
        agent.garrison("start", "quiet")
    entries = json.loads(agent.garrison("history", "--json").stdout)["entries"]
    numbers = [entry["number"] for entry in entries]
    assert numbers == sorted(numbers)
    lines = agent.garrison("history", "quiet", "-n", "2").stdout.splitlines()
    assert len(lines) == 2
    assert "quiet starting → running (ready)" in lines[1]
    wrong = agent.garrison("history", "quite")
    assert wrong.returncode == 1
    assert "did you mean 'quiet'" in wrong.stderr
