"""What arrives, on the small broker: keys, headers, order, kinds of messages, and going over to another sink."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from pathlib import Path

import pytest

from garrison.supervisor.settings.schema import KafkaTopics
from garrison.supervisor.sinks.base import SinkError
from garrison.supervisor.sinks.kafka.sink import KafkaSink
from garrison.supervisor.sinks.switch import SwitchSink
from garrison.supervisor.sinks.target import Target
from tests.etcd.cluster import free_port, until
from tests.kafka._offering import HOST, Load, Offering, assert_exact, batch, make_sink, sequences, settings
from tests.kafka.brokers import Tansu


@pytest.fixture
def topic(tansu: Tansu) -> str:
    name = f"hids-{secrets.token_hex(4)}"
    tansu.create_topic(name)
    return name


def test_one_event_a_message_with_the_host_as_key_and_the_masters_headers(
    tansu: Tansu, topic: str, sinks: list[KafkaSink]
) -> None:
    sinks.append(make_sink(tansu.bootstrap, topic=topic))
    assert not sinks[0].write([batch(1, 3), batch(4, 2), batch(1, 1, "files", "alert", epoch=9)])
    records = tansu.read(topic)
    assert len(records) == 6
    assert sequences(records) == {"process": [1, 2, 3, 4, 5], "files": [1]}
    assert records[5].headers == [
        ("host", b"web1"),
        ("worker", b"files"),
        ("epoch", b"9"),
        ("priority", b"alert"),
        ("sequence", b"1"),
        ("count", b"1"),
    ]
    assert not records[0].value.endswith(b"\n")


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_several_events_a_message_are_lines(tansu: Tansu, topic: str, sinks: list[KafkaSink], compression: str) -> None:
    sinks.append(make_sink(tansu.bootstrap, topic=topic, records_per_message=4, compression=compression))
    sinks[0].write([batch(1, 10), batch(11, 4)])
    records = tansu.read(topic)
    assert [record.value.count(b"\n") + 1 for record in records] == [4, 4, 2, 4]
    numbers = [(dict(record.headers)["sequence"], dict(record.headers)["count"]) for record in records]
    assert numbers == [(b"1", b"4"), (b"5", b"4"), (b"9", b"2"), (b"11", b"4")]
    assert_exact(records, {"process": 14})


def test_kinds_of_events_have_topics_of_their_own(tansu: Tansu, topic: str, sinks: list[KafkaSink]) -> None:
    alerts = f"{topic}-alerts"
    tansu.create_topic(alerts)
    sinks.append(make_sink(tansu.bootstrap, topic=topic, topics=KafkaTopics(alert=alerts)))
    sinks[0].write([batch(1, 2, priority="alert"), batch(1, 3, priority="state"), batch(1, 4)])
    assert (len(tansu.read(alerts)), len(tansu.read(topic))) == (2, 7)


def test_a_batch_that_is_offered_again_is_waited_for_and_not_sent_twice(
    tansu: Tansu, topic: str, sinks: list[KafkaSink]
) -> None:
    sinks.append(make_sink(tansu.bootstrap, topic=topic, timeout_seconds=1.0))
    sinks[0].write([batch(1, 5)])
    tansu.node.stop()
    try:
        for _ in range(3):
            with pytest.raises(SinkError, match="has not acknowledged"):
                sinks[0].write([batch(6, 5)])
    finally:
        tansu.node.cont()
    sinks[0].write([batch(6, 5), batch(11, 5)])
    assert_exact(tansu.read(topic), {"process": 15})


def test_a_dead_address_is_an_error_and_the_right_one_gets_everything(tansu: Tansu, topic: str) -> None:
    def target(server: str) -> Target:
        return Target(backend="kafka", kafka=settings([server], topic=topic))

    dead = f"127.0.0.1:{free_port()}"
    sink = SwitchSink(target(dead), HOST)
    offering = Offering(sink)
    load = Load(offering)
    try:
        until(lambda: offering.errors, "the dead address is reported")
        assert dead in offering.errors[0]
        sink.use(target(tansu.bootstrap[0]))
        until(lambda: offering.delivered["process"] > 100, "events are delivered")
        load.end()
        until(lambda: not offering.pending, "everything is delivered")
        assert_exact(tansu.read(topic), load.emitted)
    finally:
        load.end()
        offering.end()


def test_changing_the_sink_under_load_loses_nothing(tansu: Tansu, topic: str, tmp_path: Path) -> None:
    other = f"{topic}-other"
    tansu.create_topic(other)
    file = Target(backend="file", path=str(tmp_path / "events.ndjson"), max_bytes=64 * 2**20)
    targets = [file, *(Target(backend="kafka", kafka=settings(tansu.bootstrap, topic=name)) for name in (topic, other))]
    sink = SwitchSink(targets[0], HOST)
    offering = Offering(sink)
    load = Load(offering)
    try:
        for number in range(1, 10):
            seen = offering.delivered["process"]
            until(lambda seen=seen: offering.delivered["process"] > seen + 50, "events are delivered")
            sink.use(targets[number % 3])
        load.end()
        until(lambda: not offering.pending, "everything is delivered")
    finally:
        load.end()
        offering.end()
    assert not offering.errors
    kafka = [sequences(tansu.read(name))["process"] for name in (topic, other)]
    lines = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("events.*"))).decode().split("\n")
    in_file = [int(line.split('"sequence": ')[1].split("}")[0]) for line in lines if '"module": "process"' in line]
    assert sorted(in_file + kafka[0] + kafka[1]) == list(range(1, load.emitted["process"] + 1))
    for found in (in_file, *kafka):
        assert found == sorted(found)


def test_hurrying_ends_a_wait_for_a_dead_broker_soon(sinks: list[KafkaSink]) -> None:
    sinks.append(make_sink([f"127.0.0.1:{free_port()}"], timeout_seconds=300.0))
    sinks[0].hurry()
    with pytest.raises(SinkError):
        sinks[0].write([batch(1, 1)])


def test_whoever_answers_on_the_port_cannot_fill_the_memory(sinks: list[KafkaSink]) -> None:
    """The other side answers with a frame of 3 MiB and goes on for ever; how much it got rid of is what was read."""
    sent: list[int] = []

    def answer(connection: socket.socket) -> None:
        number = len(sent)
        sent.append(0)
        with connection:
            try:
                connection.recv(1024)
                connection.sendall(struct.pack(">i", 3 * 2**20))
                while True:
                    connection.sendall(bytes(65536))
                    sent[number] += 65536
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        sinks.append(make_sink([f"127.0.0.1:{server.getsockname()[1]}"], timeout_seconds=1.0))
        with pytest.raises(SinkError, match="Kafka at"):
            sinks[0].write([batch(1, 1)])
    assert sent
    assert max(sent) < 32 * 2**20, "the connection ends with the first answer that is none"
