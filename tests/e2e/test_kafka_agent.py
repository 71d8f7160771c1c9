"""The whole agent and a real broker: chosen by keys, changed and dropped at run time, nothing lost, books balanced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.etcd.cluster import free_port
from tests.kafka.brokers import Tansu
from tests.kafka.fetch import MissingError

Make = Callable[..., RunningAgent]
pytestmark = [needs_cgroups, pytest.mark.timeout(240)]

TALKER = """
[workers.talker]
modules = ["@/modules/talker.py:Talker"]
[workers.talker.settings]
every_seconds = 0.05
events = 5
alerts = 0
"""
KAFKA = (
    '[sink]\nbackend = "kafka"\n[sink.kafka]\nbootstrap_servers = ["{server}"]\ntopic = "hids"\ntimeout_seconds = 2\n'
)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tansu]:
    try:
        tansu = Tansu(tmp_path_factory.mktemp("tansu"))
    except MissingError as error:
        pytest.skip(str(error))
    with tansu:
        yield tansu


def books(agent: RunningAgent) -> dict[str, Any]:
    found: dict[str, Any] = agent.worker("talker")["events"]
    return found


def numbers(broker: Tansu, topic: str) -> list[int]:
    return [
        json.loads(record.value)["event"]["sequence"]
        for record in broker.read(topic)
        if dict(record.headers)["worker"] == b"talker"
    ]


def in_files(agent: RunningAgent) -> list[int]:
    lines = b"".join(path.read_bytes() for path in sorted((agent.folder / "log").glob("events.*"))).splitlines()
    documents = [json.loads(line) for line in lines]
    return [each["event"]["sequence"] for each in documents if each["event"]["module"] == "talker"]


def settled(agent: RunningAgent) -> dict[str, Any]:
    """Stop the worker and wait until nothing of it is in flight; return its books."""
    agent.client.call("stop", worker="talker")

    def balanced() -> dict[str, Any] | None:
        now = books(agent)
        stopped = agent.worker("talker")["state"] == "stopped"
        done = now["emitted"] == now["delivered"] + sum(now["dropped"].values())
        return now if stopped and done else None

    found: dict[str, Any] = until(balanced, "the books balance", 60)
    return found


def test_keys_select_kafka_change_it_and_give_it_up_without_loss(make_agent: Make, broker: Tansu) -> None:
    for topic in ("one", "two"):
        broker.create_topic(topic)
    agent = make_agent(TALKER)
    agent.start()
    until(lambda: books(agent)["delivered"] > 50, "events go to the file")
    agent.put("kafka/topic", "one")
    agent.put("kafka/host", broker.bootstrap[0])
    until(lambda: len(numbers(broker, "one")) > 50, "events go to Kafka")
    agent.put("kafka/topic", "two")
    until(lambda: len(numbers(broker, "two")) > 50, "events go to the other topic")
    before = len(in_files(agent))
    agent.delete("kafka/host")
    agent.delete("kafka/topic")
    until(lambda: len(in_files(agent)) > before, "events go to the file again")
    found = settled(agent)
    everything = in_files(agent) + numbers(broker, "one") + numbers(broker, "two")
    assert len(everything) == found["delivered"]
    assert sorted(everything) == list(range(1, found["emitted"] + 1))
    assert not found["dropped"]
    assert not [problem for problem in agent.client.call("status")["agent"]["problems"] if "afka" in problem]


def test_a_dead_address_is_shown_and_nothing_is_lost_when_it_is_put_right(make_agent: Make, broker: Tansu) -> None:
    broker.create_topic("hids")
    agent = make_agent(TALKER, more=KAFKA.format(server=f"127.0.0.1:{free_port()}"))
    agent.start()

    def shown() -> bool:
        return any("Kafka at 127.0.0.1" in problem for problem in agent.client.call("status")["agent"]["problems"])

    until(shown, "the error is shown", 60)
    assert books(agent)["delivered"] == 0
    agent.put("kafka/host", broker.bootstrap[0])
    until(lambda: books(agent)["delivered"] > 100, "events are delivered", 60)
    until(lambda: not shown(), "the error is gone")
    found = settled(agent)
    assert numbers(broker, "hids") == list(range(1, found["emitted"] + 1))
    assert not found["dropped"]


def test_kafka_is_loaded_by_the_master_alone_and_only_when_it_is_the_sink(make_agent: Make, broker: Tansu) -> None:
    agent = make_agent(TALKER)
    agent.start()
    until(lambda: books(agent)["delivered"] > 10, "events go to the file")
    assert agent.process is not None
    master = agent.process.pid
    before = len(threads_of(master))
    agent.put("kafka/host", broker.bootstrap[0])
    until(lambda: len(threads_of(master)) == before + 1, "the producer's thread is there")
    worker = agent.worker("talker")["pid"]
    nursery = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert len(threads_of(nursery)) == 1


def threads_of(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/task")
