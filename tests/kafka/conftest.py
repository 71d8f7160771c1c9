"""Brokers for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor.sinks.kafka.sink import KafkaSink
from tests.etcd.certificates import make_tls
from tests.etcd.cluster import Tls
from tests.kafka.brokers import ApacheKafka, Tansu
from tests.kafka.fetch import MissingError

needs_apache = pytest.mark.skipif(
    os.environ.get("GARRISON_KAFKA") != "1", reason="needs Apache Kafka: make test-kafka fetches it and runs this"
)


@pytest.fixture(scope="module")
def tansu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tansu]:
    """The small broker, one for all tests of a file."""
    try:
        broker = Tansu(tmp_path_factory.mktemp("tansu"))
    except MissingError as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture
def sinks() -> Iterator[list[KafkaSink]]:
    """Where a test puts the sinks that it makes, to have them closed."""
    made: list[KafkaSink] = []
    yield made
    for sink in made:
        sink.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """An authority, a server's certificate for loopback and a client's."""
    return make_tls(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def apache(tmp_path_factory: pytest.TempPathFactory, certificates: Tls) -> Iterator[ApacheKafka]:
    """Apache Kafka, one node with all listeners, for all tests of a file."""
    with ApacheKafka(tmp_path_factory.mktemp("kafka"), tls=certificates) as broker:
        yield broker


@pytest.fixture
def make_apache(tmp_path: Path) -> Iterator[Callable[..., ApacheKafka]]:
    """Start Apache Kafka for one test; arguments as for `ApacheKafka` without the folder."""
    made: list[ApacheKafka] = []

    def make(**keywords: Any) -> ApacheKafka:
        broker = ApacheKafka(tmp_path / f"kafka{len(made)}", **keywords)
        made.append(broker)
        return broker.__enter__()

    yield make
    for broker in made:
        broker.__exit__()
