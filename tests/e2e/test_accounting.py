"""The accounting of a whole agent: every number is delivered, or dropped by name, or known to be under way."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor.control.client import ControlClient
from tests.e2e._agent import RunningAgent, module, needs_cgroups, until

pytestmark = needs_cgroups

HOSTILE = Path(__file__).parents[1] / "misbehaving" / "hostile_worker.py"
TALKER = f'[workers.talker]\nmodules = ["{module("talker", "Talker")}"]\n'
QUIET = f'[workers.quiet]\nmodules = ["{module("healthy", "Healthy")}"]\nsettings = {{every_seconds = 0.1}}\n'
BEAT = "[heartbeat]\nseconds = 1\n"


def books(agent: RunningAgent, worker: str) -> dict[str, Any]:
    found: dict[str, Any] = agent.worker(worker)["events"]
    return found


def balanced(events: dict[str, Any]) -> bool:
    return bool(events["emitted"] == events["delivered"] + sum(events["dropped"].values()) + events["in_flight"])


def reconciled(agent: RunningAgent, missing: int = 0) -> dict[str, Any]:
    """Return what `garrison reconcile` finds in the file, once heartbeats have told of at least so much missing."""

    def look() -> dict[str, Any] | None:
        done = agent.garrison("reconcile", "--json", "--all", "--complete")
        report: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode == 0) == (report["summary"]["unexplained"] == 0), done.stdout
        told = sum(report["summary"]["explained"].values())
        return report if not report["summary"]["unexplained"] and told >= missing else None

    return until(look, "nothing is missing without a reason")


def heartbeats(agent: RunningAgent, worker: str) -> list[dict[str, Any]]:
    return [
        event["garrison"]
        for event in agent.events()
        if event["event"]["action"] == "worker-heartbeat" and event["garrison"]["worker"] == worker
    ]


def test_a_heartbeat_tells_of_the_agent_and_of_each_worker(make_agent: Any) -> None:
    agent = make_agent(TALKER + QUIET, more=BEAT)
    agent.start()
    beat = agent.wait_event(event__action="heartbeat")
    assert beat["event"]["kind"] == "metric"
    assert (beat["agent"]["worker"], beat["agent"]["priority"]) == ("agent", "state")
    told = beat["garrison"]
    assert told["interval_seconds"] == 1
    assert {"version", "uptime_seconds", "rss_bytes", "fds", "load", "config_hash", "queue", "sink"} <= told.keys()
    assert sum(told["workers"].values()) == 2
    until(lambda: any("memory_bytes" in told for told in heartbeats(agent, "talker")), "a sample of the worker")
    told = next(told for told in heartbeats(agent, "talker") if "memory_bytes" in told)
    assert (told["state"], told["desired"], told["breaker"]["state"]) == ("running", "start", "closed")
    assert told["memory_bytes"] > 0
    assert told["fds"] > 0
    assert told["config"]["hash"]
    assert all(balanced(told["events"]) for name in ("talker", "quiet") for told in heartbeats(agent, name))


def test_the_counts_go_on_through_kill_9_of_the_master_under_load(make_agent: Any) -> None:
    agent = make_agent(TALKER + QUIET, more=BEAT)
    seen: dict[str, Any] = {"emitted": 0, "delivered": 0, "dropped": {}}
    for _master in range(4):
        agent.start()
        now = books(agent, "talker")
        assert now["emitted"] >= seen["emitted"]
        assert now["delivered"] >= seen["delivered"]
        assert all(now["dropped"].get(reason, 0) >= count for reason, count in seen["dropped"].items())
        before = now["delivered"]
        until(lambda: books(agent, "talker")["delivered"] > before + 500, "events")  # noqa: B023
        time.sleep(random.random())
        seen = books(agent, "talker")
        agent.kill()
    agent.start()
    until(lambda: len(heartbeats(agent, "talker")) > 2, "heartbeats")
    report = reconciled(agent)
    assert report["summary"]["duplicates"] == 0
    for name in ("talker", "quiet"):
        assert balanced(books(agent, name))
    # Of what arrived nothing is missing in the books.
    arrived = {worker["worker"]: worker["arrived"] for worker in report["workers"]}
    now = books(agent, "talker")
    assert now["emitted"] >= arrived["talker"]
    assert now["delivered"] + now["dropped"].get("lost_at_exit", 0) >= arrived["talker"]


def test_with_durability_always_the_books_say_exactly_what_arrived(make_agent: Any) -> None:
    spool = '[spool]\ndurability = "always"\nkeep_free = 0\ndrain_spread_seconds = 0\n'
    agent = make_agent(TALKER, more=BEAT + spool)
    for _master in range(3):
        agent.start()
        before = books(agent, "talker")["delivered"]
        until(lambda: books(agent, "talker")["delivered"] > before + 500, "events")  # noqa: B023
        agent.kill()
    # The worker is gone from the configuration: what is told of its last process is told all the same.
    agent.write_config(QUIET, more=BEAT + spool)
    agent.start()
    until(lambda: any(told["state"] == "removed" for told in heartbeats(agent, "talker")), "a document of the removed")
    until(
        lambda: heartbeats(agent, "talker")[-1]["events"]["in_flight"] == 0 and len(heartbeats(agent, "quiet")) > 3,
        "its events are out",
    )
    report = reconciled(agent)
    [talker] = [worker for worker in report["workers"] if worker["worker"] == "talker"]
    told = [one["events"] for one in heartbeats(agent, "talker")][-1]
    assert balanced(told)
    assert talker["arrived"] == told["delivered"]


def test_an_orderly_restart_loses_nothing_and_counts_on(make_agent: Any) -> None:
    agent = make_agent(TALKER, more=BEAT)
    agent.start()
    until(lambda: books(agent, "talker")["delivered"] > 300, "events")
    assert agent.stop() == 0
    agent.start()
    until(lambda: books(agent, "talker")["delivered"] > 1000, "more events")
    assert books(agent, "talker")["dropped"] == {}
    assert reconciled(agent)["summary"]["missing"] == 0


def test_what_a_rate_limit_drops_is_told_with_its_numbers(make_agent: Any) -> None:
    budget = "budget = {events_per_second = 50, events_burst_seconds = 1, cpu_trip_samples = 1000}\n"
    agent = make_agent(TALKER + budget, more=BEAT)
    agent.start()
    until(lambda: books(agent, "talker")["dropped"].get("rate_limit", 0) > 500, "drops")
    told = until(
        lambda: [one for one in heartbeats(agent, "talker") if one["events"].get("drops")], "drops in a heartbeat"
    )
    assert {drop["reason"] for one in told for drop in one["events"]["drops"]} <= {"rate_limit", "mixed"}
    report = reconciled(agent, 500)
    [talker] = [worker for worker in report["workers"] if worker["worker"] == "talker"]
    assert talker["explained"]
    assert balanced(books(agent, "talker"))


def test_the_drops_of_a_killed_master_are_told_by_the_next_one(make_agent: Any) -> None:
    budget = "budget = {events_per_second = 50, events_burst_seconds = 1, cpu_trip_samples = 1000}\n"
    agent = make_agent(TALKER + budget, more="[heartbeat]\nseconds = 3600\n")
    agent.start()
    until(lambda: books(agent, "talker")["dropped"].get("rate_limit", 0) > 200, "drops")
    agent.kill()
    agent.write_config(TALKER + budget, more=BEAT)
    agent.start()
    report = reconciled(agent, 200)
    [talker] = [worker for worker in report["workers"] if worker["worker"] == "talker"]
    assert sum(talker["explained"].values()) >= 200


@pytest.mark.parametrize("how", ["count_lie", "first_lie", "repeat", "beat_lie"])
def test_a_worker_that_lies_about_its_numbers_harms_nobodys_books(make_agent: Any, how: str) -> None:
    liar = f'[workers.liar]\ncommand = ["{sys.executable}", "{HOSTILE}", "{how}"]\n'
    agent = make_agent(TALKER + QUIET + liar, more=BEAT)
    agent.start()
    tripped = agent.wait_event(garrison__worker="liar", garrison__cause="protocol")
    assert tripped["garrison"]["cause"] == "protocol"
    client: ControlClient = agent.client
    for worker in client.call("status")["workers"]:
        assert balanced(worker["events"])
        assert worker["events"]["in_flight"] >= 0
    before = books(agent, "talker")["delivered"]
    until(lambda: books(agent, "talker")["delivered"] > before + 200, "the neighbour's events")
    report = reconciled(agent)
    missing = {worker["worker"]: worker["missing"] for worker in report["workers"]}
    assert (missing["talker"], missing["quiet"]) == (0, 0)
