"""Where events go: the file's choice and the keys' become one target. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from garrison.supervisor.desired import Desired
from garrison.supervisor.settings.schema import KafkaSink, Sink

FILE_SAYS = "the configuration file"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A sink that is wanted; equal targets are one and the same sink.

    Attributes:
        backend: Its kind.
        kafka: What the Kafka sink needs, servers and topic of the keys filled in.
        path: Of the file sink.
        max_bytes: Of each of the file sink's files.
    """

    backend: Literal["file", "kafka"]
    kafka: KafkaSink = KafkaSink()
    path: str = ""
    max_bytes: int = 0

    @property
    def text(self) -> str:
        """Say where that is, for people."""
        if self.backend == "file":
            return self.path
        return f"topic {self.kafka.topic} at {', '.join(self.kafka.bootstrap_servers)}"


class Choice(msgspec.Struct, frozen=True):
    """The target, who decided it, and what is wrong with what was asked for."""

    target: Target
    decided_by: str
    problems: tuple[str, ...] = ()


def choose(settings: Sink, desired: Desired | None = None) -> Choice:
    """Return where events go.

    A ``master`` document that names a sink wins, because it has a scope; then the key ``kafka/host``, whose presence
    selects Kafka; then the file. Servers and topic that the one who decides does not name come from the next one; TLS,
    login and everything else are always the file's.
    """
    topic_key = desired.kafka_topic if desired is not None else ""
    servers_key = desired.kafka_servers if desired is not None else ()
    own = settings.kafka
    problems: tuple[str, ...] = ()
    choice = desired.master.sink if desired is not None else None
    if choice is not None and desired is not None:
        by = desired.master.decided_by
        if choice.backend == "file":
            return Choice(_file(settings), by)
        servers = tuple(choice.bootstrap_servers) or servers_key or own.bootstrap_servers
        if servers:
            return Choice(_kafka(settings, servers, choice.topic or topic_key or own.topic), by)
        problems = (f"{by}: chooses Kafka and names no bootstrap_servers; events go on as before that",)
    if servers_key and desired is not None:
        return Choice(_kafka(settings, servers_key, topic_key or own.topic), ", ".join(desired.kafka_by), problems)
    if settings.backend == "file":
        if topic_key and desired is not None:
            by = ", ".join(desired.kafka_by)
            problems += (f"{by}: names a topic, but nothing selects Kafka; set kafka/host too, or delete it",)
        return Choice(_file(settings), FILE_SAYS, problems)
    return Choice(_kafka(settings, own.bootstrap_servers, topic_key or own.topic), FILE_SAYS, problems)


def _file(settings: Sink) -> Target:
    return Target(backend="file", path=settings.file.path, max_bytes=settings.file.max_bytes)


def _kafka(settings: Sink, servers: tuple[str, ...], topic: str) -> Target:
    kafka = msgspec.structs.replace(settings.kafka, bootstrap_servers=servers, topic=topic)
    return Target(backend="kafka", kafka=kafka)
