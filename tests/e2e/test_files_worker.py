"""The files worker in the whole agent: in its cgroup, under its caps, across restarts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until

pytestmark = needs_cgroups

FILES = 100_000 if os.environ.get("GARRISON_FULL") else 3_000
MIB = 1024 * 1024

Make = Callable[[str], RunningAgent]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    agents: list[RunningAgent] = []

    def start(workers: str) -> RunningAgent:
        agent = RunningAgent(tmp_path / "agent", workers)
        agents.append(agent)
        agent.start()
        return agent

    try:
        yield start
    finally:
        for agent in agents:
            agent.cleanup()


def worker(tree: Path, more: str = "") -> str:
    return f"""
[workers.files.settings]
presets = []
alert_paths = ["{tree}"]
settle_seconds = 0.1
{more}
"""


def plant(tree: Path, count: int) -> None:
    for number in range(count):
        if number % 100 == 0:
            (tree / f"d{number // 100}").mkdir(parents=True)
        (tree / f"d{number // 100}" / f"f{number}").write_bytes(b"%d" % number)


def memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def test_a_change_is_an_alert_also_after_the_agent_was_off(make: Make, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    plant(tree, 10)
    agent = make(worker(tree))
    agent.wait_worker("files", state="running")
    agent.wait_event(event__action="baseline-complete")
    (tree / "new").write_bytes(b"n")
    event = agent.wait_event(event__action="created", file__path=str(tree / "new"))
    assert event["event"]["kind"] == "alert"
    assert event["agent"]["worker"] == "files"
    assert agent.stop() == 0
    (tree / "d0" / "f0").write_bytes(b"changed while the agent was off")
    agent.start()
    event = agent.wait_event(event__action="modified", file__path=str(tree / "d0" / "f0"))
    assert event["tags"] == ["offline"]
    assert event["garrison"]["previous"]["size"] == 1


@pytest.mark.timeout(900)
def test_a_large_tree_fits_the_workers_caps(make: Make, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    plant(tree, FILES)
    # The processor and the disk as fast as the caps allow; the memory is what this is about.
    fast = "cpu_percent = 90.0\nread_bytes_per_second = 67108864\n"
    budget = "[workers.files.budget]\ncpu_quota_percent = 100\ncpu_trip_percent = 100\n"
    agent = RunningAgent(tmp_path / "agent", worker(tree, fast) + budget, "[agent.budget]\ncpu_quota_percent = 150\n")
    try:
        agent.start()
        pid = agent.wait_worker("files", state="running")["pid"]
        agent.wait_event(800, event__action="baseline-complete")
        (tree / "d1" / "f100").write_bytes(b"changed")
        agent.wait_event(60, event__action="modified", file__path=str(tree / "d1" / "f100"))
        used = memory(pid)
        status = agent.worker("files")
        print(f"{FILES} files: {used}, cgroup {status['memory_bytes']}")
        assert used["VmHWM"] < 96 * MIB
        assert status["pid"] == pid
        assert status["breaker"]["trips"] == 0
        # What is known survives a kill.
        os.kill(pid, 9)
        until(lambda: agent.worker("files")["pid"] not in (0, None, pid), "another process")
        (tree / "d2" / "f200").write_bytes(b"changed")
        agent.wait_event(300, event__action="modified", file__path=str(tree / "d2" / "f200"))
    finally:
        agent.cleanup()
