"""What a real agent does with what it last knew, while etcd is away; and with a cache that cannot be trusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until
from tests.e2e._etcd_agent import Make, store_toml
from tests.etcd.cluster import Cluster

pytestmark = [needs_cgroups, pytest.mark.timeout(300)]

WORKERS = "".join(
    f'[workers.{name}]\nmodules = ["{module("quiet", "Quiet")}"]\n' for name in ("inline", "by_id", "held")
)
SERVER, PLUGIN, BODY = "/hids/server/config/web1", "/hids/agent/config/web1/plugin", "/hids/config/body"
AWAY = 75


def problems(agent: RunningAgent) -> list[str]:
    return agent.client.call("status")["agent"]["problems"]


def cached(agent: RunningAgent) -> Path:
    return agent.folder / "state" / "cache.json"


def configured(agent: RunningAgent, worker: str, revision: int) -> dict[str, Any]:
    """Wait until a worker has taken the configuration of a revision; return what the status says of it."""

    def look() -> dict[str, Any] | None:
        config = agent.worker(worker)["config"]
        return config if config["revision"] >= revision and config["status"] == "applied" else None

    return until(look, f"{worker} has taken revision {revision}", 60)


def saved(agent: RunningAgent, revision: int) -> None:
    """Wait until the cache on disk is at least of a revision."""

    def look() -> bool:
        try:
            return json.loads(cached(agent).read_bytes())["document"]["snapshot"]["revision"] >= revision
        except (FileNotFoundError, TypeError):
            return False

    until(look, f"revision {revision} is cached", 60)


def test_a_start_with_etcd_away_goes_on_with_what_was_known(
    make_etcd: Callable[..., Cluster], make_agent: Make
) -> None:
    cluster = make_etcd()
    body = json.dumps({"greeting": "from a body", "every_seconds": 1.5})
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    cluster.put(f"{BODY}/{sha256}", body)
    cluster.put(f"{PLUGIN}/by_id/settings", f"id:{sha256}")
    cluster.put(f"{PLUGIN}/inline/settings", '{"greeting": "from the key"}')
    cluster.put(f"{SERVER}/worker/held", "stop")
    agent = make_agent(WORKERS, agent="release_spread_seconds = 0\n", more=store_toml(cluster))
    agent.start()
    revision = cluster.revision()
    before = {name: configured(agent, name, 3) for name in ("inline", "by_id")}
    agent.wait_worker("held", state="stopped", desired_by=f"{SERVER}/worker/held")
    saved(agent, 4)

    cluster.kill()
    agent.kill()  # no chance to tidy up
    agent.start()
    for name in ("inline", "by_id"):
        worker = agent.wait_worker(name, state="running")
        assert configured(agent, name, 3)["hash"] == before[name]["hash"]
        assert worker["desired_by"] == "default"
    assert agent.worker("held")["state"] == "stopped"
    assert agent.worker("held")["desired_by"] == f"{SERVER}/worker/held"
    until(lambda: any(event["message"] == "from a body" for event in agent.events() if "message" in event), "the body")
    store = agent.client.call("status")["agent"]["store"]
    assert not store["connected"]
    assert store["revision"] >= 4
    assert not [text for text in problems(agent) if "body" in text]

    # Back again, but the body is gone from there: nobody needs it any more.
    cluster.start()
    cluster.delete(f"{BODY}/{sha256}")
    cluster.put(f"{SERVER}/worker/held", "start")
    agent.wait_worker("held", state="running")
    assert not [text for text in problems(agent) if "body" in text]
    assert agent.worker("by_id")["config"]["hash"] == before["by_id"]["hash"]
    assert cluster.revision() > revision


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda data: data[: len(data) // 2], "no whole document"),
        (lambda data: data.replace(b'"sha256":"', b'"sha256":"0', 1)[:-1], "checksum"),
        (lambda data: data.replace(b'"revision":', b'"revision":1', 1), "checksum"),
        (lambda _data: b"\xff" * 4096, "no whole document"),
        (lambda _data: b"", "no whole document"),
    ],
    ids=["torn", "other checksum", "changed by hand", "garbage", "empty"],
)
def test_a_cache_that_cannot_be_trusted_is_refused_and_reported(
    etcd: Cluster, make_agent: Make, spoil: Callable[[bytes], bytes], word: str
) -> None:
    etcd.delete("/hids/", prefix=True)
    etcd.put(f"{SERVER}/worker/held", "stop")
    away = store_toml(etcd, endpoints=["127.0.0.1:9"])  # nothing listens there
    agent = make_agent(WORKERS, more=store_toml(etcd))
    agent.start()
    agent.wait_worker("held", state="stopped")
    saved(agent, 2)
    assert agent.stop() == 0
    cached(agent).write_bytes(spoil(cached(agent).read_bytes()))

    # With etcd away there is nothing left to go by: it says so, and runs nothing on a guess.
    agent.write_config(WORKERS, more=away)
    agent.start(wait=False)
    assert agent.process is not None
    assert agent.process.wait(60) == 69
    assert "nothing is cached" in agent.errors()
    assert f"{cached(agent)}: " in agent.errors()
    assert word in agent.errors()
    assert not agent.pids()

    # With etcd it is done without, and shown.
    agent.write_config(WORKERS, more=store_toml(etcd))
    agent.start()
    agent.wait_worker("held", state="stopped", desired_by=f"{SERVER}/worker/held")
    agent.wait_worker("inline", state="running")
