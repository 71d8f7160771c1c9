"""Faults of a real Apache Kafka under load: nothing is missing, nothing comes twice, the order stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.etcd.cluster import until
from tests.kafka._offering import Load, Offering, assert_exact, batch, make_sink
from tests.kafka.brokers import ApacheKafka
from tests.kafka.conftest import needs_apache

pytestmark = [needs_apache, pytest.mark.timeout(240)]

Start = Callable[..., Offering]


@pytest.fixture
def offer() -> Iterator[Start]:
    made: list[Offering] = []

    def start(bootstrap: list[str], **more: object) -> Offering:
        made.append(Offering(make_sink(bootstrap, **{"timeout_seconds": 3.0, **more})))
        return made[-1]

    yield start
    for offering in made:
        offering.end()


def finish(load: Load, offering: Offering, seconds: float = 60) -> dict[str, int]:
    load.end()
    until(lambda: not offering.pending, "everything is delivered", seconds)
    assert offering.delivered == load.emitted
    return load.emitted


@pytest.mark.parametrize("per_message", [1, 100])
def test_killed_with_9_and_restarted_three_times_under_load(
    make_apache: Callable[..., ApacheKafka], offer: Start, per_message: int
) -> None:
    kafka = make_apache()
    kafka.create_topic("hids")
    offering = offer(kafka.bootstrap, topic="hids", records_per_message=per_message)
    load = Load(offering)
    for _ in range(3):
        seen = sum(offering.delivered.values())
        until(lambda seen=seen: sum(offering.delivered.values()) > seen + 500, "events are delivered", 60)
        kafka.nodes[0].kill()
        known = offering.failures
        until(lambda known=known: offering.failures > known, "the outage is reported", 60)
        kafka.nodes[0].start()
        kafka.wait()
    emitted = finish(load, offering)
    assert_exact(kafka.read("hids"), emitted)


def test_a_broker_that_hangs_is_reported_in_time_and_nothing_comes_twice(
    make_apache: Callable[..., ApacheKafka], offer: Start
) -> None:
    kafka = make_apache()
    kafka.create_topic("hids")
    offering = offer(kafka.bootstrap, topic="hids")
    load = Load(offering)
    until(lambda: offering.delivered["process"] > 200, "events are delivered", 60)
    kafka.nodes[0].stop()
    try:
        until(lambda: offering.errors, "the hang is reported", 60)
        assert "has not acknowledged" in offering.errors[0]
        # Longer than the producer waits for an answer, so that it repeats a request on a new connection.
        time.sleep(20)
    finally:
        kafka.nodes[0].cont()
    assert_exact((finish(load, offering), kafka.read("hids"))[1], load.emitted)
    assert offering.longest_write < 40


def test_the_leader_changes_while_events_are_sent(make_apache: Callable[..., ApacheKafka], offer: Start) -> None:
    kafka = make_apache(nodes=3)
    kafka.create_topic("hids", replicas=3, **{"min.insync.replicas": "2"})
    offering = offer(kafka.bootstrap, topic="hids")
    load = Load(offering)
    for _ in range(2):
        seen = sum(offering.delivered.values())
        until(lambda seen=seen: sum(offering.delivered.values()) > seen + 300, "events are delivered", 60)
        leader = kafka.leaders("hids")[0]
        kafka.nodes[leader - 1].kill()
        until(lambda old=leader: (kafka.leaders("hids") or [old])[0] != old, "another leads", 90)
        seen = sum(offering.delivered.values())
        until(lambda seen=seen: sum(offering.delivered.values()) > seen + 300, "events are delivered again", 90)
        kafka.nodes[leader - 1].start()
    assert_exact((finish(load, offering, 90), kafka.read("hids"))[1], load.emitted)


def test_a_missing_topic_is_named_and_found_when_it_is_there(
    make_apache: Callable[..., ApacheKafka], offer: Start
) -> None:
    kafka = make_apache()
    offering = offer(kafka.bootstrap, topic="later")
    offering.put(batch(1, 10))
    until(lambda: offering.errors, "the missing topic is reported", 60)
    assert "knows no topic later; create it" in offering.errors[-1]
    kafka.create_topic("later")
    until(lambda: not offering.pending, "everything is delivered", 60)
    assert_exact(kafka.read("later"), {"process": 10})


def test_an_outage_costs_little_cpu(make_apache: Callable[..., ApacheKafka], offer: Start) -> None:
    kafka = make_apache()
    kafka.create_topic("hids")
    offering = offer(kafka.bootstrap, topic="hids")
    offering.put(batch(1, 10))
    until(lambda: not offering.pending, "events are delivered", 60)
    kafka.nodes[0].kill()
    offering.put(batch(11, 10))
    until(lambda: offering.errors, "the outage is reported", 60)
    begin, spent = time.monotonic(), _cpu()
    time.sleep(10)
    share = (_cpu() - spent) / (time.monotonic() - begin)
    assert share < 0.25, f"{100 * share:.1f} % of a core"


def _cpu() -> float:
    """CPU time of this process, in which little but the sink is busy; it has one producer at a time."""
    assert sum(thread.name.startswith("garrison") for thread in threading.enumerate()) <= 1
    return time.process_time()
