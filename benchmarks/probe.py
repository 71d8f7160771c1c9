"""A process outside of everything that is measured, and what it feels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

PROGRAM = Path(__file__).parent / "peers" / "probe.py"


class Probe:
    """A neighbour that sleeps briefly and sees how late it wakes, or that works and sees how fast it is.

    Args:
        kind: ``latency`` or ``work``.
    """

    def __init__(self, kind: Literal["latency", "work"]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def measure(self, seconds: float) -> dict[str, float]:
        """Measure for so long; return what the program says."""
        self._say(f"{seconds}")
        return self._answer()

    def begin(self) -> None:
        """Measure until `end`."""
        self._say("begin")

    def end(self) -> dict[str, float]:
        """Return what was measured since `begin`."""
        self._say("end")
        return self._answer()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found


def speed(found: dict[str, float]) -> float:
    """Return pieces of work a second."""
    return found["count"] / found["seconds"]
