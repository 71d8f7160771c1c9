"""Every example of docs/etcd.md that changes or reads keys, run by a shell against a real etcd."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.supervisor import keys
from garrison.supervisor.desired import Context, Memory, WorkerBase, resolve
from garrison.supervisor.keys import parse_key
from garrison.supervisor.settings import AggregateBudget, Budget, aggregate_from, budget_from
from garrison.supervisor.stores.base import Entry, Snapshot
from garrison.supervisor.stores.values import body_reference, killswitch_of
from tests.etcd.cluster import Cluster

PAGE = Path(__file__).parents[2] / "docs" / "etcd.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```\n((?:<!-- then: .*? -->\n)*)", re.MULTILINE | re.DOTALL)
THEN = re.compile(r"<!-- then: (.*?) -->")
HOST, GROUPS = "web-17", ("web", "eu")


def wanted(held: dict[str, str], worker: str) -> str:
    """Return what an agent makes of the keys, for one worker; none where no key decides. No key is refused."""
    bodies = {key.rpartition("/")[2]: value.encode() for key, value in held.items() if "/config/body/" in key}
    entries = {key: Entry(value.encode(), 1) for key, value in held.items() if "/config/body/" not in key}
    context = Context(
        host=HOST,
        groups=GROUPS,
        workers={name: WorkerBase(budget=Budget()) for name in {worker, "files"}},
        check_budget=budget_from,
        check_aggregate=aggregate_from,
        aggregate=AggregateBudget(),
        bodies=bodies,
    )
    desired, _ = resolve(Snapshot(entries, 1, "1"), context, Memory())
    assert desired.complete
    assert not desired.problems
    assert not desired.missing_bodies
    found = desired.workers[worker]
    return found.action if found.decided_by.startswith("/hids/") else "none"


def killed(held: dict[str, str]) -> bool:
    """Tell whether a key engages the killswitch of the host."""
    names = keys.killswitch_keys("/hids", HOST, GROUPS)
    return any(killswitch_of(held[name].encode()).engaged for name in names if name in held)


@pytest.fixture(scope="module", params=[False, True], ids=["wheel", "debian"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for the whole page, of each release."""
    from tests.etcd.fixtures import _made

    with _made(tmp_path_factory.mktemp("page"), debian=request.param) as cluster:
        yield cluster


def test_every_example_works_and_does_what_the_page_says(page: Cluster, tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) > 10
    written: set[str] = set()
    for script, after in blocks:
        path = f"{page.binaries.etcdctl.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env={**os.environ, **page.environment(), "PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        held = page.get_prefix("/hids/")
        written |= set(held)
        wanted(held, "process")  # whatever else the page says of it, no value is refused
        for then in THEN.findall(after):
            match then.split():
                case [_, "killswitch", state]:
                    assert killed(held) == (state == "on"), script
                case ["body", "of", key]:
                    sha = body_reference(held[key].encode())
                    assert sha is not None
                    assert hashlib.sha256(held[f"/hids/config/body/{sha}"].encode()).hexdigest() == sha
                    assert sha in done.stdout
                case [_, worker, action]:
                    assert wanted(held, worker) == action, script
    kinds = {type(parse_key(key)) for key in written}
    assert kinds == {
        keys.KillswitchKey,
        keys.WorkerKey,
        keys.WorkerLogLevelKey,
        keys.WorkerResetKey,
        keys.MasterKey,
        keys.TaskKey,
        keys.PluginKey,
        keys.BodyKey,
        keys.KafkaKey,
    }
    names = {key.rpartition("/")[2] for key in written if "/plugin/" in key}
    assert names == set(keys.PLUGIN_NAMES)
    assert {f"/hids/kafka/{name}" for name in keys.KAFKA_NAMES} <= written
    for key in (keys.RegistrationKey(HOST), keys.StatusKey(HOST)):
        assert f"etcdctl get {keys.format_key(key)}\n" in PAGE.read_text()


def test_roles_on_the_page_are_those_of_the_code() -> None:
    from garrison.fleet.etcd.access import wanted as access

    text = PAGE.read_text()
    for role, permissions in access("/hids").roles.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{role}` | ") and "/hids/" in line)
        for permission in permissions:
            assert f"`{permission.key}`" in row


def test_states_on_the_page_are_those_of_the_command() -> None:
    from garrison.fleet.etcd.hosts import MARKS

    text = PAGE.read_text()
    for mark in MARKS:
        assert mark == "online" or f"| `{mark}` |" in text
