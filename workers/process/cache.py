"""The facts of processes, least recently used ones forgotten first. Pure: time comes in as an argument."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final

from garrison.workers.process.facts import Process

KEEP_EXITED_SECONDS: Final = 60.0
"""How long the facts of an ended process stay, for its children's parent chains."""


class ProcessCache:
    """Processes by pid, fed by fork, exec and exit.

    Args:
        capacity: Most processes that are remembered, living and ended ones together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[int, Process] = OrderedDict()
        self._exited: deque[tuple[float, Process]] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Process]:
        return iter(self._entries.values())

    def get(self, pid: int) -> Process | None:
        """Return a process, ended ones included, and count that as a use."""
        entry = self._entries.get(pid)
        if entry is not None:
            self._entries.move_to_end(pid)
        return entry

    def peek(self, pid: int) -> Process | None:
        """Return a process without counting that as a use."""
        return self._entries.get(pid)

    def put(self, process: Process) -> None:
        """Remember a process in place of what was known of its pid."""
        self._entries[process.pid] = process
        self._entries.move_to_end(process.pid)
        self._trim()

    def fork(self, parent_pid: int, pid: int) -> Process:
        """Take a fork: the child has its parent's image until it executes something."""
        parent = self.get(parent_pid)
        child = Process(pid=pid, ppid=parent_pid, forked=True)
        if parent is not None and parent.exited is None:
            child.image = parent.image
            child.stamp = parent.stamp
            child.shell = parent.shell
        self.put(child)
        return child

    def exit(self, pid: int, now: float) -> Process | None:
        """Take an exit; the facts stay for a while. None where the process was not known."""
        entry = self._entries.get(pid)
        if entry is None or entry.exited is not None:
            return None
        entry.exited = now
        self._exited.append((now, entry))
        # A quarter of the room at most is for the dead, however many die.
        room = self.capacity // 4
        while self._exited and (len(self._exited) > room or now - self._exited[0][0] > KEEP_EXITED_SECONDS):
            self._forget(self._exited.popleft()[1])
        return entry

    def resize(self, capacity: int) -> None:
        """Change the capacity; what is too much goes at once."""
        self.capacity = capacity
        self._trim()

    def ancestors(self, process: Process, depth: int) -> Iterator[Process]:
        """Yield the known parents, nearest first, at most `depth`; a reused pid ends the chain."""
        for _ in range(depth):
            parent = self.get(process.ppid) if process.ppid else None
            if parent is None or parent.pid == process.pid:
                return
            if parent.start_ticks and process.start_ticks and parent.start_ticks > process.start_ticks:
                return
            yield parent
            process = parent

    def _trim(self) -> None:
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)

    def _forget(self, entry: Process) -> None:
        if self._entries.get(entry.pid) is entry and entry.exited is not None:
            del self._entries[entry.pid]
