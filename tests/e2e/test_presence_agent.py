"""What others see of a real agent in etcd while it is stopped, killed, restarted and held."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.e2e._agent import needs_cgroups, until
from tests.e2e._etcd_agent import QUORUM_SECONDS, REGISTRATION, STATUS, STOP_KEY, Make, acted, in_time, started
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

TTL = 10


def test_seen_by_others_when_stopped_restarted_held_and_killed(etcd: Cluster, make_agent: Make) -> None:
    agent = started(make_agent, etcd, ttl=TTL)
    until(lambda: etcd.get(STATUS), "the status", 60)

    # A crash and a restart within the lease: the key was never gone.
    first = etcd.etcdctl("get", "-w", "fields", "--", REGISTRATION)
    agent.kill()
    agent.start()
    agent.wait_event(event__action="registered", garrison__how="take over")
    again = etcd.etcdctl("get", "-w", "fields", "--", REGISTRATION)
    created = [line for text in (first, again) for line in text.splitlines() if line.startswith('"CreateRevision"')]
    assert created[0] == created[1]

    # Held for longer than the lease: gone, noticed, registered anew.
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        etcd.put(STOP_KEY, "stop")
        until(lambda: etcd.get(REGISTRATION) is None, "gone with the lease", 60)
    finally:
        since = time.monotonic()
        os.kill(agent.pid, signal.SIGCONT)
    acted(agent, since, QUORUM_SECONDS, state="stopped")
    agent.wait_event(event__action="registration-lost")
    until(lambda: etcd.get(REGISTRATION), "registered again", 90)

    # Killed: gone with the lease.
    killed = time.monotonic()
    agent.kill()
    until(lambda: etcd.get(REGISTRATION) is None, "gone with the lease", 60)
    in_time("from kill -9 to gone", killed, TTL + 2)
    assert etcd.get(STATUS) is None

    # Stopped in good order: gone at once.
    agent.start()
    until(lambda: etcd.get(REGISTRATION), "registered", 60)
    stopped = time.monotonic()
    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    until(lambda: etcd.get(REGISTRATION) is None, "gone", 60)
    in_time("from SIGTERM to gone", stopped, 1)
    assert agent.process.wait(30) == 0
