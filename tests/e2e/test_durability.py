"""`durability = "always"`: what the master has acknowledged outlives it, whatever becomes of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until

pytestmark = needs_cgroups

WORKER = f"""
[workers.numbered]
command = ["{sys.executable}", "@/modules/acknowledged.py", "@/acknowledged"]
budget = {{events_per_second = 20000, cpu_quota_percent = 20, cpu_trip_percent = 20, cpu_trip_samples = 1000}}
"""
OTHER = """
[workers.other]
modules = ["@/modules/quiet.py:Quiet"]
"""
SPOOL = """
[spool]
durability = "always"
keep_free = 0
drain_spread_seconds = 0
drain_bytes_per_second = 100_000_000
"""
NOBODY = """
[sink]
backend = "kafka"
[sink.kafka]
bootstrap_servers = ["127.0.0.1:1"]
"""
FILE = """
[sink.file]
max_bytes = "200 MiB"
"""

Key = tuple[int, str]


def acknowledged(agent: RunningAgent) -> dict[Key, int]:
    """Return through which number events were acknowledged, by process and priority."""
    path = agent.folder / "acknowledged"
    found: dict[Key, int] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        pid, priority, through = line.split()
        found[int(pid), priority] = int(through)
    return found


def arrived(agent: RunningAgent) -> dict[Key, list[int]]:
    """Return the numbers that are in the file sink, by process and priority, in the order of the file."""
    found: dict[Key, list[int]] = {}
    pattern = re.compile(rb'"kind": "(\w+)", "action": "numbered", "sequence": (\d+)\}, "pid": (\d+)')
    for path in sorted(Path(agent.folder, "log").glob("events.*.ndjson")):
        for priority, number, pid in pattern.findall(path.read_bytes()):
            found.setdefault((int(pid), priority.decode()), []).append(int(number))
    return found


@pytest.mark.parametrize("sink", ["there", "away"])
def test_nothing_acknowledged_is_missing_after_kills_under_load(
    make_agent: Callable[..., RunningAgent], sink: str
) -> None:
    first = FILE if sink == "there" else NOBODY
    agent = make_agent(WORKER, more=SPOOL + first)
    for kill in range(3):
        agent.start()
        before = sum(acknowledged(agent).values())
        until(
            lambda before=before: sum(acknowledged(agent).values()) > before + 3000,
            f"events of run {kill} are safe",
            60,
        )
        agent.kill()
    safe = acknowledged(agent)
    assert len({pid for pid, _ in safe}) == 3
    agent.write_config(OTHER, more=SPOOL + FILE)  # without the worker: what is on the disk belongs to nobody any more
    agent.start()

    def complete() -> bool:
        found = arrived(agent)
        return all(through <= len(set(found.get(key, ()))) for key, through in safe.items())

    until(complete, "everything that was acknowledged arrives", 60)
    for key, numbers in arrived(agent).items():
        distinct = sorted(set(numbers))
        assert distinct == list(range(1, len(distinct) + 1)), f"{key} has a gap"
        assert len(distinct) >= safe.get(key, 0)
        if sink == "away":
            assert numbers == distinct, f"{key} is out of order or twice"

    def balanced() -> bool:
        spool = agent.folder / "state" / "spool.sqlite"
        return spool.stat().st_size < 2**20 and agent.stop() == 0

    until(balanced, "the spool is empty", 60)


def test_a_worker_of_the_runtime_runs_on_acknowledgements(make_agent: Callable[..., RunningAgent]) -> None:
    worker = """
[workers.talker]
modules = ["@/modules/talker.py:Talker"]
settings = {every_seconds = 0.02, events = 40}
[workers.talker.budget]
events_per_second = 20000
cpu_quota_percent = 20
cpu_trip_percent = 20
cpu_trip_samples = 1000
"""
    agent = make_agent(worker, more=SPOOL + FILE)
    agent.start()

    def counts() -> dict[str, Any]:
        events: dict[str, Any] = agent.worker("talker")["events"]
        return events

    # Many times the window: without acknowledgements it would have come to a halt.
    until(lambda: counts()["delivered"] > 20_000, "its events are delivered", 90)
    assert counts()["dropped"] == {}
    agent.stop()
    numbers = [event["garrison"]["number"] for event in agent.events() if event["event"].get("action") == "said"]
    assert numbers == list(range(1, len(numbers) + 1))
