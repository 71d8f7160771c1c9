"""Notifiers of OOM kills: an eventfd on v1, inotify on v2. Both become readable, which suits any event loop."""

from __future__ import annotations

import contextlib
import os

from garrison.supervisor.cgroups.base import OomWatch
from garrison.supervisor.cgroups.kill import write


class EventfdWatch(OomWatch):
    """v1: an eventfd that the kernel counts up when the node, or one above it, runs out of memory.

    It is also counted up when the node is removed: whoever is told reads the counters and finds nothing.

    Args:
        directory: The node in the memory hierarchy.
        file: What is watched: ``memory.oom_control``, or ``memory.usage_in_bytes`` for passing a threshold.
        argument: What the file takes with the registration: the threshold, bytes.

    Raises:
        OSError: The node is gone, or the kernel has no ``cgroup.event_control``.
    """

    def __init__(self, directory: str, file: str = "memory.oom_control", argument: str = "") -> None:
        self._count = 0
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            control = os.open(os.path.join(directory, file), os.O_RDONLY | os.O_CLOEXEC)
            try:
                # The kernel keeps the registration when the second descriptor is closed.
                registration = f"{self._fd} {control} {argument}".rstrip()
                write(os.path.join(directory, "cgroup.event_control"), registration)
            finally:
                os.close(control)
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """Return the eventfd, or -1 once closed."""
        return self._fd

    def drain(self) -> None:
        """Set the eventfd's count back to 0."""
        with contextlib.suppress(BlockingIOError):
            self._count += os.eventfd_read(self._fd)

    def count(self) -> int:
        """Return how many notices there were since this was made."""
        if self._fd >= 0:
            self.drain()
        return self._count

    def close(self) -> None:
        """Close the eventfd, which ends the registration. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class EventsFileWatch(OomWatch):
    """v2: inotify on ``memory.events``, which the kernel notifies for every kind of event in it.

    The file itself can be polled for POLLPRI, but an event loop that knows only *readable* would spin on it.

    Args:
        path: The file.

    Raises:
        OSError: The node is gone, or the user has no inotify instance left.
    """

    def __init__(self, path: str) -> None:
        from inotify_simple import INotify, flags

        self._inotify = INotify(nonblocking=True)
        try:
            self._inotify.add_watch(path, flags.MODIFY)
        except OSError:
            self._inotify.close()
            raise

    def fileno(self) -> int:
        """Return the inotify descriptor, or -1 once closed."""
        return -1 if self._inotify.closed else int(self._inotify.fileno())

    def drain(self) -> None:
        """Read what is queued."""
        self._inotify.read(timeout=0)

    def close(self) -> None:
        """Close the inotify descriptor. Idempotent."""
        self._inotify.close()
