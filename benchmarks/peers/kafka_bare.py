"""A bare kafka-python producer: ``kafka_bare.py SERVER TOPIC FILE COMPRESSION SHARE``, one message a line of the file.

Idempotent, acks=all, the same batches as the agent's. Prints the seconds until the share of it is acknowledged, and its
CPU seconds for all of it, without start and connection.
"""

import sys
import time
import warnings

warnings.simplefilter("ignore")

from kafka import KafkaProducer  # noqa: E402


def main() -> None:
    server, topic, path, compression, share = sys.argv[1:]
    with open(path, "rb") as file:
        messages = [bytes.fromhex(line.decode()) for line in file.read().splitlines()]
    producer = KafkaProducer(
        bootstrap_servers=[server],
        acks="all",
        compression_type=None if compression == "none" else compression,
        batch_size=256 * 1024,
        linger_ms=100,
        metrics_enabled=False,
    )
    headers = [("host", b"web1"), ("worker", b"source"), ("epoch", b"1790000000"), ("priority", b"event")]
    headers += [("sequence", b"1000"), ("count", b"1")]
    producer.send(topic, messages[0], key=b"web1", headers=headers).get(30)
    begin, spent = time.monotonic(), time.process_time()
    futures = [producer.send(topic, message, key=b"web1", headers=headers) for message in messages]
    reached: list[float] = []
    futures[int(float(share) * len(futures)) - 1].add_callback(lambda _: reached.append(time.monotonic()))
    producer.flush(120)
    assert all(future.succeeded() for future in futures)
    print(reached[0] - begin, time.process_time() - spent)
    producer.close()


main()
