"""Looking at processes from outside: their end through pidfds, their CPU time and memory through /proc."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self


class Gone:
    """Waits for the last of several processes to end. Opened before the shot, so that no pid can be mistaken.

    A pidfd becomes readable when the process has exited, whether or not anybody has reaped it, and whoever asks.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._poll = select.poll()
        self._fds: set[int] = set()
        self._open: list[int] = []
        for pid in pids:
            fd = os.pidfd_open(pid)
            self._open.append(fd)
            self._fds.add(fd)
            self._poll.register(fd, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for fd in self._open:
            os.close(fd)

    def wait(self, seconds: float) -> float:
        """Return the time (perf_counter) at which the last one was seen gone.

        Raises:
            TimeoutError: Some are still there after `seconds`.
        """
        deadline = time.perf_counter() + seconds
        while self._fds:
            ready = self._poll.poll(max(0.0, (deadline - time.perf_counter()) * 1000))
            if not ready:
                raise TimeoutError(f"{len(self._fds)} of {len(self._open)} processes are still there after {seconds} s")
            for fd, _ in ready:
                self._poll.unregister(fd)
                self._fds.discard(fd)
        return time.perf_counter()


@dataclass(frozen=True)
class Usage:
    """What some processes have used since they started.

    Attributes:
        cpu_seconds: Time on a CPU, all threads.
        wakeups: How often a thread has given the CPU away by itself to wait: each is followed by one wakeup.
    """

    cpu_seconds: float = 0.0
    wakeups: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_seconds + other.cpu_seconds, self.wakeups + other.wakeups)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu_seconds - other.cpu_seconds, self.wakeups - other.wakeups)


def busy_percent(pids: Collection[int], seconds: float) -> float:
    """Let processes alone for some time; return what they used meanwhile, percent of one core."""
    used, begin = usage(pids), time.monotonic()
    time.sleep(seconds)
    return (usage(pids) - used).cpu_seconds / (time.monotonic() - begin) * 100


def usage(pids: Iterable[int]) -> Usage:
    """Return what the living threads of some processes have used, to the nanosecond (schedstat)."""
    total = Usage()
    for pid in pids:
        for tid in os.listdir(f"/proc/{pid}/task"):
            task = f"/proc/{pid}/task/{tid}"
            try:
                with open(f"{task}/schedstat", encoding="ascii") as file:
                    nanoseconds = int(file.read().split()[0])
                with open(f"{task}/status", encoding="utf-8", errors="replace") as file:
                    switches = next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between the listing and the look
            total += Usage(nanoseconds / 1e9, switches)
    return total


def pss_mib(pid: int) -> float:
    """Return the proportional set size of a process, MiB: shared pages divided among those who share them."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process, MiB."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024
