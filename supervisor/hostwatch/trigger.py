"""A pressure trigger: the kernel's word that tasks begin to wait for memory, sooner than the next look would see it."""

from __future__ import annotations

import contextlib
import os
import select

STALL_US = 150_000
WINDOW_US = 2_000_000
"""150 ms of waiting within 2 s. The kernel notifies once a window at most, and takes only multiples of 2 s from who has
not CAP_SYS_RESOURCE (since Linux 6.4; before, it took nothing from them)."""


class MemoryTrigger:
    """Becomes readable when some task of the host has waited for memory for `STALL_US` in `WINDOW_US`.

    The kernel notifies as POLLPRI, which event loops that know only *readable* do not see; an epoll descriptor that
    watches for it is itself readable then.

    Args:
        path: The pressure file.

    Raises:
        OSError: PSI is off or absent, or the user may not.
    """

    def __init__(self, path: str = "/proc/pressure/memory") -> None:
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # The kernel puts its final NUL in place of the last byte that it is given.
            os.write(self._file, f"some {STALL_US} {WINDOW_US}\0".encode())
            self._poll = select.epoll()
            self._poll.register(self._file, select.EPOLLPRI)
        except OSError:
            os.close(self._file)
            raise

    def fileno(self) -> int:
        """Return a descriptor that becomes readable."""
        return self._poll.fileno()

    def drain(self) -> bool:
        """Take the notification. False: the trigger is dead and must be closed (its file reports an error)."""
        return all(not events & select.EPOLLERR for _, events in self._poll.poll(0))

    def close(self) -> None:
        """End the trigger. Idempotent."""
        if not self._poll.closed:
            self._poll.close()
            with contextlib.suppress(OSError):
                os.close(self._file)
