"""A thread's doorbell: an eventfd that wakes a poll from any other thread or a signal handler."""

from __future__ import annotations

import contextlib
import os


class Wakeup:
    """Wakes whoever polls `fileno`. Any number of rings before a `clear` are one."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._fd

    def set(self) -> None:
        """Ring. Safe from any thread and from a signal handler; never blocks."""
        # EAGAIN means that the counter is full: then it has been rung 2**64 times and nobody can miss it.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Take all rings so far."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
