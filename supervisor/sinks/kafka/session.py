"""One producer's life. The only module that touches kafka-python; it is imported when the first one is made.

What is done here beside calling the library, and why (kafka-python 3.0.12):

- A producer that fails to start leaves its sockets open: the client is kept hold of and closed.
- `KafkaProducer.close` raises where something is still under way, and leaves its thread running: the sender is closed
  by force.
- An error that it does not expect makes the sender loop without a pause: the log record
  that it writes on each turn is taken as the sign to end the session, and slows the thread down until then.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from garrison.supervisor.settings.schema import KafkaSink
from garrison.supervisor.sinks.kafka.messages import Headers
from garrison.supervisor.stores.etcd.credentials import CredentialError, check_tls, password_of

CLIENT_ID = "garrison"
"""The same for all hosts: brokers keep figures for each client id, and a million of them would cost their memory."""
BLOCK_SECONDS = 5.0
"""Longest wait for a topic's partitions."""
BATCH_BYTES = 256 * 1024
"""Uncompressed size at which messages go without waiting for more; below the broker's usual limit of 1 MiB."""
GATHER_MILLISECONDS = 1000
"""How long the producer holds back messages that do not fill a batch; the flush that ends a write ends that too."""
REQUEST_SECONDS = 15.0
"""After this long without an answer a connection is given up, and its requests are repeated on a new one."""
DELIVERY_SECONDS = 12 * 3600.0
"""How long the producer goes on trying. A broker forgets the numbers of an idle producer after a day by default."""
METADATA_SECONDS = 900.0
"""How often partitions are asked for anew; kafka-python's 5 min are 3,300 requests a second for a million hosts."""
RECONNECT_CAP_MILLISECONDS = 10_000
RETRY_MILLISECONDS = 250
PAUSE_SECONDS = 0.5
SPLIT_SECONDS = 0.01
RECEIVE_BYTES = 4 * 1024 * 1024
"""Largest answer of a broker: nobody who answers on the broker's port can fill the host's memory."""

_SENDER_LOG = "kafka.producer.sender"
_UNEXPECTED = "Uncaught error"


class SessionError(Exception):
    """A session cannot be begun; the text says why and what to do."""


class Session:
    """A connected producer.

    Args:
        settings: Checked.
        max_bytes: Largest request, bytes.
        connect_seconds: How long it may take to reach a broker.

    Raises:
        SessionError: A certificate or the password cannot be used.
        Exception: kafka-python's, where no broker can be reached or the login is refused.
    """

    def __init__(self, settings: KafkaSink, max_bytes: int, connect_seconds: float) -> None:
        options = security(settings)
        _quieten()
        import kafka

        from garrison.supervisor.sinks.kafka import economy
        from garrison.supervisor.sinks.kafka.client import Client

        economy.install()

        clients: list[Client] = []

        def client(**configuration: Any) -> Client:
            clients.append(Client(**configuration))
            return clients[0]

        compression = None if settings.compression == "none" else settings.compression
        try:
            self._producer = kafka.KafkaProducer(
                bootstrap_servers=list(settings.bootstrap_servers),
                client_id=CLIENT_ID,
                enable_idempotence=True,
                acks="all",
                compression_type=compression,
                batch_size=BATCH_BYTES,
                linger_ms=GATHER_MILLISECONDS,
                max_request_size=max_bytes,
                max_block_ms=int(BLOCK_SECONDS * 1000),
                bootstrap_timeout_ms=int(connect_seconds * 1000),
                request_timeout_ms=int(REQUEST_SECONDS * 1000),
                delivery_timeout_ms=int(DELIVERY_SECONDS * 1000),
                metadata_max_age_ms=int(METADATA_SECONDS * 1000),
                retry_backoff_ms=RETRY_MILLISECONDS,
                reconnect_backoff_ms=RETRY_MILLISECONDS,
                reconnect_backoff_max_ms=RECONNECT_CAP_MILLISECONDS,
                receive_message_max_bytes=RECEIVE_BYTES,
                allow_auto_create_topics=False,
                metrics_enabled=False,
                kafka_client=client,
                **options,
            )
        except BaseException as error:
            for made in clients:
                made.close()
                reason = made.manager.refused or made.manager.unreachable
                if isinstance(error, kafka.errors.KafkaTimeoutError) and reason is not None:
                    raise reason from error  # that a broker could not be reached in time hides why
            raise
        self._client = clients[0]
        self._partitions: dict[str, Any] = {}
        self._sender: threading.Thread = self._producer._sender  # noqa: SLF001  as said above
        self._watch = _Watch(self._sender)
        logging.getLogger(_SENDER_LOG).addHandler(self._watch)

    @property
    def broken(self) -> BaseException | None:
        """What made the session useless without a message of its own having failed; None while it works."""
        if self._client.manager.refused is not None:
            return self._client.manager.refused
        if self._watch.seen is not None:
            return self._watch.seen
        return None if self._sender.is_alive() else RuntimeError("the producer's thread has ended")

    @property
    def unreachable(self) -> BaseException | None:
        """Why the last connection could not be made, if any."""
        return self._client.manager.unreachable

    def begin(self) -> None:
        """A write begins: partitions are looked up anew, so that a topic that has got more of them is noticed."""
        self._partitions.clear()

    def send(self, topic: str, value: bytes, key: bytes, headers: Headers) -> Any:
        """Hand over a message; return its future. `flush` sends what does not fill a batch.

        This goes past `KafkaProducer.send`, which looks up, checks, measures and formats for the log with each message
        what is the same for all of ours: that is 45 % of the CPU of an event.

        Raises:
            Exception: kafka-python's: the topic is not known.
        """
        partition = self._partitions.get(topic)
        if partition is None:
            partition = self._partitions[topic] = self._partition_of(topic, value, key)
        future, full, new, _ = self._producer._accumulator.append(partition, None, key, value, headers)  # noqa: SLF001
        if full and new:
            # The batch before has just become full. `full` alone is true for every message as long as the sender has
            # one to compress, and waking it that often is a quarter of the CPU of an event.
            self._producer._sender.wakeup()  # noqa: SLF001
        return future

    def _partition_of(self, topic: str, value: bytes, key: bytes) -> Any:
        """Return the partition of our key, which is the same for all messages to a topic."""
        from kafka import TopicPartition
        from kafka.errors import KafkaTimeoutError, UnknownTopicOrPartitionError

        try:
            self._producer.partitions_for(topic)
        except KafkaTimeoutError as error:
            if self._client.manager.least_used_connections():
                # A broker is there, and still the topic has no partitions.
                raise UnknownTopicOrPartitionError(topic) from error
            raise
        number = self._producer._partition(topic, None, key, value, key, value)  # noqa: SLF001
        if number is None:
            raise UnknownTopicOrPartitionError(topic)
        return TopicPartition(topic, number)

    def flush(self, seconds: float) -> bool:
        """Wait until everything is settled, for about `seconds`; return whether it is."""
        from kafka.errors import KafkaTimeoutError, UnknownError

        try:
            self._producer.flush(seconds)
        except KafkaTimeoutError:
            return False
        except UnknownError:
            time.sleep(SPLIT_SECONDS)  # it has divided a batch that was too large, and waited for the whole one
            return False
        return True

    def close(self, seconds: float) -> None:
        """End the producer; what is under way is given up. Waits up to `seconds` for its thread."""
        self._producer._sender.force_close()  # noqa: SLF001
        self._sender.join(seconds)
        logging.getLogger(_SENDER_LOG).removeHandler(self._watch)
        if self._sender.is_alive():
            # It is stuck, in a name lookup for instance, and ends by itself. Without this the collector would close the
            # producer, and wait for it, in whichever thread it runs.
            self._producer._unregister_cleanup()  # noqa: SLF001
            self._producer._closed = True  # noqa: SLF001
        else:
            self._producer.close(timeout=0)


class _Watch(logging.Handler):
    """Looks out for the log record that an endlessly failing sender thread writes."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__(logging.ERROR)
        self._thread = thread
        self.seen: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take an error of the sender's thread; the thread then waits, so that it does not turn in circles."""
        if threading.current_thread() is not self._thread or _UNEXPECTED not in str(record.msg):
            return
        self.seen = (record.exc_info[1] if record.exc_info else None) or RuntimeError(record.getMessage())
        time.sleep(PAUSE_SECONDS)


def _quieten() -> None:
    """Keep kafka-python's log to itself: what matters to an operator is said once, in the sink's own words."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    sender = logging.getLogger(_SENDER_LOG)
    sender.setLevel(logging.ERROR)
    sender.propagate = False
    if not sender.handlers:
        # Else `logging` writes to standard error by itself, after the last of ours is gone.
        sender.addHandler(logging.NullHandler())


def security(settings: KafkaSink) -> dict[str, Any]:
    """Return the options for TLS and login; files are read anew for each session.

    Raises:
        SessionError: A file cannot be used.
    """
    options: dict[str, Any] = {}
    try:
        if settings.tls:
            check_tls(settings.ca_cert, settings.cert, settings.key)
            options["ssl_context"] = _context(settings)
        if settings.sasl_mechanism != "none":
            options["sasl_mechanism"] = settings.sasl_mechanism
            options["sasl_plain_username"] = settings.username
            options["sasl_plain_password"] = password_of(settings.password_file)
    except CredentialError as error:
        raise SessionError(f"[sink.kafka]: {error}") from error
    layers = ("SASL_" if settings.sasl_mechanism != "none" else "", "SSL" if settings.tls else "PLAINTEXT")
    options["security_protocol"] = "".join(layers)
    return options


def _context(settings: KafkaSink) -> Any:
    import ssl

    context = ssl.create_default_context(cafile=settings.ca_cert or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert:
        context.load_cert_chain(settings.cert, settings.key)
    return context
