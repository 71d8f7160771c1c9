"""Reads topics of Kafka from their beginning to where they end now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from garrison.fleet.reconcile.reading import Reader
from garrison.supervisor.settings.schema import KafkaSink

IDLE_SECONDS = 30.0
"""How long a broker may give nothing while there is more."""
POLL_MILLISECONDS = 1000
POLL_RECORDS = 5000
CONNECT_MILLISECONDS = 10_000


class TopicError(Exception):
    """A topic cannot be read to its end; the text says why."""


def read_topics(
    reader: Reader,
    settings: KafkaSink,
    topics: list[str],
    progress: Callable[[int, int], None],
) -> bool:
    """Take every message that is there now.

    Args:
        reader: Takes the events.
        settings: Brokers, TLS and login.
        topics: Names.
        progress: Called now and then with how many messages were read, and how many there are.

    Returns:
        Whether the topics still hold their first message: nothing is gone by age.

    Raises:
        TopicError: A topic does not exist, or no broker answers.
        TooMuchError: See `Evidence`.
    """
    import kafka
    from kafka.errors import KafkaError

    from garrison.supervisor.sinks.kafka.session import SessionError, security

    try:
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=list(settings.bootstrap_servers),
            client_id="garrison-reconcile",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=POLL_RECORDS,
            bootstrap_timeout_ms=CONNECT_MILLISECONDS,
            allow_auto_create_topics=False,
            **security(settings),
        )
    except (KafkaError, SessionError, OSError, ValueError) as error:
        raise TopicError(f"{', '.join(settings.bootstrap_servers)}: {error or type(error).__name__}") from error
    try:
        return _read(reader, consumer, topics, progress)
    except KafkaError as error:
        raise TopicError(f"{', '.join(topics)}: {error}") from error
    finally:
        consumer.close()


def _read(reader: Reader, consumer: Any, topics: list[str], progress: Callable[[int, int], None]) -> bool:
    from kafka import TopicPartition

    partitions = []
    for topic in topics:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise TopicError(f"the topic {topic} does not exist, or may not be read")
        partitions += [TopicPartition(topic, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    starts, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    consumer.seek_to_beginning(*partitions)
    left = {partition for partition in partitions if starts[partition] < ends[partition]}
    total = sum(ends[partition] - starts[partition] for partition in partitions)
    done = 0
    heard = time.monotonic()
    while left:
        batches = consumer.poll(timeout_ms=POLL_MILLISECONDS)
        for partition, messages in batches.items():
            for message in messages:
                if message.offset < ends[partition]:
                    done += 1
                    _take(reader, message)
        # By position, not by messages: numbers of aborted or compacted ones are skipped.
        now_left = {partition for partition in left if consumer.position(partition) < ends[partition]}
        if batches or now_left != left:
            heard = time.monotonic()
            progress(done, total)
        elif time.monotonic() - heard > IDLE_SECONDS:
            raise TopicError(
                f"nothing has come for {IDLE_SECONDS:g} s, and {len(left)} partitions are not at their end"
            )
        left = now_left
    return all(start == 0 for start in starts.values())


def _take(reader: Reader, message: Any) -> None:
    def place() -> str:
        return f"{message.topic}/{message.partition}, offset {message.offset}"

    if not message.value:
        reader.lines += 1
        reader.reject(place, "an empty message")
        return
    reader.take_message(message.headers, message.value, place)
