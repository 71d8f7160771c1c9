"""What the counters say on the real kernel: whose cap killed, who was held back, how many files are open."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.hostwatch.host import Counters, Own, compare, look
from garrison.supervisor.hostwatch.trigger import MemoryTrigger
from garrison.supervisor.sampler import Facts, Sampler, open_files
from tests.integration._cgroup_support import AGGREGATE, CAPPING, MIB, SPIN, Agent, agent, eventually

FILL = """
import mmap, time
blocks = []
def fill(mib):
    for _ in range(mib):
        block = mmap.mmap(-1, 1 << 20)
        block.write(b'x' * (1 << 20))
        blocks.append(block)
"""


@pytest.fixture(params=CAPPING)
def made(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with agent(request.param) as it:
        yield it


def limits(memory: int) -> Limits:
    return Limits(cpu_quota_percent=80, memory_high=memory * MIB, memory_max=memory * MIB, pids_max=32)


def test_a_worker_that_dies_at_its_own_cap_is_the_culprit(made: Agent) -> None:
    cgroups = made.prepare(AGGREGATE)
    cgroups.create("leaker", limits(32))
    made.run("leaker", FILL + "fill(64)").wait()
    usage = cgroups.usage("leaker")
    assert usage.oom_kills >= 1
    assert usage.oom_origin == "own"


def test_a_worker_that_dies_at_the_cap_of_all_is_a_victim(made: Agent) -> None:
    cgroups = made.prepare(Limits(cpu_quota_percent=80, memory_max=64 * MIB, pids_max=200))
    for name in ("one", "two"):
        cgroups.create(name, limits(60))
    first = made.run("one", FILL + "fill(40)\nprint('full', flush=True)\nsys.stdin.readline()")
    assert first.line() == "full"
    second = made.run("two", FILL + "fill(40)\nprint('full', flush=True)\nsys.stdin.readline()")
    eventually(lambda: first.process.poll() is not None or second.process.poll() is not None, "the kernel kills one")
    victims = [name for name in ("one", "two") if cgroups.usage(name).oom_kills]
    assert victims
    for name in victims:
        assert cgroups.usage(name).oom_origin == "ancestor"
    assert cgroups.usage(None).oom_kills >= 1


def test_what_happened_to_all_before_does_not_excuse_a_worker_that_dies_at_its_own_cap_later(made: Agent) -> None:
    cgroups = made.prepare(Limits(cpu_quota_percent=80, memory_max=64 * MIB, pids_max=200))
    cgroups.create("one", limits(64))
    cgroups.create("two", limits(64))
    children = [made.run(name, FILL + "fill(60)\nsys.stdin.readline()") for name in ("one", "two")]
    eventually(lambda: cgroups.usage(None).oom_kills, "the kernel kills one at the cap of both")
    for child in children:
        child.process.kill()
        child.wait()
    for name in ("one", "two"):
        eventually(lambda name=name: cgroups.remove(name), f"{name} is removed")
    cgroups.create("one", limits(16))
    made.run("one", FILL + "fill(40)").wait()
    assert cgroups.usage("one").oom_origin == "own"


def test_a_series_counts_from_the_start_of_the_process(made: Agent) -> None:
    cgroups = made.prepare(AGGREGATE)
    cgroups.create("busy", limits(64))
    sampler = Sampler(cgroups)
    begin = time.monotonic()
    sampler.begin("busy", 1, begin)
    child = made.run("busy", "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass")
    child.wait()
    now = time.monotonic()
    sample = sampler.sample("busy", 1, now, 0.0, Facts(pid=os.getpid(), beats=2, emitted=5))
    assert sample.seconds == pytest.approx(now - begin)
    assert sample.cpu_percent * sample.seconds / 100 >= 0.3
    assert (sample.beats, sample.descriptors) == (2, open_files(os.getpid()))
    # Who looks does not cut the next interval short.
    assert sampler.peek("busy", 1, now + 5).at == now + 5
    assert sampler.sample("busy", 1, now + 6, 0.0).seconds == pytest.approx(6)


def test_a_worker_at_its_quota_shows_as_throttled(made: Agent) -> None:
    cgroups = made.prepare(AGGREGATE)
    cgroups.create("hog", Limits(cpu_quota_percent=5, memory_max=64 * MIB, pids_max=8))
    sampler = Sampler(cgroups)
    sampler.begin("hog", 1, time.monotonic())
    made.run("hog", SPIN).line()
    eventually(lambda: cgroups.usage("hog").throttled_periods >= 5, "it is throttled")
    sample = sampler.sample("hog", 1, time.monotonic(), 0.0)
    assert sample.throttled_share > 0.3
    assert 0 < sample.throttled_seconds <= sample.seconds


def test_a_notice_comes_when_all_workers_pass_the_level(made: Agent) -> None:
    cgroups = made.prepare(AGGREGATE)
    cgroups.create("eater", limits(64))
    watch = cgroups.memory_watch(20 * MIB)
    assert watch is not None
    try:
        ready = select.poll()
        ready.register(watch.fileno(), select.POLLIN)
        eater = made.run("eater", FILL + "fill(32)\nprint('full', flush=True)\nsys.stdin.readline()")
        assert ready.poll(30_000)
        watch.drain()
        assert eater.line() == "full"
    finally:
        watch.close()


def test_what_the_master_uses_is_counted_apart_from_the_workers(made: Agent) -> None:
    cgroups = made.prepare(AGGREGATE)
    cgroups.create("one", limits(64))
    made.run("one", SPIN).line()
    eventually(lambda: cgroups.usage("one").cpu_seconds > 0.2, "it has used CPU time")
    # The test's stand-in for the master sleeps.
    assert cgroups.usage_of_master().cpu_seconds < 0.2
    assert cgroups.usage(None).cpu_seconds > 0.2


def test_open_files_of_nobody_are_not_known() -> None:
    assert open_files(0) is None
    assert open_files(2**22 + 1) is None
    assert open_files(os.getpid()) == len(os.listdir("/proc/self/fd")) - 1


def test_the_host_without_ourselves_is_what_is_left() -> None:
    before = look(time.monotonic(), Own())
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    after = look(time.monotonic(), Own())
    seconds = after.at - before.at
    busy = compare(before, after).cpu_percent
    assert busy is not None
    assert busy * after.cpus * seconds / 100 >= 0.4
    less = compare(before, replace(after, own=Own(cpu_seconds=0.5))).cpu_percent
    assert less is not None
    assert less <= busy
    assert after.available is not None
    assert after.total is not None
    assert after.available < after.total


def test_a_host_without_pressure_files_falls_back_to_load_and_iowait(tmp_path: Path) -> None:
    def counters(iowait: int, load: float, at: float) -> Counters:
        (tmp_path / "stat").write_text(f"cpu  100 0 100 1000 {iowait} 0 0 0 0 0\ncpu0 1 1\ncpu1 1 1\n")
        (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nCached: 200 kB\nShmem: 0 kB\n")
        (tmp_path / "loadavg").write_text(f"{load} 0 0 1/1 1\n")
        return look(at, Own(processes=2), str(tmp_path))

    quiet, waiting = counters(0, 0.5, 0.0), counters(150, 9.0, 1.0)
    assert compare(quiet, waiting).io_percent == pytest.approx(75.0)
    assert waiting.available == 200 * 1024
    # Two CPUs and two tasks of ours could make that load.
    assert compare(quiet, counters(150, 3.9, 1.0)).io_percent == 0.0


def test_a_host_that_says_nothing_is_a_host_that_is_not_known(tmp_path: Path) -> None:
    reading = compare(look(0.0, Own(), str(tmp_path)), look(1.0, Own(), str(tmp_path)))
    assert (reading.cpu_percent, reading.io_percent, reading.memory_percent, reading.available) == (None,) * 4


def test_waiting_is_not_judged_while_a_worker_is_held_back() -> None:
    before, after = look(0.0, Own()), look(1.0, Own(held_back=True))
    reading = compare(before, after)
    assert (reading.io_percent, reading.memory_percent) == (None, None)


def test_the_kernel_takes_the_memory_trigger() -> None:
    if not os.path.exists("/proc/pressure/memory") or os.geteuid() != 0:
        pytest.skip("no pressure files, or not root")
    trigger = MemoryTrigger()
    assert trigger.drain()
    trigger.close()
    trigger.close()
