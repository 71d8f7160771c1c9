"""Where events go: file, keys and master document."""

from __future__ import annotations

from typing import Any

from garrison.supervisor.desired import Desired
from garrison.supervisor.desired.model import MasterDesired
from garrison.supervisor.settings.schema import FileSink, KafkaSink, Sink
from garrison.supervisor.sinks.target import FILE_SAYS, choose
from garrison.supervisor.stores.values import SinkChoice

HOST_KEY, TOPIC_KEY = "/hids/kafka/host", "/hids/kafka/topic"
FILE = Sink(file=FileSink(path="/var/log/events.ndjson"), kafka=KafkaSink(topic="own", tls=True))
KAFKA = Sink(backend="kafka", kafka=KafkaSink(bootstrap_servers=("f:1",), topic="own"))


def desired(servers: tuple[str, ...] = (), topic: str = "", sink: SinkChoice | None = None) -> Desired:
    by = tuple(key for key, there in ((HOST_KEY, servers), (TOPIC_KEY, topic)) if there)
    master = MasterDesired(sink=sink, decided_by="/hids/server/config/@all/master" if sink else "default")
    return Desired(True, 1, "h", (), "default", {}, master, servers, topic, by)


def test_without_keys_the_file_decides() -> None:
    for wanted in (None, desired()):
        assert choose(FILE, wanted).target.backend == "file"
        assert choose(FILE, wanted).target.path == "/var/log/events.ndjson"
        assert choose(KAFKA, wanted).target.kafka.bootstrap_servers == ("f:1",)
        assert choose(KAFKA, wanted).decided_by == FILE_SAYS


def test_the_presence_of_the_key_selects_kafka_with_the_files_security() -> None:
    choice = choose(FILE, desired(("k:1", "k:2"), "t"))
    assert choice.target.backend == "kafka"
    assert choice.target.kafka.bootstrap_servers == ("k:1", "k:2")
    assert choice.target.kafka.topic == "t"
    assert choice.target.kafka.tls
    assert choice.decided_by == f"{HOST_KEY}, {TOPIC_KEY}"


def test_the_files_topic_is_used_where_no_key_names_one() -> None:
    assert choose(FILE, desired(("k:1",))).target.kafka.topic == "own"


def test_a_topic_alone_changes_kafkas_topic_and_says_so_where_there_is_no_kafka() -> None:
    assert choose(KAFKA, desired(topic="t")).target.kafka.topic == "t"
    lonely = choose(FILE, desired(topic="t"))
    assert lonely.target.backend == "file"
    assert TOPIC_KEY in lonely.problems[0]


def test_a_master_document_goes_before_the_keys() -> None:
    with_file = choose(KAFKA, desired(("k:1",), sink=SinkChoice("file")))
    assert with_file.target.backend == "file"
    named = choose(FILE, desired(("k:1",), "t", SinkChoice("kafka", ["m:1"], "mt")))
    assert (named.target.kafka.bootstrap_servers, named.target.kafka.topic) == (("m:1",), "mt")
    assert named.decided_by == "/hids/server/config/@all/master"
    bare = choose(FILE, desired(("k:1",), "t", SinkChoice("kafka")))
    assert (bare.target.kafka.bootstrap_servers, bare.target.kafka.topic) == (("k:1",), "t")


def test_a_master_document_that_names_no_servers_changes_nothing_and_is_reported() -> None:
    choice = choose(FILE, desired(sink=SinkChoice("kafka")))
    assert choice.target.backend == "file"
    assert "names no bootstrap_servers" in choice.problems[0]


def test_equal_choices_are_equal_targets() -> None:
    first: Any = choose(FILE, desired(("k:1",), "t")).target
    assert first == choose(FILE, desired(("k:1",), "t")).target
    assert first != choose(FILE, desired(("k:2",), "t")).target
