"""What the kernel holds whatever a worker does: its share of the CPU, and the host's page cache."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from garrison.workers.files.reading import resident
from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._hogs import HEALTHY, Yard, cpu_clock, hog

pytestmark = needs_cgroups

FULL = bool(os.environ.get("GARRISON_FULL"))
WINDOW_SECONDS = 10.0
PERIOD_SECONDS = 0.1
QUOTA_PERCENT = 20
MIB = 1024 * 1024
MEMORY_MAX = 32 * MIB
HASHED = 10 * MEMORY_MAX
SIZE = HASHED // 10
"""Of each file."""
WHOLE = SIZE // mmap.PAGESIZE
TRIES = 6

Make = Callable[..., RunningAgent]


def test_cpu_over_any_ten_seconds_is_the_quota_and_at_most_one_period_more(make_agent: Make) -> None:
    # Three processes that burn CPU on every core, and a watch that is too patient to end them.
    budget = {"cpu_quota_percent": QUOTA_PERCENT, "cpu_trip_percent": QUOTA_PERCENT, "cpu_trip_samples": 1000}
    escapees = hog("escapees", "Escapees", **budget)
    agent = make_agent(escapees.toml(), agent="budget = {cpu_quota_percent = 100}")
    yard = Yard(agent)
    yard.start(None)
    agent.wait_worker("escapees", state="running")
    used = cpu_clock(agent, "/workers/escapees")
    yard.loose("escapees")
    yard.began("escapees")
    looks: list[tuple[float, float, float]] = []
    end = time.monotonic() + (60.0 if FULL else WINDOW_SECONDS + 4.0)
    while time.monotonic() < end:
        before = time.monotonic()
        looks.append((before, used(), time.monotonic()))
        time.sleep(0.05)
    # A window that begins anywhere touches one period more than fits into it; what is not used of a slice of 1 ms
    # on one CPU may be used in the next period (the kernel's sched-bwc.rst).
    slack = 0.001 * (os.cpu_count() or 1)
    share, last, windows = QUOTA_PERCENT / 100, 0, 0
    for first, (begin, at_begin, _) in enumerate(looks):
        last = max(last, first)
        while last < len(looks) - 1 and looks[last][0] - begin < WINDOW_SECONDS:
            last += 1
        _, at_end, finish = looks[last]
        if finish - begin < WINDOW_SECONDS:
            break
        windows += 1
        periods = math.ceil((finish - begin) / PERIOD_SECONDS) + 1
        assert at_end - at_begin <= share * PERIOD_SECONDS * periods + slack, (begin, finish, at_end - at_begin)
    assert windows > 10
    # They really wanted more than they got.
    whole = (looks[-1][1] - looks[0][1]) / (looks[-1][2] - looks[0][0])
    assert whole > share / 2, f"they used {whole:.1%} of a core"
    assert agent.worker("escapees")["breaker"]["trips"] == 0


def residents(path: Path) -> int:
    """Return how many pages of a file are in the page cache."""
    with open(path, "rb") as file:
        pages = resident(file.fileno(), 0, path.stat().st_size)
    if pages is None:
        pytest.skip("mincore does not tell on this kernel")
    return sum(page & 1 for page in pages)


@dataclass(frozen=True)
class Cached:
    """Files of others in the host's page cache, before and after a worker has hashed."""

    neighbour: int
    """Pages of a file that the worker has nothing to do with."""
    shared: int
    """Pages of a file that it hashes too, and that had been there before."""
    bystander: int
    """Pages of a file like the first: what goes of it, the machine itself has taken."""


def test_who_hashes_ten_times_its_memory_is_not_tripped_and_the_hosts_page_cache_stays(
    make_agent: Make, tmp_path: Path
) -> None:
    lost: list[tuple[Cached, Cached]] = []
    for number in range(TRIES):
        before, after = hash_beside_others(make_agent, tmp_path / str(number))
        if (after.neighbour, after.shared) == (before.neighbour, before.shared) == (WHOLE, WHOLE):
            return
        lost.append((before, after))
    # A machine may take pages back while nothing is short (one with a balloon does, every few seconds). What the worker
    # does to the cache it does each time, and to nobody's file but those that it reads.
    if all(after.bystander < before.bystander for before, after in lost):
        pytest.skip(f"this machine takes page cache back by itself: {lost}")
    raise AssertionError(f"pages of others were gone in each of {TRIES} tries: {lost}")


def hash_beside_others(make_agent: Make, folder: Path) -> tuple[Cached, Cached]:
    """Hash ten times a worker's memory; return what others had in the cache before and after it."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for number in range(10):
        path = tree / f"f{number}"
        path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
        forget(path)
    neighbour, bystander = folder / "neighbour", folder / "bystander"
    for path in (neighbour, bystander):
        path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
        forget(path)
    if residents(neighbour):
        pytest.skip("this file system keeps its files in memory")
    agent = make_agent(
        HEALTHY
        + f"""
[workers.files.settings]
presets = []
paths = ["{tree}"]
cpu_percent = 100
read_bytes_per_second = "1GiB"
[workers.files.budget]
sample_seconds = 0.2
cpu_quota_percent = 100
cpu_trip_percent = 100
memory_high = {MEMORY_MAX * 3 // 4}
memory_max = {MEMORY_MAX}
""",
        agent="budget = {cpu_quota_percent = 200}",
    )
    # Now they are in the cache. A file of the tree that somebody else is using is among them: the worker reads it as
    # well, and must leave it where it is.
    shared = tree / "f3"
    expected = hashlib.sha256(neighbour.read_bytes()).hexdigest()
    bystander.read_bytes()
    shared.read_bytes()

    def cached() -> Cached:
        return Cached(residents(neighbour), residents(shared), residents(bystander))

    before = cached()
    try:
        agent.start()
        files = agent.wait_worker("files", state="running")
        agent.wait_event(event__action="baseline-complete", seconds=60)
        after = cached()
        worker = agent.worker("files")
        assert (worker["pid"], worker["breaker"]["trips"], worker["restarts"]) == (files["pid"], 0, 0), worker
        # What it brought in itself is gone again.
        brought = sum(residents(path) for path in tree.iterdir() if path != shared)
        assert brought < HASHED // mmap.PAGESIZE // 20, f"{brought} pages of what was hashed are still there"
        assert hashlib.sha256(neighbour.read_bytes()).hexdigest() == expected
    finally:
        agent.stop()
        shutil.rmtree(folder)
    return before, after


def forget(path: Path) -> None:
    """Put a file out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_three_leakers_under_the_aggregate_cap_and_the_healthy_larger_neighbour_lives(make_agent: Make) -> None:
    # Alone each of the three stays below its own cap; it is their sum that is too much.
    leakers = [
        hog(f"leaker{number}", "SlowLeak", settings={"mib_per_second": 8 + 2 * number}, memory_high=96 * MIB)
        for number in range(3)
    ]
    large = HEALTHY.replace("every_seconds = 1.0", "every_seconds = 1.0\nballast_mib = 64", 1)
    agent = make_agent(
        large + "memory_high = '160MiB'\nmemory_max = '192MiB'\n" + "".join(one.toml() for one in leakers),
        agent="budget = {cpu_quota_percent = 100, memory_max = '192MiB'}",
    )
    yard = Yard(agent)
    yard.start()
    healthy = agent.wait_worker("healthy", state="running")
    names = [one.name for one in leakers]
    for name in names:
        agent.wait_worker(name, state="running")
    yard.loose(*names)
    until(lambda: any(agent.worker(name)["breaker"]["trips"] for name in names), "one of the leakers is tripped", 60)
    time.sleep(5.0)  # for the others to go on leaking, and be tripped in their turn
    after = agent.worker("healthy")
    assert (after["pid"], after["breaker"]["trips"], after["restarts"]) == (healthy["pid"], 0, 0), after
    tripped = {name: agent.worker(name)["breaker"]["cause"] for name in names}
    assert set(tripped.values()) <= {"aggregate", "memory", "oom", None}, tripped
    yard.call_back()
    for name in names:
        until(lambda name=name: agent.worker(name)["state"] == "running", f"{name} runs again", 60)
    assert agent.worker("healthy")["pid"] == healthy["pid"]
