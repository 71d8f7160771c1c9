"""inotify on directories: the kernel's descriptors on one side, paths on the other."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import Any, Final, Literal

import inotify_simple
from inotify_simple import INotify, flags, parse_events

from garrison.workers.files.targets import below

STRUCTURE: Final = int(flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO)
"""For a directory in which only other directories matter."""

CONTENT: Final = int(STRUCTURE | flags.MODIFY | flags.CLOSE_WRITE | flags.ATTRIB)
"""MODIFY too: who keeps a file open never closes it."""

_ALWAYS: Final = int(flags.ONLYDIR | flags.EXCL_UNLINK)
_READ_BYTES: Final = 64 * 1024
_EXHAUSTED: Final = (errno.ENOSPC, errno.ENOMEM)

Added = Literal["watched", "exhausted", "failed"]


class Watches:
    """The watches of one module.

    Args:
        limit: Most directories.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.problem = ""
        """Why there is no inotify at all, or an empty text."""
        self._inotify: INotify | None = None
        self._paths: dict[int, str] = {}
        self._wds: dict[str, int] = {}
        # inotify_simple would look for the C library with ldconfig and even a compiler.
        module = vars(inotify_simple)
        if module["_libc"] is None:
            module["_libc"] = ctypes.CDLL(None, use_errno=True)
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            self.problem = f"no inotify instance is to be had ({error.strerror}): raise fs.inotify.max_user_instances"

    def __len__(self) -> int:
        return len(self._paths)

    def fileno(self) -> int | None:
        """Return the descriptor to wait on, or None where there is no inotify."""
        return None if self._inotify is None else int(self._inotify.fileno())

    def add(self, fd: int, path: str, mask: int) -> Added:
        """Watch an open directory under a path."""
        if self._inotify is None:
            return "exhausted"
        known = self._wds.get(path)
        if known is None and len(self._paths) >= self.limit:
            return "exhausted"
        try:
            # By the open descriptor, so that what is watched is what will be listed, whatever the path means now.
            wd = self._inotify.add_watch(f"/proc/self/fd/{fd}", mask | _ALWAYS)
        except OSError as error:
            return "exhausted" if error.errno in _EXHAUSTED else "failed"
        before = self._paths.get(wd)
        if before is not None and before != path and self._wds.get(before) == wd:
            del self._wds[before]
        if known is not None and known != wd and self._paths.get(known) == path:
            # Another directory has taken the place; the old one is elsewhere, or nowhere.
            self._remove(known)
        self._paths[wd] = path
        self._wds[path] = wd
        return "watched"

    def path(self, wd: int) -> str | None:
        """Return the path of a watch."""
        return self._paths.get(wd)

    def has(self, path: str) -> bool:
        """Tell whether a directory is watched."""
        return path in self._wds

    def ended(self, wd: int) -> None:
        """Take note that the kernel has ended a watch."""
        path = self._paths.pop(wd, None)
        if path is not None and self._wds.get(path) == wd:
            del self._wds[path]

    def forget(self, folder: str) -> None:
        """End the watches at and below a path."""
        for path, wd in [item for item in self._wds.items() if below(item[0], folder)]:
            del self._wds[path]
            self._remove(wd)

    def moved(self, source: str, target: str) -> None:
        """Take a renamed directory's watches along."""
        for path, wd in [item for item in self._wds.items() if below(item[0], source)]:
            del self._wds[path]
            self._wds[target + path[len(source) :]] = wd
            self._paths[wd] = target + path[len(source) :]

    def read(self) -> list[Any]:
        """Return some events, at most about 64 KiB of them. Never waits."""
        if self._inotify is None:
            return []
        try:
            data = os.read(self._inotify.fileno(), _READ_BYTES)
        except BlockingIOError:
            return []
        return list(parse_events(data))

    def close(self) -> None:
        """Give everything back."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._paths.clear()
        self._wds.clear()

    def _remove(self, wd: int) -> None:
        self._paths.pop(wd, None)
        if self._inotify is not None:
            with contextlib.suppress(OSError):  # EINVAL: it went with its directory
                self._inotify.rm_watch(wd)
