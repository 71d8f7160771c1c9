"""When a living process is looked at again: soon after its exec, and then round and round. Pure."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Final

from garrison.workers.process.facts import Process

YOUNG_SECONDS: Final = 1.0
"""After so long a process is looked at for the first time again: droppers delete themselves right after the start."""

MAX_YOUNG: Final = 4096
MAX_SHELLS: Final = 1024
SHELL_SECONDS: Final = 15.0
SWEEP_SECONDS: Final = 300.0


class Rechecks:
    """Queues of processes to look at again, all of them bounded.

    `alive` decides whether an entry is still the process it was; stale ones fall out here.
    """

    def __init__(self) -> None:
        self._young: deque[tuple[float, Process]] = deque()
        self._shells: deque[Process] = deque()
        self._sweep: deque[Process] = deque()
        self.skipped = 0
        """Processes that were not queued because a queue was full."""

    def add(self, process: Process, now: float) -> None:
        """Look at a process again `YOUNG_SECONDS` from now."""
        if len(self._young) >= MAX_YOUNG:
            self._young.popleft()
            self.skipped += 1
        self._young.append((now + YOUNG_SECONDS, process))

    def add_shell(self, process: Process) -> None:
        """Look at a shell every `SHELL_SECONDS` from now on."""
        if len(self._shells) >= MAX_SHELLS:
            self._shells.popleft()
            self.skipped += 1
        self._shells.append(process)

    def young(self, now: float, limit: int = MAX_YOUNG) -> list[Process]:
        """Return the processes whose first look is due, at most `limit`."""
        due: list[Process] = []
        while self._young and self._young[0][0] <= now and len(due) < limit:
            due.append(self._young.popleft()[1])
        return due

    def shells(self, elapsed: float) -> list[Process]:
        """Return this turn's share of the shells, `elapsed` seconds after the last turn.

        The caller adds those that live again.
        """
        share = min(len(self._shells), ceil(len(self._shells) * elapsed / SHELL_SECONDS))
        return [self._shells.popleft() for _ in range(share)]

    def sweep(self, everything: list[Process] | None, elapsed: float) -> list[Process]:
        """Return this turn's share of all processes.

        Args:
            everything: The processes there are now, to begin a new round with; only taken where `sweep_done`.
            elapsed: Seconds since the last turn.
        """
        if everything is not None and not self._sweep:
            self._sweep.extend(everything)
            self._round = len(everything)
        share = min(len(self._sweep), ceil(self._round * elapsed / SWEEP_SECONDS))
        return [self._sweep.popleft() for _ in range(share)]

    @property
    def sweep_done(self) -> bool:
        """Whether the round over all processes has ended."""
        return not self._sweep

    _round = 0
