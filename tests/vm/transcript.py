"""What was done, with what result, in how many seconds: printed as it happens, and kept as a table."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PRINTING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the table."""

    what: str
    good: bool
    result: str
    seconds: float


class Transcript:
    """The steps of one scenario.

    Args:
        name: The scenario's.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Callable[[str], None]]:
        """Do something; what is told to the function that it gives is the result.

        An error in it is the result, and goes on up.
        """
        began = time.monotonic()
        said: list[str] = []
        try:
            yield said.append
        except BaseException as error:
            first = (str(error) or type(error).__name__).strip().splitlines()[0]
            self._add(Step(what, False, first[:300], time.monotonic() - began))
            raise
        self._add(Step(what, True, "; ".join(said) or "done", time.monotonic() - began))

    @property
    def good(self) -> bool:
        """Tell whether all steps were, and there were any."""
        return bool(self.steps) and all(step.good for step in self.steps)

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        mark = "ok  " if step.good else "FAIL"
        with _PRINTING:
            sys.stdout.write(f"{mark} {self.name:<9} {step.seconds:6.1f} s  {step.what}: {step.result}\n")
            sys.stdout.flush()

    def table(self) -> str:
        """Return the steps as a table in Markdown."""
        lines = [f"### {self.name}", "", "| | step | result | seconds |", "|---|---|---|---|"]
        for step in self.steps:
            result = step.result.replace("|", "/").replace("\n", " ")
            lines.append(f"| {'ok' if step.good else '**failed**'} | {step.what} | {result} | {step.seconds:.1f} |")
        return "\n".join([*lines, ""])
