"""The two examples of docs/writing-a-worker.md, as they stand there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tests.e2e._agent import RunningAgent, needs_cgroups, until

pytestmark = needs_cgroups

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-worker.md"
MODULE, PROGRAM = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
Make = Callable[..., RunningAgent]


def test_the_external_example_is_short_and_needs_nothing() -> None:
    assert len(PROGRAM.splitlines()) < 60
    assert "garrison" not in PROGRAM
    assert re.findall(r"^import (.*)$", PROGRAM, re.MULTILINE) == ["json, os, select, struct, sys, time"]


def test_the_module_example_runs_reports_and_refuses_a_bad_setting(make_agent: Make) -> None:
    agent = make_agent(
        '[workers.uptime]\nmodules = ["@/modules/uptime.py:Uptime"]\n[workers.uptime.settings]\nevery_seconds = 30\n'
    )
    path = agent.folder / "modules" / "uptime.py"
    path.write_text(MODULE)
    path.chmod(0o644)
    agent.start()
    event = agent.wait_event(event__action="uptime")
    assert event["garrison"]["uptime"] > 0
    assert event["agent"]["priority"] == "metric"
    agent.put("agent/config/web1/plugin/uptime/settings", json.dumps({"label": "not an identifier"}))
    until(lambda: agent.worker("uptime")["config"]["status"] == "rejected", "the label is refused")
    assert "label" in agent.worker("uptime")["config"]["error"]


def test_the_external_example_reports_a_new_account(make_agent: Make) -> None:
    agent = make_agent(
        f"""[workers.accounts]
command = ["{sys.executable}", "-S", "-E", "@/modules/accounts.py"]
[workers.accounts.settings]
path = "@/passwd"
seconds = 0.2
note = "{"x" * 70_000}"
"""
    )
    (agent.folder / "modules" / "accounts.py").write_text(PROGRAM)
    accounts = agent.folder / "passwd"
    accounts.write_text("root:x:0:0::/root:/bin/sh\n")
    agent.start()
    agent.wait_worker("accounts", state="running")
    until(lambda: agent.worker("accounts")["config"]["status"] == "applied", "it has its configuration, of over 64 KiB")
    accounts.write_text(accounts.read_text() + "eve:x:0:0::/:/bin/sh\nmallory:x:0:0::/:/bin/sh\n")
    assert agent.wait_event(event__action="account-added", user__name="eve")
    assert agent.wait_event(event__action="account-added", user__name="mallory")["agent"]["worker"] == "accounts"
    assert agent.garrison("stop", "accounts").returncode == 0
    stopped = agent.wait_event(event__action="worker-stopped")
    assert stopped["garrison"]["exit"] == "exit status 0"
