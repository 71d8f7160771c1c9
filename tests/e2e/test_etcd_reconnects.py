"""The real master after many sessions: as many threads and descriptors as after few, and no memory lost.

``GARRISON_FULL=1``: a thousand sessions. They follow one another without the usual pause, which is all that is
different from `garrisond`: with it they would take four hours.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._etcd_agent import AT_ONCE, LONG, QUIET, STOP_KEY, Make, acted, report, store_of, store_toml
from tests.etcd.cluster import Cluster, free_port
from tests.etcd.wires import Wires

pytestmark = [needs_cgroups, pytest.mark.timeout(3600 if LONG else 300)]

SESSIONS = 1000 if LONG else 60
EARLY = 10
GROWTH_BYTES = 16 * 2**20

_HASTY = (
    "import sys\n"
    "from garrison.supervisor.stores.etcd import lifecycle\n"
    "lifecycle.BASE_SECONDS = lifecycle.CAP_SECONDS = 0.01\n"
    "from garrison.supervisor.main import main\n"
    "sys.exit(main())\n"
)


class Held(NamedTuple):
    """What a process holds."""

    threads: int
    fds: int


def held(agent: RunningAgent) -> Held:
    return Held(len(os.listdir(f"/proc/{agent.pid}/task")), len(os.listdir(f"/proc/{agent.pid}/fd")))


def settled(agent: RunningAgent) -> Held:
    """Return what the master holds when nothing is going on: the least of some seconds."""
    seen = []
    for _ in range(30):
        seen.append(held(agent))
        time.sleep(0.1)
    return Held(*map(min, zip(*seen, strict=True)))


def test_sessions_leave_nothing_behind_in_the_master(etcd: Cluster, make_agent: Make) -> None:
    etcd.delete("/hids/", prefix=True)
    wires, port = Wires(), free_port()
    try:
        wires.add("agent", port, etcd.members[0].port)
        agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(etcd, endpoints=[f"127.0.0.1:{port}"]))
        agent.start(command=[sys.executable, "-c", _HASTY, "--config", str(agent.config)])
        agent.wait_worker("quiet", state="running")
        pid = agent.worker("quiet")["pid"]
        early: Held | None = None
        begin = rss = 0.0
        for number in range(1, SESSIONS + 1):
            before = wires.taken
            wires.snap("agent")
            if number % 2:  # the next one breaks too, somewhere between its first byte and its watch
                until(lambda before=before: wires.taken > before, f"there is an attempt after {number}", 60)
                time.sleep(random.uniform(0, 0.015))
                before = wires.taken
                wires.snap("agent")
            until(
                lambda before=before: wires.taken > before and store_of(agent)["connected"],
                f"there is a session after {number}",
                60,
            )
            if number == EARLY:
                early, begin = settled(agent), time.monotonic()
                rss = psutil.Process(agent.pid).memory_info().rss
        report("sessions", f"{SESSIONS - EARLY} in {time.monotonic() - begin:.0f} s")
        late, grown = settled(agent), psutil.Process(agent.pid).memory_info().rss - rss
        report("held after few and after many", f"{early} {late}, {grown / 2**20:+.1f} MiB of memory")
        assert early is not None
        assert late <= early or until(lambda: settled(agent) <= early, f"no more is held than {early}", 60)
        assert grown < GROWTH_BYTES
        # Nothing was lost on the way: the same worker, and it obeys.
        assert agent.worker("quiet")["pid"] == pid
        since = time.monotonic()
        etcd.put(STOP_KEY, "stop")
        acted(agent, since, state="stopped")
    finally:
        wires.close()
    assert not Path(f"/proc/{agent.pid}/task").exists() or agent.stop() == 0
