"""Simulated agents in processes of their own: started at a bounded rate, asked what they have seen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e._agent import until
from tests.etcd.cluster import Cluster

PER_PROCESS = 50
"""Of each agent's threads not one computes anything, but all of a process share one interpreter lock."""
STARTS_PER_SECOND = 30.0
SEEN_SECONDS = 120.0
PROGRAM = Path(__file__).parent / "peers" / "swarm.py"


class Processes:
    """Simulated agents in as many processes as it takes.

    Args:
        cluster: Whose members they use, each the one that its hostname says.
        count: How many agents.
        log: File for what they log.
    """

    def __init__(self, cluster: Cluster, count: int, log: Path) -> None:
        self.count = count
        self._log = log
        firsts = range(0, count, PER_PROCESS)
        between = 1 / STARTS_PER_SECOND
        self._processes: list[subprocess.Popen[str]] = []
        for turn, first in enumerate(firsts):
            how = {
                "endpoints": cluster.endpoints,
                "first": first,
                "count": min(PER_PROCESS, count - first),
                "delay": turn * between,
                "pace": len(firsts) * between,
            }
            with log.open("ab") as file:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-I", str(PROGRAM), json.dumps(how)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        text=True,
                    )
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Nobody is left to be told: their etcd is thrown away.
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid for process in self._processes]

    def ask(self, question: str) -> list[Any]:
        """Return what each process answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{question}\n")
            process.stdin.flush()
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                said = self._log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"a process of simulated agents has ended with {process.wait()}: {said}")
            answers.append(json.loads(line))
        return answers

    def state(self) -> dict[str, int]:
        """Return how many are ``connected`` and ``registered``, and how many ``sessions`` they have begun."""
        states = self.ask("state")
        return {name: sum(state[name] for state in states) for name in ("connected", "registered", "sessions")}

    def ready(self) -> bool:
        """Tell whether all are connected and registered; not in a hurry, because they share the machine."""
        time.sleep(0.5)
        state = self.state()
        return state["connected"] == state["registered"] == self.count

    def times(self, question: str) -> list[float]:
        """Wait until all have done something; return when each of them did, monotonic seconds, in order."""

        def look() -> list[float]:
            time.sleep(0.5)  # who asks them keeps them from working
            found = [at for answer in self.ask(question) for at in answer]
            return sorted(found) if None not in found else []

        done: list[float] = until(look, f"all {self.count} agents have seen it", SEEN_SECONDS)
        return done
