"""The agent inside of a machine: what it says of itself, and what the kernel says of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.vm.machine import Machine, MachineError

START_SECONDS = 180.0
"""Emulated a start takes some 10 s on an idle machine; here a worker is up in 0.2 s."""
WORKERS = ("files", "process")
"""The built-in ones, which run where the configuration names none."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the kernel says of a process.

    Attributes:
        cgroup: Its ``/proc/PID/cgroup``.
        status: Its ``/proc/PID/status``, by key.
        limits: Of its own cgroups, as they stand in /sys/fs/cgroup: ``cpu`` in percent of one core, ``memory`` in
            bytes, ``pids``. Where there is none it is negative.
    """

    cgroup: str
    status: dict[str, str]
    limits: dict[str, int]


class Agent:
    """Questions to the agent of a machine.

    Args:
        machine: Where it runs.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def ask(self, op: str, **arguments: Any) -> Any:
        """Send a request to the agent's socket and return its result.

        Raises:
            MachineError: It does not answer, or refuses.
        """
        said = self.machine.talk(json.dumps({"op": op, "args": arguments}))
        if said.status != 0:
            raise MachineError(f"{op}: {said.output}")
        answer = json.loads(said.output)
        if not answer["ok"]:
            raise MachineError(f"{op}: {answer['error']['message']}")
        return answer["result"]

    def status(self) -> dict[str, Any] | None:
        """Return the status; None where nobody answers."""
        try:
            found = self.ask("status")
        except MachineError:
            return None
        assert isinstance(found, dict)
        return found

    def version(self) -> str:
        """Return the version that runs."""
        return str((self.status() or {"agent": {"version": "none"}})["agent"]["version"])

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the workers' part of the status by name; empty where nobody answers."""
        return {worker["name"]: worker for worker in (self.status() or {"workers": []})["workers"]}

    def wait_running(
        self, names: Collection[str] = WORKERS, seconds: float = START_SECONDS
    ) -> dict[str, dict[str, Any]]:
        """Wait until workers run; return them.

        Raises:
            MachineError: They did not, in the time.
        """
        return self.wait(
            f"{', '.join(names)} run",
            lambda workers: all(name in workers and workers[name]["state"] == "running" for name in names),
            seconds,
        )

    def wait(self, what: str, test: Any, seconds: float = START_SECONDS) -> dict[str, dict[str, Any]]:
        """Wait until a test of the workers holds; return them.

        Raises:
            MachineError: It did not, in the time.
        """
        last: dict[str, dict[str, Any]] = {}

        def look() -> dict[str, dict[str, Any]]:
            last.clear()
            last.update(self.workers())
            return last if last and test(last) else {}

        try:
            return self.machine.until(what, look, seconds, 1)
        except MachineError as error:
            states = {name: (worker["state"], worker.get("last_error")) for name, worker in last.items()}
            raise MachineError(f"{error}; it is {states}; {self.log()}") from None

    def log(self) -> str:
        """Return the end of the unit's journal."""
        return self.machine.try_run("journalctl -u garrison --no-pager -o cat | tail -n 25").output

    def show(self, *properties: str) -> list[str]:
        """Return what systemd says of the unit, in the order asked."""
        flags = " ".join(f"-p {name}" for name in properties)
        found = dict(
            line.partition("=")[::2] for line in self.machine.run(f"systemctl show garrison {flags}").splitlines()
        )
        return [str(found[name]) for name in properties]

    def processes(self) -> list[str]:
        """Return the names of all processes on the package's interpreter, by the file that they run."""
        return self.machine.run(
            "ls -l /proc/[0-9]*/exe 2> /dev/null | sed -n 's,.* /proc/\\([0-9]*\\)/exe -> /opt/garrison/.*,\\1,p' |"
            " while read pid; do tr '\\0' ' ' < /proc/$pid/cmdline; echo; done"
        ).splitlines()

    def cgroups(self) -> list[str]:
        """Return all cgroups with our name in any hierarchy."""
        return self.machine.run("find /sys/fs/cgroup -type d -path '*garrison*'").splitlines()

    def facts(self, pids: Iterable[int]) -> list[Facts]:
        """Return what the kernel says of processes, in the order asked."""
        ordered = list(pids)
        told = self.machine.run(
            "".join(f"cat /proc/{pid}/cgroup; echo =; cat /proc/{pid}/status; echo =;" for pid in ordered)
        ).split("=\n")
        nodes = [_nodes(text) for text in told[:-1:2]]
        limits = self.machine.run(
            "".join(f"cat {' '.join(files)} | tr '\\n' ' '; echo;" for files in nodes)
        ).splitlines()
        return [
            Facts(cgroup, dict(_pairs(status)), _limits(line))
            for cgroup, status, line in zip(told[:-1:2], told[1::2], limits, strict=True)
        ]

    def cpu_seconds(self, pid: int) -> tuple[float, float]:
        """Return the CPU time that a process has used, all threads, and the machine's uptime at that."""
        uptime, stat = self.machine.run(f"cat /proc/uptime /proc/{pid}/stat").splitlines()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100, float(uptime.split()[0])


def _nodes(cgroup: str) -> tuple[str, ...]:
    """Return the files with the caps of the cgroups that a ``/proc/PID/cgroup`` names."""
    paths = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    if "cpu" not in paths:
        return tuple(f"/sys/fs/cgroup{paths['']}/{name}" for name in ("cpu.max", "memory.max", "pids.max"))
    return (
        f"/sys/fs/cgroup/cpu{paths['cpu']}/cpu.cfs_quota_us",
        f"/sys/fs/cgroup/cpu{paths['cpu']}/cpu.cfs_period_us",
        f"/sys/fs/cgroup/memory{paths['memory']}/memory.limit_in_bytes",
        f"/sys/fs/cgroup/pids{paths['pids']}/pids.max",
    )


def _limits(values: str) -> dict[str, int]:
    quota, period, memory, pids = (int(value) if value.isdigit() else -1 for value in values.split())
    return {"cpu": quota * 100 // period, "memory": memory, "pids": pids}


def _pairs(status: str) -> Iterator[tuple[str, str]]:
    for line in status.splitlines():
        key, _, value = line.partition(":")
        yield key, value.strip()
