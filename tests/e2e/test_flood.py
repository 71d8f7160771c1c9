"""A worker that offers far more than anybody can take, on a disk that is full: what host and alerts feel of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.integration._tmpfs_support import MountRefusedError, tmpfs

pytestmark = needs_cgroups

MIB = 1024 * 1024
FLOOD_SECONDS = float(os.environ.get("GARRISON_FLOOD_SECONDS", "8"))
MEMORY_BYTES = 128 * MIB
"""What master and nursery may take: their own share, by default."""
LATE_SECONDS = 5.0

WORKER = """
[workers.talker]
modules = ["@/modules/talker.py:Talker"]
settings = {every_seconds = 0.1, events = 10_000, alerts = 1}
[workers.talker.budget]
events_per_second = 100_000
cpu_quota_percent = 100
cpu_trip_percent = 100
cpu_trip_samples = 1000
memory_high = "128 MiB"
memory_max = "192 MiB"
"""
OTHER = """
[workers.other]
modules = ["@/modules/quiet.py:Quiet"]
"""
AGENT = "budget = {cpu_quota_percent = 150}"
FILE = """
[sink]
backend = "file"
[sink.file]
max_bytes = "1 GiB"
"""
NOBODY = """
[sink]
backend = "kafka"
[sink.kafka]
bootstrap_servers = ["127.0.0.1:1"]
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    try:
        with tmpfs(tmp_path / "disk", 2 * MIB) as folder:
            yield folder
    except MountRefusedError as error:
        pytest.skip(f"no file system can be mounted here: {error}")


def memory(agent: RunningAgent) -> int:
    """Memory of master and nursery without the page cache of what they write, as their cgroup has it, bytes."""
    for node in agent.nodes():
        path = Path(node, "memory.stat")
        if node.endswith(f"/{agent.root}/supervisor") and path.exists():
            found = dict(line.split() for line in path.read_text().splitlines())
            return int(found["anon"] if "anon" in found else found["total_rss"])
    raise AssertionError("no memory controller")


class Alerts:
    """Follows the alerts in the file sink."""

    def __init__(self, agent: RunningAgent) -> None:
        self.path = agent.folder / "log" / "events.0.ndjson"
        self.sequence: list[int] = []
        self.latest = 0.0
        self._at = 0

    def look(self) -> None:
        """Take in what has come since; notes how late the newest alert is."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read(64 * MIB)
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        now = time.time()
        for line in whole.splitlines():
            if b'"action":"shouted"' in line:
                event = json.loads(line)
                self.sequence.append(event["event"]["sequence"])
                self.latest = max(self.latest, now - stamp(event["@timestamp"]))


def stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_alerts_arrive_in_order_and_in_time_through_a_flood_on_a_full_disk(
    make_agent: Callable[..., RunningAgent], disk: Path
) -> None:
    spool = f'[spool]\npath = "{disk}/spool.sqlite"\ndurability = "always"\nkeep_free = 0\n'
    agent = make_agent(WORKER, AGENT, FILE + spool)
    agent.start()
    until((disk / "spool.sqlite").exists, "the spool is there")
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
    alerts, most = Alerts(agent), 0
    alerts.look()
    alerts.latest = 0.0
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        alerts.look()
        most = max(most, memory(agent))
        time.sleep(0.2)
    counts = agent.worker("talker")["events"]
    problems = agent.client.call("status")["agent"]["problems"]
    print(f"emitted {counts}, memory {most / MIB:.0f} MiB, alerts {len(alerts.sequence)}, latest {alerts.latest:.2f} s")
    assert most < MEMORY_BYTES
    assert any("spool" in text for text in problems), problems
    assert len(alerts.sequence) > FLOOD_SECONDS
    assert alerts.sequence == list(range(1, len(alerts.sequence) + 1))
    assert alerts.latest < LATE_SECONDS
    assert agent.worker("talker")["state"] == "running"


def test_a_spool_at_its_bound_keeps_alerts_and_stays_within_it(
    make_agent: Callable[..., RunningAgent], disk: Path
) -> None:
    spool = f'[spool]\npath = "{disk}/spool.sqlite"\nmax_bytes = "1 MiB"\nkeep_free = 0\ndrain_spread_seconds = 0\n'
    agent = make_agent(WORKER, AGENT, NOBODY + spool)
    agent.start()
    most = largest = 0
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        most = max(most, memory(agent))
        found = os.statvfs(disk)
        largest = max(largest, (found.f_blocks - found.f_bfree) * found.f_frsize)
        time.sleep(0.1)
    agent.write_config(OTHER, AGENT, FILE + spool)  # the worker goes, and the sink comes back
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    alerts = Alerts(agent)

    def complete() -> bool:
        alerts.look()
        return bool(alerts.sequence) and [worker["name"] for worker in agent.client.call("status")["workers"]] == [
            "other"
        ]

    until(complete, "the alerts arrive", 90)
    until(lambda: len(alerts.sequence) == (alerts.look(), len(alerts.sequence))[1], "all of them")
    assert agent.stop() == 0
    alerts.look()
    print(f"memory {most / MIB:.0f} MiB, disk {largest / MIB:.2f} MiB, alerts {len(alerts.sequence)}")
    assert most < MEMORY_BYTES
    assert 0 < largest <= MIB + 64 * 1024, "the bound, and what the file system takes for itself"
    assert alerts.sequence == list(range(1, len(alerts.sequence) + 1))
