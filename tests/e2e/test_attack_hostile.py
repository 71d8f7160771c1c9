"""Hostile workers: they pay with their life or with their rate, and nobody else pays at all."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, alive, module, needs_cgroups, until

pytestmark = needs_cgroups

Make = Callable[..., RunningAgent]
QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
MIB = 1024 * 1024
ROOM = 32 * MIB

DEADLY = {
    "garbage": "frame",
    "announce": "frame of 4294967295 bytes",
    "unknown": "unknown kind",
    "drip": "frame",
    "count_lie": "claims 2 events and holds 1",
    "first_lie": "starts at 3 where 2 comes next",
    "beat_lie": "claims 0",
    "twice_ready": "second 'ready'",
    "close_pipes": "closed its events pipe",
}
"""What each of them does, and a word of what the master says about it."""

HARMLESS = ("half", "flood_beats", "flood_events", "flood_logs", "flood_stdout", "deaf")


def hostile(way: str) -> str:
    name = way.replace("_", "-")
    return f'[workers.{name}]\ncommand = ["{sys.executable}", "-S", "@/modules/hostile_worker.py", "{way}"]\n'


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stopped_at_first(agent: RunningAgent, ways: tuple[str, ...]) -> None:
    for way in ways:
        agent.put(f"server/config/web1/worker/{way.replace('_', '-')}", "stop")


def unleash(agent: RunningAgent, ways: tuple[str, ...]) -> None:
    for way in ways:
        agent.put(f"server/config/web1/worker/{way.replace('_', '-')}", "start")


def test_whoever_breaks_the_contract_is_tripped_and_the_others_do_not_notice(make_agent: Make) -> None:
    ways = tuple(DEADLY)
    budget = "budget = {cpu_quota_percent = 200}"
    agent = make_agent(QUIET + "".join(hostile(way) for way in ways), agent=budget)
    stopped_at_first(agent, ways)
    agent.start()
    quiet = agent.wait_worker("quiet", state="running")["pid"]
    before = resident(agent.pid)
    unleash(agent, ways)
    for way, word in DEADLY.items():
        worker = agent.wait_worker(way.replace("_", "-"), state="tripped")
        assert worker["breaker"]["cause"] == "protocol", worker
        assert word in worker["last_error"], worker
        assert not agent.pids(f"workers/{worker['name']}")
    assert agent.worker("quiet")["pid"] == quiet
    assert agent.worker("quiet")["restarts"] == 0
    assert resident(agent.pid) - before < ROOM
    assert agent.stop() == 0
    assert "supervision failed" not in agent.errors()
    assert "Exception in callback" not in agent.errors()


def test_a_flood_costs_the_flooder_its_rate_and_the_master_neither_memory_nor_its_time(make_agent: Make) -> None:
    agent = make_agent(QUIET + "".join(hostile(way) for way in HARMLESS), agent="budget = {cpu_quota_percent = 100}")
    stopped_at_first(agent, HARMLESS)
    agent.start()
    quiet = agent.wait_worker("quiet", state="running")["pid"]
    before = resident(agent.pid)
    unleash(agent, HARMLESS)
    pids = {way: agent.wait_worker(way.replace("_", "-"), state="running")["pid"] for way in HARMLESS}
    # Configurations that nobody reads: one is in the pipe, one waits, the rest is replaced.
    used, begin = cpu_seconds(agent.pid), time.monotonic()
    for number in range(40):
        agent.put("agent/config/web1/plugin/deaf/settings", json.dumps({"text": "x" * 3500, "number": number}))
        time.sleep(0.1)  # the flood lasts 4 s
    share = (cpu_seconds(agent.pid) - used) / (time.monotonic() - begin)
    asked = time.monotonic()
    status = {worker["name"]: worker for worker in agent.client.call("status")["workers"]}
    assert time.monotonic() - asked < 5
    assert resident(agent.pid) - before < ROOM
    # Three flooders write as fast as their quotas let them; checking all of it would take more than a whole core.
    assert share < 0.6, f"the master uses {share:.0%} of a core"
    assert {way: status[way.replace("_", "-")]["pid"] for way in HARMLESS} == pids
    assert status["quiet"]["pid"] == quiet
    events = status["flood-events"]["events"]
    assert events["dropped"].get("rate_limit", 0) > 0
    assert events["emitted"] >= events["delivered"] + sum(events["dropped"].values())
    result = agent.garrison("kill")
    assert result.returncode == 0, result.stderr
    assert not [pid for pid in pids.values() if alive(pid)]
    # Now that nobody adds to them the books must balance, but for what is on its way to the sink.
    assert agent.garrison("release").returncode == 0

    def balanced() -> bool:
        book = agent.worker("flood-events")["events"]
        return bool(book["emitted"] == book["delivered"] + sum(book["dropped"].values()))

    assert agent.garrison("stop", "flood-events").returncode == 0
    until(balanced, "emitted = delivered + dropped")
    assert agent.stop() == 0
    assert "supervision failed" not in agent.errors()
    assert "Exception in callback" not in agent.errors()


@pytest.mark.parametrize(("script", "word"), [("raise SystemExit(0)", "exit status 0"), ("import nothing", "nothing")])
def test_a_program_that_ends_at_once_trips_after_its_third_time_and_says_how(
    make_agent: Make, script: str, word: str
) -> None:
    agent = make_agent(QUIET + f'[workers.brief]\ncommand = ["{sys.executable}", "-S", "-c", "{script}"]\n')
    agent.start()
    brief = agent.wait_worker("brief", state="tripped")
    assert brief["breaker"]["cause"] == "crash"
    assert word in brief["last_error"]
    assert brief["restarts"] == 2
    assert agent.worker("quiet")["restarts"] == 0
