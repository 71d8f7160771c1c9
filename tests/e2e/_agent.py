"""Runs a real `garrisond` in a temporary folder and in cgroups of its own, and cleans up after it."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor.control.client import ControlClient

BIN = Path(sys.executable).parent
MISBEHAVING = Path(__file__).parents[1] / "misbehaving"
DEADLINE = 30.0

needs_cgroups = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK) or not glob.glob("/sys/fs/cgroup/*"),
    reason="needs root and a writable cgroup file system",
)


def module(name: str, class_name: str) -> str:
    """Return the spec of a misbehaving module; ``@`` stands for the agent's folder, where a copy of it is."""
    return f"@/modules/{name}.py:{class_name}"


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Ask until the answer is true; return it. Only for what cannot be awaited, such as a file of the kernel."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s (last answer: {answer!r})")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


class RunningAgent:
    """One agent for one test.

    Args:
        folder: Where everything is kept.
        workers: TOML of the ``[workers.…]`` tables.
        agent: More lines for ``[agent]``.
        more: More TOML at the end.
    """

    def __init__(self, folder: Path, workers: str = "", agent: str = "", more: str = "") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.host = "web1"
        self.root = f"garrison-test-{os.getpid()}-{secrets.token_hex(3)}"
        self.config = folder / "garrison.toml"
        self.store = folder / "store"
        self.killfile = folder / "killswitch"
        modules = folder / "modules"
        modules.mkdir(exist_ok=True)
        for source in MISBEHAVING.glob("*.py"):
            # The agent loads no module that others could write, whatever the checkout's owner and umask are.
            shutil.copyfile(source, modules / source.name)
            (modules / source.name).chmod(0o644)
        self.write_config("", "", "")
        # A test may leave the configuration broken; cleaning up does not depend on it.
        self._cleanup_config = folder / "cleanup.toml"
        shutil.copyfile(self.config, self._cleanup_config)
        self.write_config(workers, agent, more)
        self.process: subprocess.Popen[bytes] | None = None
        self.stderr = folder / "stderr"
        self._notify: socket.socket | None = None
        self.notified: list[str] = []

    def write_config(self, workers: str, agent: str = "", more: str = "") -> None:
        """Write the configuration file; ``@/`` in it stands for the agent's folder."""
        workers, agent, more = (text.replace("@/", f"{self.folder}/") for text in (workers, agent, more))
        if "pressure" not in f"{agent}{more}{workers}":
            # The machine that runs the tests is busy with other things, and a test is about something else.
            agent = f"pressure = {{cpu_percent = 100, io_percent = 100, memory_percent = 100}}\n{agent}"
        if "worker_user" not in agent:
            # Where the package is installed there is a user for workers, who may not read this checkout.
            agent = f'worker_user = "root"\n{agent}'
        self.config.write_text(
            f"""
[agent]
hostname = "{self.host}"
state_dir = "{self.folder}/state"
run_dir = "{self.folder}/run"
log_dir = "{self.folder}/log"
cgroup_root = "/{self.root}"
killswitch_file = "{self.killfile}"
{agent}
[store.directory]
path = "{self.store}"
{workers}
{more}
"""
        )

    # Keys

    def put(self, key: str, value: str | bytes) -> None:
        """Write a key of the directory store, as an operator would."""
        path = self.store / "hids" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value.encode() if isinstance(value, str) else value)

    def delete(self, key: str) -> None:
        """Delete a key."""
        (self.store / "hids" / key).unlink()

    # Life

    def start(self, *, wait: bool = True, env: dict[str, str] | None = None, command: list[str] | None = None) -> None:
        """Start the agent and wait for READY=1."""
        path = str(self.folder / "notify")
        Path(path).unlink(missing_ok=True)
        if self._notify is not None:
            self._notify.close()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(path)
        self.notified = []
        with open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                command or [str(BIN / "garrisond"), "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, "NOTIFY_SOCKET": path, **(env or {})},
                start_new_session=True,
            )
        if wait:
            self.wait_notified("READY=1")

    def wait_notified(self, line: str, seconds: float = DEADLINE) -> None:
        """Wait until the agent has told its service manager a line."""
        assert self._notify is not None
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while line not in self.notified:
            ready, _, _ = select.select([self._notify], [], [], 0.05)
            if ready:
                self.notified += self._notify.recv(4096).decode().splitlines()
            elif self.process.poll() is not None:
                raise AssertionError(f"the agent ended with {self.process.returncode}:\n{self.errors()}")
            elif time.monotonic() > deadline:
                raise AssertionError(f"no {line} within {seconds:g} s:\n{self.errors()}")

    @property
    def pid(self) -> int:
        """Process id of the master."""
        assert self.process is not None
        return self.process.pid

    def stop(self, signo: signal.Signals = signal.SIGTERM) -> int:
        """Stop the agent in good order; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signo)
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        """Kill the master outright."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def cleanup(self) -> None:
        """End everything and remove the cgroups; for the end of a test, however it ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._notify is not None:
            self._notify.close()
        subprocess.run(
            [BIN / "garrisond", "--config", self._cleanup_config, "--cleanup"], check=False, capture_output=True
        )
        until(lambda: not self.nodes(), "no cgroup is left", 10)

    def errors(self) -> str:
        """Return what it wrote to standard error."""
        return self.stderr.read_text(errors="replace") if self.stderr.exists() else ""

    # Looking

    @property
    def client(self) -> ControlClient:
        """A client of its control socket."""
        return ControlClient(str(self.folder / "run" / "control.sock"), timeout=DEADLINE)

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        return json.loads(self.garrison("status", "--json").stdout)

    def worker(self, name: str) -> dict[str, Any]:
        """Return one worker's part of the status."""
        return next(worker for worker in self.client.call("status")["workers"] if worker["name"] == name)

    def wait_worker(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait until a worker's status has these values; return it."""

        def look() -> dict[str, Any] | None:
            # Not there while its predecessor of that name is being retired.
            workers = self.client.call("status")["workers"]
            worker = next((worker for worker in workers if worker["name"] == name), {})
            return worker if all(worker.get(key) == value for key, value in wanted.items()) else None

        try:
            return until(look, f"worker {name} with {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}\nstatus: {self.worker(name)}\n{self.errors()}") from None

    def garrison(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the operator's command line."""
        return subprocess.run(
            [BIN / "garrison", "--config", self.config, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def nodes(self) -> list[str]:
        """Return every cgroup directory of this agent, in every hierarchy."""
        found = []
        for hierarchy in glob.glob("/sys/fs/cgroup/*/"):
            top = os.path.join(hierarchy, self.root)
            found += [folder for folder, _, _ in os.walk(top)]
        for folder, _, _ in os.walk(f"/sys/fs/cgroup/{self.root}"):
            found.append(folder)
        return found

    def pids(self, below: str = "workers") -> set[int]:
        """Return every process in the agent's cgroups below a node."""
        pids: set[int] = set()
        for node in self.nodes():
            if f"/{self.root}/{below}" in node:
                try:
                    pids |= {int(pid) for pid in Path(node, "cgroup.procs").read_text().split()}
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENODEV):
                        raise
                    continue  # removed meanwhile
        return {pid for pid in pids if alive(pid)}

    def events(self) -> Iterator[dict[str, Any]]:
        """Return the events in the file sink, oldest first."""
        files = sorted((self.folder / "log").glob("events.*.ndjson"), key=lambda path: path.stat().st_mtime_ns)
        for path in files:
            for line in path.read_text().splitlines():
                yield json.loads(line)

    def wait_event(self, seconds: float = DEADLINE, **wanted: Any) -> dict[str, Any]:
        """Wait for an event with these dotted fields (``__`` for a dot); return it."""

        def matches(event: dict[str, Any]) -> bool:
            for path, value in wanted.items():
                found: Any = event
                for part in path.split("__"):
                    found = found.get(part) if isinstance(found, dict) else None
                if found != value:
                    return False
            return True

        return until(lambda: next(filter(matches, self.events()), None), f"an event with {wanted}", seconds)
