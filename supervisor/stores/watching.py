"""inotify on a set of directories that is stated anew after each look at them.

Paths are watched, not inodes: each look adds the watches first and lists afterwards, so that what is created in
between shows as an event. Names that do not matter are filtered here, so that a neighbour's traffic costs a
read and no look.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass

import inotify_simple
from inotify_simple import INotify, flags

MASK = int(
    flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.CREATE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
"""CREATE is for directories and hard links, ATTRIB for a file that becomes readable. MODIFY is not asked for: a
value counts when its writer has closed it."""

SELF_MASK = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR)
_GONE = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED | flags.UNMOUNT)

SWAPPED_LINK = "..data"
"""The link that Kubernetes turns over to change all files of a volume at once; other names with a dot are nobody's."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.ENOSYS)


class ExhaustedError(Exception):
    """The kernel gives no inotify instance or watch. The caller polls; the text says what to raise."""


def ignored_name(name: str) -> bool:
    """Tell whether a file is an editor's or a tool's own: hidden files, backups, swap files."""
    if name == SWAPPED_LINK:
        return False
    return name.startswith((".", "#")) or name.endswith(("~", ".swp", ".swx", ".tmp", ".dpkg-new", ".rpmnew"))


@dataclass(frozen=True, slots=True)
class Seen:
    """What one read of the events has brought.

    Attributes:
        relevant: Something may have changed that matters; also after an overflow.
        gone: Watched directories that were deleted, moved or unmounted.
    """

    relevant: bool = False
    gone: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Watch:
    path: str
    names: frozenset[str] | None


class Watches:
    """The watches of one thread.

    Args:
        factory: Makes the inotify instance; another one only in tests of what its failure leads to.
    """

    def __init__(self, factory: Callable[[], INotify] | None = None) -> None:
        self._factory = factory or _new_inotify
        self._inotify: INotify | None = None
        self._now: dict[int, _Watch] = {}
        self._next: dict[int, _Watch] = {}

    def fileno(self) -> int | None:
        """Return the descriptor to poll, or None while there is no inotify."""
        return None if self._inotify is None else int(self._inotify.fileno())

    def begin(self) -> None:
        """Begin to state the set anew.

        Raises:
            ExhaustedError: There is no inotify instance to be had.
        """
        if self._inotify is None:
            try:
                self._inotify = self._factory()
            except OSError as error:
                raise _exhausted(error) from error
        self._next = {}

    def add(self, path: str, names: frozenset[str] | None = None, *, only_self: bool = False) -> bool:
        """Watch a directory. False: there is no directory of this name.

        Args:
            path: The directory; symbolic links are followed.
            names: The names in it that matter; None: all but those of `ignored_name`.
            only_self: Only its own removal matters.

        Raises:
            ExhaustedError: There are no watches left.
            OSError: The directory is denied or broken.
        """
        if self._inotify is None:
            raise ExhaustedError("inotify was not begun")
        try:
            wd = self._inotify.add_watch(path, SELF_MASK if only_self else MASK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            if error.errno in _EXHAUSTED:
                raise _exhausted(error) from error
            raise OSError(error.errno, error.strerror, path) from error
        wanted = frozenset() if only_self else names
        before = self._next.get(wd)  # one directory under two names
        if before is not None and wanted is not None:
            wanted = None if before.names is None else wanted | before.names
        self._next[wd] = _Watch(path, wanted)
        return True

    def commit(self) -> None:
        """Take the set as stated; what is no longer in it is not watched any more."""
        for wd in self._now.keys() - self._next.keys():
            self._remove(wd)
        self._now, self._next = self._next, {}

    def abandon(self) -> None:
        """Leave off stating the set: what was watched before and what has been added both stay watched."""
        self._now |= self._next
        self._next = {}

    def read(self) -> Seen:
        """Take the events that are there. Never waits."""
        if self._inotify is None:
            return Seen()
        relevant = False
        gone: set[str] = set()
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                relevant = True
                continue
            watch = self._now.get(event.wd)
            if watch is None:
                continue  # of a watch that was given up
            if event.mask & _GONE:
                gone.add(watch.path)
                relevant = True
                if event.mask & flags.IGNORED:
                    del self._now[event.wd]
            elif watch.names is None:
                relevant = relevant or not ignored_name(event.name)
            else:
                relevant = relevant or not event.name or event.name in watch.names or event.name == SWAPPED_LINK
        return Seen(relevant, frozenset(gone))

    def close(self) -> None:
        """Give everything back. `begin` starts afresh."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify = None
        self._now, self._next = {}, {}

    def _remove(self, wd: int) -> None:
        if self._inotify is None:
            return
        try:
            self._inotify.rm_watch(wd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: it went with its directory
                raise


class Waker:
    """Sleeps until inotify or another thread has something: an eventfd beside the watches."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def wake(self) -> None:
        """End the sleep, from any thread. Does nothing once closed."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def sleep(self, watches: Watches, seconds: float) -> bool:
        """Sleep until there are events, somebody wakes us, or the time is over. True: somebody did."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        fileno = watches.fileno()
        if fileno is not None:
            poll.register(fileno, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0, int(seconds * 1000 + 0.999)))}
        if self._fd not in ready:
            return False
        os.eventfd_read(self._fd)
        return True

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


def _new_inotify() -> INotify:
    # inotify_simple would look for the C library with ctypes.util.find_library, which runs ldconfig and even gcc.
    # A master that is itself short of everything must not depend on that; the library is mapped anyway.
    module = vars(inotify_simple)
    if module["_libc"] is None:
        module["_libc"] = ctypes.CDLL(None, use_errno=True)
    return INotify(nonblocking=True)


def _exhausted(error: OSError) -> ExhaustedError:
    what = "max_user_watches" if error.errno == errno.ENOSPC else "max_user_instances"
    return ExhaustedError(f"inotify is not available ({error.strerror}); raise fs.inotify.{what}")
