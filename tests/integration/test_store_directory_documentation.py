"""Every example of docs/keys.md, run by a shell and followed to what the agent makes of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor.desired import Context, Desired, Memory, WorkerBase, resolve
from garrison.supervisor.killswitch import KillSwitch, kill_groups
from garrison.supervisor.settings import AggregateBudget, Budget, aggregate_from, budget_from
from garrison.supervisor.stores.base import Snapshot
from garrison.supervisor.stores.directory import DirectoryStore
from garrison.supervisor.stores.killfile import KillFileWatch
from tests.integration._store_support import Recorder

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```\n((?:<!-- then: .*? -->\n)*)", re.MULTILINE | re.DOTALL)
THEN = re.compile(r"<!-- then: (.*?) -->")


def sections() -> list[tuple[str, list[tuple[str, list[dict[str, Any]]]]]]:
    found = []
    for section in PAGE.read_text().split("\n## ")[1:]:
        blocks = [
            (script, [json.loads(then) for then in THEN.findall(after)]) for script, after in BLOCK.findall(section)
        ]
        if blocks:
            found.append((section.splitlines()[0], blocks))
    return found


class Agent(Recorder):
    """As much of a master as the examples need."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.desired: Desired | None = None
        self.snapshot: Snapshot | None = None
        self.memory = Memory()
        self.have: dict[str, bytes] = {}
        self.switch = KillSwitch("web-17", on_engage=lambda: None, on_change=self.changed, release_spread=0.0)
        self.store = DirectoryStore(str(path / "store"), host="web-17", groups=("web", "eu"))
        self.file = KillFileWatch(str(path / "killswitch"), self.switch.update_file)
        self.file.start()
        self.store.start(self)

    def changed(self) -> None:
        if self.switch.pending is not None:
            self.switch.confirm_release(self.switch.pending.ticket)
        self._note("switch", self.switch.describe())

    def on_killswitch(self, observation: Any) -> None:
        self.switch.update_store(observation)
        super().on_killswitch(observation)

    def on_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.resolve()
        super().on_snapshot(snapshot)

    def on_bodies(self, bodies: Any) -> None:
        self.have |= {name: body for name, body in bodies.items() if body is not None}
        self.resolve()
        super().on_bodies(bodies)

    def resolve(self) -> None:
        if self.snapshot is None:
            return
        context = Context(
            host="web-17",
            groups=("web", "eu"),
            workers={"process": WorkerBase(budget=Budget())},
            check_budget=budget_from,
            check_aggregate=aggregate_from,
            aggregate=AggregateBudget(),
            bodies=self.have,
        )
        missing = self.desired.missing_bodies if self.desired is not None else ()
        desired, self.memory = resolve(self.snapshot, context, self.memory)
        if not desired.complete:
            self.store.set_groups(desired.groups, kill_groups(self.switch.state))
            return
        self.desired = desired
        if self.desired.missing_bodies and self.desired.missing_bodies != missing:
            self.store.fetch_bodies(self.desired.missing_bodies)

    def facts(self) -> dict[str, Any]:
        if self.desired is None:
            return {}
        worker, master = self.desired.workers["process"], self.desired.master
        said = self.switch.describe()
        return {
            "action": worker.action,
            "by": worker.decided_by,
            "log_level": worker.log_level,
            "reset": bool(worker.reset_token),
            "settings": worker.settings,
            "cpu_quota_percent": worker.budget.cpu_quota_percent,
            "rules": worker.rules,
            "groups": list(self.desired.groups),
            "heartbeat_seconds": master.heartbeat_seconds,
            "kafka": list(self.desired.kafka_servers),
            "topic": self.desired.kafka_topic,
            "engaged": said["scopes"] if said["engaged"] else [],
            "reason": said["reason"],
        }

    def agrees(self, expected: dict[str, Any]) -> bool:
        facts = self.facts()
        if not facts or self.desired is None:
            return False
        problems = [problem.reason for problem in self.desired.problems]
        wanted = dict(expected)
        problem = wanted.pop("problem", "")
        return all(facts[name] == value for name, value in wanted.items()) and (
            not problem or any(problem in reason for reason in problems)
        )


@pytest.mark.parametrize("section", sections(), ids=lambda section: section[0])
def test_the_examples_do_what_the_page_says(section: Any, tmp_path: Path) -> None:
    place = tmp_path / "etc"
    (place / "store" / "hids" / "server" / "config").mkdir(parents=True)
    agent = Agent(place)
    try:
        for script, expectations in section[1]:
            assert expectations, f"nothing is expected of:\n{script}"
            here = script.replace("/etc/garrison", str(place)).replace("/tmp/rules", f"{tmp_path}/rules")
            subprocess.run(["sh", "-eu", "-c", here], check=True, cwd=tmp_path)
            for expected in expectations:
                try:
                    agent.wait(lambda expected=expected: agent.agrees(expected))
                except AssertionError:
                    pytest.fail(f"{script}\nshould give {expected}\nand gives {agent.facts()}")
    finally:
        assert agent.store.stop(20.0)
        assert agent.file.stop(20.0)


def test_the_page_has_examples_in_most_sections() -> None:
    assert len(sections()) >= 7
