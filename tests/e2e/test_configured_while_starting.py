"""A configuration that comes while a worker is being started reaches it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until

pytestmark = [needs_cgroups, pytest.mark.timeout(180)]

QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
TURNS = 30
STEP_SECONDS = 0.001


def test_settings_that_come_during_a_start_are_applied(make_agent: Callable[..., RunningAgent]) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    for turn in range(TURNS):
        agent.client.call("stop", worker="quiet")
        agent.wait_worker("quiet", state="stopped")
        before = agent.worker("quiet")["config"]["hash"]
        # Each turn a little later: one of them falls between the fork and the open gate.
        put = threading.Timer(
            turn * STEP_SECONDS,
            agent.put,
            ("agent/config/web1/plugin/quiet/settings", json.dumps({"greeting": f"hello {turn}"})),
        )
        put.start()
        agent.client.call("start", worker="quiet")
        put.join()

        def taken(before: str = before) -> bool:
            worker = agent.worker("quiet")
            new = worker["config"]["hash"] != before and worker["state"] == "running"
            return new and worker["config"]["status"] == "applied"

        until(taken, f"the settings of turn {turn} are applied", 20)
