"""The agent inside of a machine: what it says of itself, and what the kernel says of it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tests.vm.machine import Machine, MachineError

START_SECONDS = 180.0
"""Emulated a start takes some 10 s on an idle machine; here a worker is up in 0.2 s."""
WORKERS = ("files", "process")
"""The built-in ones, which run where the configuration names none."""
_ASK = "/opt/garrison/bin/python3 -I -S /media/ask.py"


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
        answer = self.machine.json(f"{_ASK} {op} '{json.dumps(arguments)}'")
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
            return self.machine.until(what, look, seconds)
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
            "for each in /proc/[0-9]*; do"
            " case $(readlink $each/exe) in /opt/garrison/*) tr '\\0' ' ' < $each/cmdline; echo;; esac; done"
        ).splitlines()

    def cgroups(self) -> list[str]:
        """Return all cgroups with our name in any hierarchy."""
        return self.machine.run("find /sys/fs/cgroup -type d -path '*garrison*'").splitlines()

    def limits(self, pid: int) -> dict[str, int]:
        """Return the caps that the kernel has for a process: of its own cgroups, as they stand in /sys/fs/cgroup.

        Returns:
            ``cpu`` in percent of one core, ``memory`` in bytes, ``pids``.
        """
        paths = {}
        for line in self.machine.run(f"cat /proc/{pid}/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path))
        if "cpu" not in paths:
            node = f"/sys/fs/cgroup{paths['']}"
            cpu, memory, pids = self.machine.run(f"cat {node}/cpu.max {node}/memory.max {node}/pids.max").splitlines()
            quota, period = cpu.split()
        else:
            files = (
                f"/sys/fs/cgroup/cpu{paths['cpu']}/cpu.cfs_quota_us",
                f"/sys/fs/cgroup/cpu{paths['cpu']}/cpu.cfs_period_us",
                f"/sys/fs/cgroup/memory{paths['memory']}/memory.limit_in_bytes",
                f"/sys/fs/cgroup/pids{paths['pids']}/pids.max",
            )
            quota, period, memory, pids = self.machine.run(f"cat {' '.join(files)}").splitlines()
        return {"cpu": int(quota) * 100 // int(period), "memory": int(memory), "pids": int(pids)}

    def cpu_seconds(self, pid: int) -> float:
        """Return the CPU time that a process has used, all threads, from /proc."""
        fields = self.machine.run(f"cat /proc/{pid}/stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100
