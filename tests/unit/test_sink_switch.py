"""One sink becomes another, and Kafka's library stays away until it is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.settings.schema import KafkaSink, KafkaTopics
from garrison.supervisor.sinks import switch
from garrison.supervisor.sinks.base import Refused, Sink, SinkError
from garrison.supervisor.sinks.kafka.trouble import explain
from garrison.supervisor.sinks.switch import SwitchSink
from garrison.supervisor.sinks.target import Target


def file_target(path: Path) -> Target:
    return Target(backend="file", path=str(path), max_bytes=2**20)


def batch(number: int) -> Batch:
    return Batch("process", WorkerLedger(), "event", 1, b"{%d}\n" % number, "process", 7, number)


def read(folder: Path, name: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{name}.*")))


def test_the_next_write_goes_to_the_new_target(tmp_path: Path) -> None:
    sink = SwitchSink(file_target(tmp_path / "one.ndjson"), "web1")
    sink.write([batch(1)])
    sink.use(file_target(tmp_path / "two.ndjson"))
    sink.write([batch(2)])
    sink.use(file_target(tmp_path / "one.ndjson"))
    sink.write([batch(3)])
    sink.close()
    assert (read(tmp_path, "one"), read(tmp_path, "two")) == (b"{1}\n{3}\n", b"{2}\n")


class Half(Sink):
    """Delivers one batch of each call and then fails, as long as it is asked not to leave."""

    name = "half"

    def __init__(self, during: Callable[[], None]) -> None:
        self.closed = False
        self._during = during

    def write(self, batches: Sequence[Batch]) -> Sequence[Refused]:
        self._during()
        raise SinkError("away", 1, [Refused(batches[0], 1, 1, "oversize")])

    def reopen(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_a_target_that_changes_during_a_failing_write_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = file_target(tmp_path / "new.ndjson")
    real = switch.make_sink
    old = Half(lambda: sink.use(new))
    monkeypatch.setattr(switch, "make_sink", lambda target, *more: real(target, *more) if target == new else old)
    sink = SwitchSink(file_target(tmp_path / "old.ndjson"), "web1")
    refused = sink.write([batch(1), batch(2), batch(3)])
    sink.close()
    assert old.closed
    assert [each.reason for each in refused] == ["oversize"]
    assert read(tmp_path, "new") == b"{2}\n{3}\n"


def test_a_failure_counts_what_both_have_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = file_target(tmp_path / "a"), file_target(tmp_path / "b")
    made = iter([Half(lambda: sink.use(second)), Half(lambda: None)])
    monkeypatch.setattr(switch, "make_sink", lambda *_: next(made))
    sink = SwitchSink(first, "web1")
    with pytest.raises(SinkError) as caught:
        sink.write([batch(1), batch(2), batch(3)])
    assert caught.value.delivered == 2
    assert len(caught.value.refused) == 2


def test_kafka_python_is_not_loaded_before_the_first_write() -> None:
    program = """
import sys
from garrison.supervisor import agent
from garrison.supervisor.settings.schema import KafkaSink
from garrison.supervisor.sinks.switch import SwitchSink
from garrison.supervisor.sinks.target import Target
kafka = KafkaSink(bootstrap_servers=("127.0.0.1:1",))
sink = SwitchSink(Target(backend="kafka", kafka=kafka), "web1")
sink.close()
sys.exit("kafka" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "argument", "says"),
    [
        ("UnknownTopicOrPartitionError", "alerts", "Kafka at k:1 knows no topic alerts; create it"),
        (
            "TopicAuthorizationFailedError",
            None,
            "not allowed to write to topic hids; give the user agent the ACL Write",
        ),
        ("SaslAuthenticationFailedError", "bad", "refused the login of the user agent; is the password"),
        ("SomethingNew", "text", "Kafka at k:1: text"),
    ],
)
def test_failures_say_what_to_do(name: str, argument: str | None, says: str) -> None:
    settings = KafkaSink(bootstrap_servers=("k:1",), topic="hids", username="agent", topics=KafkaTopics(alert="alerts"))
    error = type(name, (Exception,), {})(*([argument] if argument else [None]))
    assert says in explain(error, settings)
