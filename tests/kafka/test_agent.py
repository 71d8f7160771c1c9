"""The whole agent and Apache Kafka in trouble.

After it the books balance, and a consumer that reads everything finds no gap that is not counted, nothing twice, and
the order of each worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.kafka.brokers import PASSWORD, USER, ApacheKafka
from tests.kafka.conftest import needs_apache

pytestmark = [needs_apache, needs_cgroups, pytest.mark.timeout(240)]

WORKERS = "".join(
    f"""
[workers.{name}]
modules = ["@/modules/talker.py:Talker"]
[workers.{name}.settings]
every_seconds = 0.05
events = 10
alerts = 1
"""
    for name in ("one", "two")
)
SINK = """
[sink]
backend = "kafka"
[sink.kafka]
bootstrap_servers = [{servers}]
topic = "hids"
timeout_seconds = 3
sasl_mechanism = "{mechanism}"
{login}
"""


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[..., RunningAgent]]:
    made: list[RunningAgent] = []

    def make(servers: list[str], mechanism: str = "none", login: str = "") -> RunningAgent:
        quoted = ", ".join(f'"{server}"' for server in servers)
        more = SINK.format(servers=quoted, mechanism=mechanism, login=login)
        made.append(RunningAgent(tmp_path / f"agent{len(made)}", WORKERS, more=more))
        return made[-1]

    yield make
    for agent in made:
        agent.cleanup()


Make = Callable[..., RunningAgent]


def delivered(agent: RunningAgent) -> int:
    return sum(worker["events"]["delivered"] for worker in agent.client.call("status")["workers"])


def flows(agent: RunningAgent, events: int = 200) -> None:
    seen = delivered(agent)
    until(lambda: delivered(agent) > seen + events, "events are delivered", 90)


def trouble(agent: RunningAgent) -> str:
    problems = agent.client.call("status")["agent"]["problems"]
    return next((problem for problem in problems if problem.startswith("Kafka at")), "")


def check(agent: RunningAgent, kafka: ApacheKafka) -> None:
    """Stop the workers; everything that they have emitted is in Kafka, once and in order, or counted as dropped."""
    for name in ("one", "two"):
        agent.client.call("stop", worker=name)

    def balanced() -> dict[str, Any] | None:
        books = {name: agent.worker(name) for name in ("one", "two")}
        done = all(
            worker["state"] == "stopped"
            and worker["events"]["emitted"] == worker["events"]["delivered"] + sum(worker["events"]["dropped"].values())
            for worker in books.values()
        )
        return {name: worker["events"] for name, worker in books.items()} if done else None

    books = until(balanced, "the books balance", 90)
    found: dict[tuple[str, str], list[int]] = {}
    for record in kafka.read("hids"):
        headers = {name: value.decode() for name, value in record.headers}
        sequence = json.loads(record.value)["event"]["sequence"]
        assert int(headers["sequence"]) == sequence
        found.setdefault((headers["worker"], headers["priority"]), []).append(sequence)
    for name in ("one", "two"):
        lists = [found[name, priority] for priority in ("event", "alert")]
        assert sum(map(len, lists)) == books[name]["delivered"], books[name]
        for numbers in lists:
            assert len(set(numbers)) == len(numbers), "nothing comes twice"
            assert numbers == sorted(numbers), "the order stays"
        missing = sum(max(numbers) - len(numbers) for numbers in lists)
        assert missing <= sum(books[name]["dropped"].values()), books[name]


def test_killed_with_9_three_times(make_apache: Callable[..., ApacheKafka], make_agent: Make) -> None:
    kafka = make_apache()
    kafka.create_topic("hids")
    agent = make_agent(kafka.bootstrap)
    agent.start()
    for _ in range(3):
        flows(agent)
        kafka.nodes[0].kill()
        until(lambda: trouble(agent), "the outage is shown", 60)
        kafka.nodes[0].start()
        kafka.wait()
    flows(agent)
    until(lambda: not trouble(agent), "nothing is wrong any more", 60)
    check(agent, kafka)


def test_a_broker_that_hangs(make_apache: Callable[..., ApacheKafka], make_agent: Make) -> None:
    kafka = make_apache()
    kafka.create_topic("hids")
    agent = make_agent(kafka.bootstrap)
    agent.start()
    flows(agent)
    kafka.nodes[0].stop()
    try:
        until(lambda: trouble(agent), "the hang is shown", 60)
        time.sleep(20)  # longer than the producer waits for an answer
    finally:
        kafka.nodes[0].cont()
    flows(agent)
    check(agent, kafka)


def test_a_topic_that_does_not_exist_and_a_login_that_is_refused(
    make_apache: Callable[..., ApacheKafka], make_agent: Make, tmp_path: Path
) -> None:
    kafka = make_apache()
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("wrong\n")
    login = f'username = "{USER}"\npassword_file = "{password}"'
    agent = make_agent(kafka.only("SASL"), "SCRAM-SHA-256", login)
    agent.start()
    until(lambda: "login" in trouble(agent), "the refused login is shown", 60)
    password.write_text(PASSWORD + "\n")
    until(lambda: "knows no topic hids" in trouble(agent), "the missing topic is shown", 60)
    kafka.create_topic("hids")
    flows(agent)
    check(agent, kafka)


def test_warnings_are_events_but_those_of_the_outage_itself_are_not(
    make_apache: Callable[..., ApacheKafka], make_agent: Make
) -> None:
    """An outage makes lines; if these were events, each failure to send them would make more."""
    kafka = make_apache()
    kafka.create_topic("hids")
    agent = make_agent(kafka.bootstrap)
    gossip = '[workers.gossip]\nmodules = ["@/modules/gossip.py:Gossip"]\n'
    more = SINK.format(servers=f'"{kafka.bootstrap[0]}"', mechanism="none", login="")
    agent.write_config(gossip, more=f"{more}[log]\nevents = true\n")
    agent.start()

    def shouted() -> int:
        return agent.errors().count(" warning worker.gossip: shout")

    def said() -> list[dict[str, Any]]:
        found = [json.loads(record.value) for record in kafka.read("hids")]
        return [event for event in found if event["event"]["action"] == "log"]

    until(lambda: any(event["log"]["logger"] == "worker.gossip" for event in said()), "a warning is an event", 60)
    kafka.nodes[0].kill()
    until(lambda: trouble(agent), "the outage is shown", 60)
    begin, seen = datetime.now(UTC), shouted()
    until(lambda: shouted() > seen + 100, "the worker talks on", 60)
    end = datetime.now(UTC)
    assert " err agent.sink: Kafka at " in agent.errors()
    kafka.nodes[0].start()
    kafka.wait()
    until(lambda: not trouble(agent), "nothing is wrong any more", 60)
    until(
        lambda: any(event.get("garrison", {}).get("lines_left_out", 0) > 100 for event in said()),
        "a later warning says how many were left out",
        90,
    )
    events = said()
    assert {event["log"]["logger"] for event in events} <= {"worker.gossip", "worker.gossip.Gossip", "agent"}
    assert not [event for event in events if "Kafka at" in event["message"]]
    assert not [event for event in events if begin < datetime.fromisoformat(event["@timestamp"]) < end]
    numbers = [event["event"]["sequence"] for event in events]
    assert numbers == sorted(set(numbers))


def test_another_broker_leads(make_apache: Callable[..., ApacheKafka], make_agent: Make) -> None:
    kafka = make_apache(nodes=3)
    kafka.create_topic("hids", replicas=3, **{"min.insync.replicas": "2"})
    agent = make_agent(kafka.bootstrap)
    agent.start()
    for _ in range(2):
        flows(agent)
        leader = kafka.leaders("hids")[0]
        kafka.nodes[leader - 1].kill()
        until(lambda old=leader: (kafka.leaders("hids") or [old])[0] != old, "another leads", 90)  # type: ignore[misc]
        flows(agent)
        kafka.nodes[leader - 1].start()
        kafka.wait()
    check(agent, kafka)
