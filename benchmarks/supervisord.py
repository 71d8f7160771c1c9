"""Supervisor 4.3 as the peer: installed apart from the project, run with like programs, cleaned up after."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
VENV = ROOT / "build" / "bench-venv"
REQUIREMENTS = ROOT / "requirements" / "bench.txt"
PROGRAM = Path(__file__).parent / "peers" / "program.py"
SECONDS = 30.0


class PeerMissingError(Exception):
    """Supervisor is not there and could not be installed; the text says why."""


def installed() -> bool:
    """Tell whether the peer's own environment is there, with what the requirements name."""
    marker = VENV / ".ready"
    return marker.exists() and marker.stat().st_mtime >= REQUIREMENTS.stat().st_mtime


def install() -> None:
    """Make the peer's environment, once.

    Raises:
        PeerMissingError: It cannot be made, without a network for example.
    """
    if installed():
        return
    pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    for command in ([sys.executable, "-m", "venv", VENV], [*pip, "-r", REQUIREMENTS]):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerMissingError(f"Supervisor cannot be installed below build/: {done.stderr.strip()[-500:]}")
    (VENV / ".ready").touch()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path)


class Supervisord:
    """One supervisord with `count` programs; a context manager.

    Args:
        folder: Where everything is kept; made anew.
        count: How many programs.
        startsecs: Supervisor's setting: how long a program must run to count as started.
        spin: Whether the programs are busy.
        more: Further sections of its configuration; it cleans up after the programs of its own only.
    """

    def __init__(self, folder: Path, count: int, *, startsecs: int = 1, spin: bool = False, more: str = "") -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.count = count
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()
        self._hello = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._hello.bind(str(folder / "hello"))
        self._config = folder / "supervisord.conf"
        self._config.write_text(
            f"""
[supervisord]
nodaemon = true
logfile = {folder}/log
pidfile = {folder}/pid
childlogdir = {folder}
[unix_http_server]
file = {folder}/sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://{folder}/sock
[program:w]
command = {sys.executable} -I {PROGRAM}{" spin" if spin else ""}
process_name = %(program_name)s%(process_num)d
numprocs = {count}
startsecs = {startsecs}
autorestart = true
environment = BENCH_HELLO="{folder}/hello"
{more}
"""
        )

    def __enter__(self) -> Self:
        try:
            with open(self.folder / "output", "wb") as output:
                self._process = subprocess.Popen(
                    [VENV / "bin" / "supervisord", "-c", self._config],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            self.hellos(self.count)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of supervisord."""
        assert self._process is not None
        return self._process.pid

    def hellos(self, count: int) -> dict[int, float]:
        """Wait until so many programs have said that they run; return when each did (perf_counter), by pid.

        Raises:
            TimeoutError: They did not.
        """
        deadline = time.perf_counter() + SECONDS
        found: dict[int, float] = {}
        while len(found) < count:
            self._hello.settimeout(max(0.001, deadline - time.perf_counter()))
            pid = int(self._hello.recv(64))
            found[pid] = time.perf_counter()
            self._pids.add(pid)
        return found

    def forget(self, pids: set[int]) -> None:
        """Take note that these programs were seen gone."""
        self._pids -= pids

    @property
    def pids(self) -> set[int]:
        """The programs that run, as far as they have said so."""
        return set(self._pids)

    def start_all(self) -> None:
        """Start all programs, as soon as supervisord has noticed that the last ones are gone.

        Raises:
            TimeoutError: It does not notice.
        """
        deadline = time.monotonic() + SECONDS
        while any(info["statename"] != "STOPPED" for info in self.call("getAllProcessInfo")):
            if time.monotonic() > deadline:
                raise TimeoutError("supervisord does not notice that its programs have stopped")
            time.sleep(0.02)
        self.call("startAllProcesses", False)

    def stop_all(self) -> subprocess.Popen[bytes]:
        """Run ``supervisorctl stop all``; the caller waits for it."""
        return subprocess.Popen(
            [VENV / "bin" / "supervisorctl", "-c", self._config, "stop", "all"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def call(self, method: str, *arguments: Any) -> Any:
        """Call supervisord's own interface on its socket, without the cost of starting ``supervisorctl``."""
        with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(f"{self.folder}/sock")) as proxy:
            return getattr(proxy, f"supervisor.{method}")(*arguments)

    def close(self) -> None:
        """End it and what it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in self._pids:
            # Normally gone with supervisord; only one that still is our program is ended.
            try:
                if str(PROGRAM).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue
        self._pids.clear()
        self._hello.close()
