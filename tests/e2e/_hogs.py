"""The misbehaving workers of `tests/misbehaving/hogs.py`: what each is for, and a yard to let them loose in."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from garrison.supervisor.control.protocol import ControlError
from tests.e2e._agent import RunningAgent, module, until

SHORT = {"sample_seconds": 0.2, "cpu_trip_samples": 5, "beat_seconds": 0.5}
"""The times of a budget, as short as they mean something: the policy is the same, only sooner."""
ROOMY = {"cpu_quota_percent": 100, "cpu_trip_percent": 100}
"""For those that are to trip over something else than the CPU that they burn meanwhile."""
FLOODED = {"events_per_second": 50}
SCALED = Path(__file__).with_name("_scaled.py")
DIVISOR = 30
"""What the breaker's times are divided by: a cool-down of 30 s is one of 1 s."""


@dataclass(frozen=True)
class Hog:
    """One misbehaving worker.

    Attributes:
        name: The worker's name.
        kind: Its class in `hogs.py`, or its way in `external_hog.py`.
        causes: What may trip it; empty: nothing may.
        budget: What differs from `SHORT`.
        settings: Beside the switch.
        external: Whether it is a program of its own.
    """

    name: str
    kind: str
    causes: tuple[str, ...]
    budget: tuple[tuple[str, float], ...] = ()
    settings: tuple[tuple[str, float], ...] = ()
    external: bool = False

    def toml(self) -> str:
        """Return its table; ``@`` is the agent's folder."""
        budget = {**SHORT, **dict(self.budget)}
        switch = f"@/switches/{self.name}"
        if self.external:
            command = [
                sys.executable,
                "-S",
                "@/modules/external_hog.py",
                self.kind,
                switch,
                str(budget["beat_seconds"]),
            ]
            what = f"command = {command}\n"
        else:
            settings = {"switch": switch, **dict(self.settings)}
            what = f'modules = ["{module("hogs", self.kind)}"]\nsettings = {inline(settings)}\n'
        return f"[workers.{self.name}]\n{what}budget = {inline(budget)}\n"


def inline(table: dict[str, Any]) -> str:
    """Return a table of strings and numbers as inline TOML."""
    return "{" + ", ".join(f"{key} = {value!r}" for key, value in table.items()) + "}"


def hog(name: str, kind: str, *causes: str, external: bool = False, settings: Any = (), **budget: float) -> Hog:
    return Hog(name, kind, causes, tuple(budget.items()), tuple(dict(settings).items()), external)


MIB = 1024 * 1024
HOGS = (
    hog("cpu-hog", "CpuHog", "cpu"),
    hog("slow-leak", "SlowLeak", "memory", memory_high=24 * MIB, **ROOMY),
    hog("allocation-burst", "AllocationBurst", "oom", **ROOMY),
    hog("fork-bomb", "ForkBomb", "pids", **ROOMY),
    hog("fd-leak", "FdLeak", "fds", **ROOMY),
    hog("thread-leak", "ThreadLeak", "pids", **ROOMY),
    hog("event-flood", "EventFlood", "flood", **ROOMY, **FLOODED),
    hog("log-flood", "LogFlood", "cpu", "flood"),
    hog("ignores-term", "IgnoresTerm", "cpu"),
    hog("hang", "Hang", "hang"),
    hog("silent", "hang", "hang", external=True),
    hog("exits-at-once", "ExitsAtOnce", "crash"),
    hog("garbage", "Garbage", "protocol", **ROOMY),
    hog("escapees", "Escapees", "cpu"),
    hog("external-spin", "spin", "cpu", external=True),
)
"""Those that trip."""
BEHAVED = (
    hog("exits-later", "ExitsLater", settings={"after_seconds": 60.0 / DIVISOR + 0.5}),
    hog("paced", "Paced"),
    hog("bursty", "Bursty", settings={"burst_seconds": 0.3, "rest_seconds": 1.0}),
)
"""Those that must not."""
HEALTHY = (
    f'[workers.healthy]\nmodules = ["{module("healthy", "Healthy")}"]\nessential = true\n'
    "[workers.healthy.settings]\nevery_seconds = 1.0\n[workers.healthy.budget]\nbeat_seconds = 1.0\n"
)


class Follower:
    """Follows the events of an agent over its control socket, as a consumer does.

    Args:
        agent: It runs; when it ends, so does this.

    Attributes:
        seen: Each event with the time at which it came, monotonic seconds.
        error: Why the stream ended; None while it goes on.
    """

    def __init__(self, agent: RunningAgent) -> None:
        self.seen: list[tuple[float, dict[str, Any]]] = []
        self.error: ControlError | None = None
        self._client = agent.client
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._client.stream("events", follow=True, last=1, kinds=[], workers=[]):
                if isinstance(item, msgspec.Raw):
                    self.seen.append((time.monotonic(), msgspec.json.decode(bytes(item))))
        except ControlError as error:
            self.error = error  # the agent has ended, and the stream with it; or there was none

    def states(self, worker: str, *actions: str, since: float = 0.0) -> list[tuple[float, dict[str, Any]]]:
        """Return the transitions of a worker into these states (all, where none is named), oldest first."""
        return [
            (at, event)
            for at, event in list(self.seen)
            if at >= since
            and event["event"]["kind"] == "state"
            and event.get("garrison", {}).get("worker") == worker
            and (not actions or event["event"]["action"].removeprefix("worker-") in actions)
        ]

    def ticks(self, since: float = 0.0, until: float = math.inf) -> dict[int, float]:
        """Return when each tick of the healthy worker came, by its number."""
        return {
            event["garrison"]["number"]: at
            for at, event in list(self.seen)
            if since <= at <= until and event["event"]["action"] == "tick"
        }


def lateness(ticks: dict[int, float], period: float) -> float:
    """Return by how much the latest of some ticks came later than a period after the one before; seconds.

    Raises:
        AssertionError: One is missing.
    """
    numbers = sorted(ticks)
    assert numbers, "no sign of life came"
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), f"a sign of life is missing: {numbers}"
    times = [ticks[number] for number in numbers]
    return max((after - before - period for before, after in itertools.pairwise(times)), default=0.0)


def cpu_clock(agent: RunningAgent, node: str = "") -> Callable[[], float]:
    """Return what tells the CPU seconds that a node of the agent has used, ``/workers/NAME`` or all of it."""
    for folder in agent.nodes():
        if folder.endswith(f"{agent.root}{node}"):
            usage, stat = Path(folder, "cpuacct.usage"), Path(folder, "cpu.stat")
            if usage.exists():
                return lambda: int(usage.read_text()) / 1e9
            if stat.exists() and stat.read_text().startswith("usage_usec"):
                return lambda: int(stat.read_text().split()[1]) / 1e6
    raise AssertionError(f"no node {node} tells its CPU time: {agent.nodes()}")


class Yard:
    """Lets the hogs of one agent loose and calls them back.

    Args:
        agent: Its folder gets a folder of switches.
    """

    def __init__(self, agent: RunningAgent) -> None:
        self.agent = agent
        self.folder = agent.folder / "switches"
        self.folder.mkdir()

    def start(self, divisor: float | None = DIVISOR) -> None:
        """Start the agent, on a scaled clock unless the divisor is None."""
        if divisor is None:
            self.agent.start()
        else:
            command = [sys.executable, str(SCALED), str(divisor), "--config", str(self.agent.config)]
            self.agent.start(command=command)

    def loose(self, *names: str) -> None:
        """Have them do harm."""
        for name in names:
            (self.folder / f"{name}.began").unlink(missing_ok=True)
            (self.folder / name).touch()

    def began(self, name: str) -> float:
        """Wait until it has begun; return when (monotonic seconds)."""

        def look() -> float:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return float((self.folder / f"{name}.began").read_text())
            return 0.0

        return float(until(look, f"{name} begins"))

    def call_back(self, *names: str) -> None:
        """Have them behave again."""
        for name in names or [path.name for path in self.folder.iterdir() if not path.suffix]:
            (self.folder / name).unlink(missing_ok=True)


def among(hogs: Iterable[Hog], beat_seconds: float) -> str:
    """Return the tables of a healthy worker that ticks each half second and of hogs, with the budgets' own times."""
    budget = f"budget = {{sample_seconds = 5, beat_seconds = {beat_seconds:g}}}"
    healthy = HEALTHY.replace("every_seconds = 1.0", "every_seconds = 0.5").replace("beat_seconds = 1.0", "")
    return healthy + "".join(f"{one.toml().partition('budget = ')[0]}{budget}\n" for one in hogs)


@contextlib.contextmanager
def foreign_hogs(seconds: float) -> Iterator[None]:
    """Burn all CPUs from outside of every group of ours, for so many seconds at most."""
    spin = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    # More than there are CPUs, so that the harness takes none of them away.
    count = 3 * (os.cpu_count() or 1)
    hogs = [subprocess.Popen([sys.executable, "-I", "-S", "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for one in hogs:
            one.kill()
        for one in hogs:
            one.wait()
