"""TLS, logins and refusals on Apache Kafka."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor.settings.checks import CODECS
from garrison.supervisor.sinks.base import SinkError
from garrison.supervisor.sinks.kafka.sink import KafkaSink
from tests.etcd.cluster import Tls, until
from tests.kafka._offering import Offering, assert_exact, batch, batch_of, event, make_sink
from tests.kafka.brokers import PASSWORD, USER, ApacheKafka
from tests.kafka.conftest import needs_apache

pytestmark = [needs_apache, pytest.mark.timeout(240)]


@pytest.fixture
def topic(apache: ApacheKafka) -> str:
    name = f"hids-{secrets.token_hex(4)}"
    apache.create_topic(name)
    return name


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text(PASSWORD + "\n")
    return file


def login(password: Path, mechanism: str = "SCRAM-SHA-512") -> dict[str, Any]:
    return {"sasl_mechanism": mechanism, "username": USER, "password_file": str(password)}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("listener", ["SASL", "SASLTLS"])
def test_logins(
    apache: ApacheKafka,
    topic: str,
    sinks: list[KafkaSink],
    password: Path,
    certificates: Tls,
    mechanism: str,
    listener: str,
) -> None:
    tls = {"tls": True, "ca_cert": str(certificates.ca)} if listener == "SASLTLS" else {}
    sinks.append(make_sink(apache.only(listener), topic=topic, **login(password, mechanism), **tls))
    sinks[0].write([batch(1, 5)])
    assert_exact(apache.read(topic), {"process": 5})


def test_a_client_certificate(apache: ApacheKafka, topic: str, sinks: list[KafkaSink], certificates: Tls) -> None:
    own = {"cert": str(certificates.client_cert), "key": str(certificates.client_key)}
    sinks.append(make_sink(apache.only("TLS"), topic=topic, tls=True, ca_cert=str(certificates.ca), **own))
    sinks[0].write([batch(1, 5)])
    assert_exact(apache.read(topic), {"process": 5})


def test_an_unknown_authority_is_refused(apache: ApacheKafka, sinks: list[KafkaSink]) -> None:
    sinks.append(make_sink(apache.only("SASLTLS"), tls=True))
    with pytest.raises(SinkError, match="certificate"):
        sinks[0].write([batch(1, 1)])


def test_a_wrong_password_is_named_and_the_right_one_is_taken_without_a_restart(
    apache: ApacheKafka, topic: str, password: Path
) -> None:
    password.write_text("wrong\n")
    offering = Offering(make_sink(apache.only("SASL"), topic=topic, **login(password)))
    try:
        offering.put(batch(1, 10))
        # Some of the time the broker closes the connection before its answer is read.
        said = f"refused the login of the user {USER}; is the password in [sink.kafka] password_file right?"
        until(lambda: any(said in error for error in offering.errors), "the refusal is reported", 60)
        password.write_text(PASSWORD + "\n")
        until(lambda: not offering.pending, "everything is delivered", 60)
    finally:
        offering.end()
    assert_exact(apache.read(topic), {"process": 10})


def test_a_password_that_changes_under_a_running_producer_burns_no_cpu_and_is_taken_when_it_is_there(
    make_apache: Callable[..., ApacheKafka], password: Path
) -> None:
    kafka = make_apache()
    kafka.create_topic("hids")
    offering = Offering(make_sink(kafka.only("SASL"), topic="hids", timeout_seconds=3.0, **login(password)))
    try:
        offering.put(batch(1, 10))
        until(lambda: not offering.pending, "everything is delivered", 60)
        kafka.set_password("another")
        kafka.nodes[0].kill()
        kafka.nodes[0].start()
        kafka.wait()
        offering.put(batch(11, 10))
        until(lambda: any("refused the login" in error for error in offering.errors), "the refusal is reported", 90)
        begin, spent = time.monotonic(), time.process_time()
        time.sleep(8)
        share = (time.process_time() - spent) / (time.monotonic() - begin)
        password.write_text("another\n")
        until(lambda: not offering.pending, "everything is delivered", 60)
    finally:
        offering.end()
    assert_exact(kafka.read("hids"), {"process": 20})
    assert share < 0.5, f"{100 * share:.1f} % of a core"


def test_a_password_file_that_others_can_read_is_refused(
    apache: ApacheKafka, sinks: list[KafkaSink], password: Path
) -> None:
    password.chmod(0o644)
    sinks.append(make_sink(apache.only("SASL"), **login(password)))
    with pytest.raises(SinkError, match="chmod 600"):
        sinks[0].write([batch(1, 1)])


@pytest.mark.parametrize("per_message", [1, 8])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_events_above_the_brokers_limit_are_refused_and_hold_up_nothing(
    apache: ApacheKafka, sinks: list[KafkaSink], per_message: int, compression: str
) -> None:
    topic = f"small-{secrets.token_hex(4)}"
    apache.create_topic(topic, **{"max.message.bytes": "10000"})
    sinks.append(
        make_sink(
            apache.bootstrap,
            topic=topic,
            records_per_message=per_message,
            compression=compression,
            timeout_seconds=30.0,
        )
    )
    noise = secrets.token_hex(20_000).encode()  # half of it is left after compression
    large = {4, 5, 11}
    events = [event("process", number) for number in range(1, 21)]
    for number in large:
        events[number - 1] = events[number - 1][:-2] + b', "noise": "' + noise + b'"}\n'
    work = [batch_of(events[:10]), batch_of(events[10:], first=11)]
    refused: list[Any] = []
    for _ in range(20):
        try:
            refused += sinks[0].write(work)
        except SinkError as error:
            refused += error.refused
            work = work[error.delivered :]
        else:
            break
    assert {number for each in refused for number in range(each.first, each.last + 1)} == large
    assert {each.reason for each in refused} == {"oversize"}
    found = [number for record in apache.read(topic) for number in _sequences(record)]
    assert found == [number for number in range(1, 21) if number not in large]


@pytest.mark.parametrize("compression", ["gzip", "none", *CODECS])
@pytest.mark.parametrize("per_message", [1, 8])
def test_the_broker_reads_what_was_compressed(
    apache: ApacheKafka, sinks: list[KafkaSink], compression: str, per_message: int
) -> None:
    """It checks the checksum of every batch, and takes idempotent ones apart."""
    if compression in CODECS:
        pytest.importorskip(CODECS[compression][0])
    topic = f"packed-{secrets.token_hex(4)}"
    apache.create_topic(topic)
    sinks.append(make_sink(apache.bootstrap, topic=topic, compression=compression, records_per_message=per_message))
    assert not sinks[0].write([batch(1, 500), batch(501, 3)])
    assert_exact(apache.read(topic), {"process": 503})


def _sequences(record: Any) -> list[int]:
    import json

    return [json.loads(line)["event"]["sequence"] for line in record.value.split(b"\n")]
