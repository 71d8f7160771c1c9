"""One fault after the other, chosen at random, with a majority of members well: a stop always acts in time.

``GARRISON_FULL=1``: twenty faults. ``GARRISON_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable

import pytest

from tests.e2e._agent import needs_cgroups
from tests.e2e._etcd_agent import (
    LONG,
    QUORUM_SECONDS,
    STOP_KEY,
    Make,
    acted,
    member_of,
    put_when_possible,
    report,
    started,
)
from tests.etcd.cluster import Cluster, Member

pytestmark = [needs_cgroups, pytest.mark.timeout(1800 if LONG else 300)]

FAULTS = 20 if LONG else 1

_BREAK: dict[str, Callable[[Member], None]] = {
    "kill": Member.kill,
    "hang": Member.stop,
    "isolate": Member.isolate,
    "restart": Member.restart,
}
_MEND: dict[str, Callable[[Member], None]] = {
    "kill": Member.start,
    "hang": Member.cont,
    "isolate": Member.heal,
    "restart": lambda _: None,
}


def test_one_fault_after_the_other(make_etcd: Callable[..., Cluster], make_agent: Make) -> None:
    seed = os.environ.get("GARRISON_SEED") or secrets.token_hex(4)
    report("GARRISON_SEED", seed)
    chance = random.Random(seed)
    cluster = make_etcd(3)
    agent = started(make_agent, cluster)
    pid = agent.pid
    for number in range(FAULTS):
        # Most of them hit the member that the agent is connected to.
        used = member_of(cluster, agent)
        member, fault = used if chance.random() < 0.7 else chance.choice(cluster.members), chance.choice(sorted(_BREAK))
        report(f"fault {number}", f"{fault} {member.name}")
        _BREAK[fault](member)
        try:
            for action, state in (("stop", "stopped"), ("start", "running")):
                since = put_when_possible(cluster, STOP_KEY, action, without=member)
                acted(agent, since, QUORUM_SECONDS, state=state)
        finally:
            _MEND[fault](member)
        cluster.wait_healthy()
        time.sleep(chance.uniform(0, 5))  # how long a session has lived changes how soon it is tried again
    assert agent.pid == pid
    assert agent.worker("quiet")["breaker"]["trips"] == 0
