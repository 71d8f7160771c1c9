"""A real `garrisond` for measurements: the harness of the whole-agent tests with modules of its own."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Self

import msgspec

from garrison.supervisor.control.protocol import ControlError
from tests.e2e._agent import RunningAgent, until

HERE = Path(__file__).parent
SECONDS = 30.0


def idle(name: str) -> str:
    """Return the TOML of an idle worker."""
    return f'[workers.{name}]\nmodules = ["@/modules/bench_idle.py:Idle"]\n'


class Agent:
    """One running agent; a context manager that leaves nothing behind.

    Args:
        folder: Where everything is kept; made anew.
        workers: TOML of the workers; ``@`` is the agent's folder.
        agent: More lines for ``[agent]``.
        more: More TOML at the end.
    """

    def __init__(self, folder: Path, workers: str, agent: str = "", more: str = "") -> None:
        self.running = RunningAgent(folder, workers, agent, more)
        self.folder = folder
        for source in (*(HERE / "workers").glob("*.py"), HERE / "peers" / "pusher.py"):
            target = folder / "modules" / source.name
            shutil.copyfile(source, target)
            target.chmod(0o644)

    def __enter__(self) -> Self:
        try:
            self.running.start()
        except BaseException:
            self.running.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.running.cleanup()

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the workers of the status document, by name."""
        return {worker["name"]: worker for worker in self.running.client.call("status")["workers"]}

    def wait_running(self) -> dict[str, int]:
        """Wait until all workers run; return their pids by name.

        Raises:
            AssertionError: They do not, with the agent's own words.
        """

        def look() -> dict[str, int]:
            workers = self.workers()
            running = all(worker["state"] == "running" and worker["pid"] for worker in workers.values())
            return {name: worker["pid"] for name, worker in workers.items()} if running else {}

        try:
            found: dict[str, int] = until(look, "all workers run", SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.running.errors()[-3000:]}") from None
        return found

    def nursery(self) -> int:
        """Return the nursery's pid."""
        children = Path(f"/proc/{self.running.pid}/task/{self.running.pid}/children").read_text().split()
        return next(int(pid) for pid in children if b"nursery" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def configure(self, worker: str, settings: dict[str, Any]) -> None:
        """Give a worker settings, through the store as an operator would."""
        self.running.put(f"agent/config/{self.running.host}/plugin/{worker}/settings", json.dumps(settings))


class StateEvents:
    """Follows the agent's own events over its control socket, each with the time at which it came (perf_counter)."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.host = agent.running.host
        self._queue: queue.SimpleQueue[tuple[float, dict[str, Any]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="state events", daemon=True)
        self._thread.start()
        # Whatever happens after this call is seen: the stream has begun when something of it has come.
        self._subscribed = False

    def _run(self) -> None:
        try:
            for item in self._agent.running.client.stream("events", follow=True, last=1, kinds=["state"], workers=[]):
                now = time.perf_counter()
                if isinstance(item, msgspec.Raw):
                    self._queue.put((now, json.loads(bytes(item))))
        except ControlError:
            return  # the agent has ended, and with it the stream

    def begin(self) -> None:
        """Wait until the stream has begun, and forget what came so far."""
        if not self._subscribed:
            self._queue.get(timeout=SECONDS)
            self._subscribed = True
        while not self._queue.empty():
            self._queue.get_nowait()

    def wait(self, worker: str, action: str) -> float:
        """Return when the event of a worker came.

        Raises:
            queue.Empty: It did not come in time.
        """
        deadline = time.perf_counter() + SECONDS
        while True:
            at, event = self._queue.get(timeout=max(0.0, deadline - time.perf_counter()))
            if event["event"]["action"] == action and event.get("garrison", {}).get("worker") == worker:
                return at
