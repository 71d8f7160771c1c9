"""External workers: any program that speaks frames on fds 3 and 4, under the same caps and keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack

from tests.e2e._agent import RunningAgent, alive, needs_cgroups, until

pytestmark = needs_cgroups

EXTERNAL = f"""
[workers.outside]
command = ["{sys.executable}", "@/modules/external_worker.py"]
[workers.outside.environment]
EXTRA_PATH = "{Path(msgpack.__file__).parents[1]}"
[workers.outside.settings]
topic = "weather"
"""

Make = Callable[..., RunningAgent]


def test_a_program_that_speaks_frames_is_a_worker_like_any_other(make_agent: Make) -> None:
    agent = make_agent(EXTERNAL)
    agent.start()
    worker = agent.wait_worker("outside", state="running")
    cgroups = Path(f"/proc/{worker['pid']}/cgroup").read_text().splitlines()
    assert any(line.endswith("/workers/outside") for line in cgroups)
    environment = dict(
        pair.split("=", 1) for pair in Path(f"/proc/{worker['pid']}/environ").read_text().strip("\0").split("\0")
    )
    assert set(environment) <= {
        *("PATH", "LANG", "GARRISON_WORKER", "GARRISON_HOST", "GARRISON_STATE_DIR", "EXTRA_PATH", "LC_CTYPE"),
    }
    event = agent.wait_event(event__action="external")
    assert event["host"] == {"name": "web1"}
    assert (event["agent"]["worker"], event["agent"]["priority"]) == ("outside", "event")
    until(lambda: "printed: hello from outside" in agent.errors(), "what it prints is logged")
    until(lambda: "about weather" in agent.errors(), "its log line is there")
    key = "agent/config/web1/plugin/outside/settings"
    agent.put(key, json.dumps({"topic": "bad"}))
    until(lambda: agent.worker("outside")["config"]["status"] == "rejected", "it refuses the topic")
    assert agent.worker("outside")["config"]["error"] == "topic: bad is refused"
    agent.put(key, json.dumps({"topic": "good"}))
    until(lambda: agent.worker("outside")["config"]["status"] == "applied", "it takes the other topic")
    assert agent.garrison("stop", "outside").returncode == 0
    assert not alive(worker["pid"])
    stopped = agent.wait_event(event__action="worker-stopped")
    assert stopped["garrison"]["exit"] == "exit status 0"
    events = agent.worker("outside")["events"]
    assert events == {"emitted": 1, "delivered": 1, "dropped": {}, "in_flight": 0}


def test_a_program_that_is_not_there_says_so(make_agent: Make) -> None:
    agent = make_agent('[workers.outside]\ncommand = ["/no/such/program"]\n')
    agent.start()
    worker = until(lambda: (w := agent.worker("outside"))["last_error"] and w, "the reason is shown")
    assert "/no/such/program" in worker["last_error"]
    assert "No such file" in worker["last_error"]
