"""A worker that offers 100,000 events a second, on a disk that is full: what host and alerts feel of it.

Each test floods for 8 s, or for ``GARRISON_FLOOD_SECONDS``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
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
SHOUTED = b'"action":"shouted"'

OFFERED_PER_SECOND = 100_000
FILE_BYTES = 64 * MIB

WORKER = f"""
[workers.talker]
command = ["{sys.executable}", "@/modules/flooder.py", "115000", "5"]
[workers.talker.budget]
events_per_second = 100_000
events_burst_seconds = 0.5
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
FILE = f"""
[sink]
backend = "file"
[sink.file]
max_bytes = {FILE_BYTES}
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
    """Follows the alerts through the two files of the sink."""

    def __init__(self, agent: RunningAgent) -> None:
        self.sequence: list[int] = []
        self.latest = 0.0
        self.disk = 0
        self._at = {agent.folder / "log" / f"events.{number}.ndjson": 0 for number in (0, 1)}

    def look(self) -> None:
        """Take in what has come since; notes how late the newest alert is, and what the files take of the disk."""
        found = {path: path.stat() for path in self._at if path.exists()}
        self.disk = max(self.disk, sum(stat.st_blocks * 512 for stat in found.values()))
        for path in sorted(found, key=lambda path: found[path].st_mtime_ns):
            if found[path].st_size < self._at[path]:
                self._at[path] = 0  # it was begun anew
            with path.open("rb") as file:
                file.seek(self._at[path])
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._at[path] += whole
            self._take(data[:whole])

    def _take(self, data: bytes) -> None:
        now, at = time.time(), data.find(SHOUTED)
        while at >= 0:
            event = json.loads(data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at)])
            self.sequence.append(event["event"]["sequence"])
            self.latest = max(self.latest, now - stamp(event["@timestamp"]))
            at = data.find(SHOUTED, at + 1)


class Offer:
    """What the flooding worker has offered since this was made, as the agent's books have it."""

    def __init__(self, agent: RunningAgent) -> None:
        self._agent = agent
        agent.wait_worker("talker", state="running")
        until(lambda: self._emitted() > OFFERED_PER_SECOND, "the flood has begun")
        self._begin, self._before = time.monotonic(), self._emitted()

    def per_second(self) -> float:
        """Return the events a second until now."""
        emitted = self._emitted() - self._before
        return emitted / (time.monotonic() - self._begin)

    def _emitted(self) -> int:
        return int(self._agent.worker("talker")["events"]["emitted"])


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
    alerts, most, offer = Alerts(agent), 0, Offer(agent)
    alerts.look()
    alerts.latest = 0.0
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        alerts.look()
        most = max(most, memory(agent))
        time.sleep(0.2)
    offered, counts = offer.per_second(), agent.worker("talker")["events"]
    problems = agent.client.call("status")["agent"]["problems"]
    print(f"offered {offered:.0f}/s: {counts}; memory {most / MIB:.0f} MiB, files {alerts.disk / MIB:.0f} MiB")
    print(f"alerts {len(alerts.sequence)}, the latest {alerts.latest:.2f} s")
    assert offered >= OFFERED_PER_SECOND
    assert most < MEMORY_BYTES
    assert 0 < alerts.disk <= 2 * FILE_BYTES + MIB
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
    most, largest, offer = 0, 0, Offer(agent)
    end = time.monotonic() + FLOOD_SECONDS
    while time.monotonic() < end:
        most = max(most, memory(agent))
        found = os.statvfs(disk)
        largest = max(largest, (found.f_blocks - found.f_bfree) * found.f_frsize)
        time.sleep(0.1)
    offered, counts = offer.per_second(), agent.worker("talker")["events"]
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
    print(f"offered {offered:.0f}/s: {counts}; memory {most / MIB:.0f} MiB, disk {largest / MIB:.2f} MiB")
    print(f"alerts {len(alerts.sequence)}")
    assert offered >= OFFERED_PER_SECOND
    assert most < MEMORY_BYTES
    assert 0 < largest <= MIB + 64 * 1024, "the bound, and what the file system takes for itself"
    assert alerts.sequence == list(range(1, len(alerts.sequence) + 1))


def test_a_worker_far_above_its_rate_loses_no_alert_to_its_own_events(make_agent: Callable[..., RunningAgent]) -> None:
    worker = WORKER.replace('"115000"', '"5000"').replace("events_per_second = 100_000", "events_per_second = 500")
    agent = make_agent(worker, AGENT, FILE)
    agent.start()
    until(lambda: agent.worker("talker")["events"]["dropped"].get("rate_limit", 0) > 10_000, "events are dropped")
    alerts = Alerts(agent)
    until(lambda: (alerts.look(), len(alerts.sequence) > 20)[1], "alerts arrive")
    assert alerts.sequence == list(range(1, len(alerts.sequence) + 1))
