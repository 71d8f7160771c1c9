"""The table of living processes as of the last look at /proc, and what a new look says has changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

from garrison.workers.process.procfs import Stat, read_stat

MAX_PROCESSES: Final = 32_768
"""Most processes that are remembered: about 5 MB. Beyond it only processes started since the last look count."""

SLICE: Final = 64
"""Processes looked at between two chances for other work."""

_STAMP_BITS: Final = 64
_STAMP_MASK: Final = (1 << _STAMP_BITS) - 1

Change = Literal["exec", "fork", "exit"]


class Seen(NamedTuple):
    """One difference to the last look; `stat` is None for an exit."""

    change: Change
    pid: int
    stat: Stat | None


class ProcessTable:
    """Which processes live, each with its start and the stamp of its last exec.

    An exec without a fork shows as another stamp, a fork without an exec as the parent's stamp. Where the
    kernel does not show stamps (no ptrace access) each new process counts as an exec, and a second exec of a
    process is not seen.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._newest = 0

    def __len__(self) -> int:
        return len(self._known)

    def note(self, pid: int, start_ticks: int, stamp: int) -> None:
        """Remember a process that was reported by other means."""
        if len(self._known) < MAX_PROCESSES or pid in self._known:
            self._known[pid] = _pack(start_ticks, stamp)

    def forget(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._known.pop(pid, None)

    def has(self, pid: int, start_ticks: int, stamp: int) -> bool:
        """Return whether this very exec is known."""
        return self._known.get(pid) == _pack(start_ticks, stamp)

    def scan(
        self, *, list_pids: Callable[[], list[int]] | None = None, stat: Callable[[int], Stat | None] = read_stat
    ) -> Iterator[Seen | None]:
        """Yield the differences, and None after every `SLICE` processes.

        Args:
            list_pids: Returns the pids there are; /proc by default.
            stat: Returns the stat of one.
        """
        pids = (list_pids or living_pids)()
        known = self._known
        present = set(pids)
        newest = self._newest
        for pid in [pid for pid in known if pid not in present]:
            # Again, for the table changes while this generator waits.
            if known.pop(pid, None) is not None:
                yield Seen("exit", pid, None)
        for index, pid in enumerate(pids, 1):
            facts = stat(pid)
            if facts is not None:
                newest = max(newest, facts.start_ticks)
                yield from self._compare(pid, facts)
            if not index % SLICE:
                yield None
        self._newest = newest

    def _compare(self, pid: int, facts: Stat) -> Iterator[Seen]:
        value = _pack(facts.start_ticks, facts.stamp)
        before = self._known.get(pid)
        if before == value:
            return
        if before is None:
            if len(self._known) >= MAX_PROCESSES:
                if facts.start_ticks <= self._newest:
                    return
            else:
                self._known[pid] = value
        else:
            self._known[pid] = value
            if before >> _STAMP_BITS == facts.start_ticks:
                # A stamp that has become unreadable or readable is a change of rights, not an exec.
                if facts.stamp and before & _STAMP_MASK:
                    yield Seen("exec", pid, facts)
                return
            yield Seen("exit", pid, None)
        if facts.kernel:
            return
        parent = self._known.get(facts.ppid)
        forked = facts.stamp and parent is not None and parent & _STAMP_MASK == facts.stamp & _STAMP_MASK
        yield Seen("fork" if forked else "exec", pid, facts)


def living_pids() -> list[int]:
    """Return the pids in /proc, in ascending order, so that parents mostly come before their children."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _pack(start_ticks: int, stamp: int) -> int:
    return start_ticks << _STAMP_BITS | (stamp & _STAMP_MASK)
