"""One agent per run directory: a lock that the kernel takes back when its holder dies, however it dies.

The file stays behind; only the flock on it counts, so a stale file or a reused pid means nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from types import TracebackType
from typing import Self

from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.settings.places import ReadableOSError, make_folder, remedy

LOCK_NAME = "garrisond.lock"
_ATTEMPTS = 5


class LockError(ReadableOSError):
    """The lock file cannot be used; the text names it and says what to do. Nothing is locked."""

    exit_code = ExitCode.OS_REFUSED


class AlreadyRunningError(Exception):
    """Another process holds the lock. End this one with exit code 75; nothing was touched.

    Attributes:
        pid: The holder, as it wrote into the file or as the kernel lists it; None where neither tells.
        path: The lock file.
    """

    exit_code = ExitCode.ALREADY_RUNNING

    def __init__(self, path: str, pid: int | None) -> None:
        self.path, self.pid = path, pid
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{holder} already runs with {path}; stop it first, or give this one a run_dir of its own (agent.run_dir)"
        )


class InstanceLock:
    """The held lock. Close it, or let the process end, to give it back."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def acquire(cls, path: str) -> InstanceLock:
        """Take the lock without waiting; its folder is made where it is missing.

        Raises:
            AlreadyRunningError: Another process holds it.
            LockError: The file cannot be opened, or is something that must not be written to.
            FolderError: The folder cannot be made.
        """
        make_folder(os.path.dirname(path) or ".", 0o755 if os.geteuid() == 0 else 0o700, "agent.run_dir")
        for _ in range(_ATTEMPTS):
            fd = _open(path)
            try:
                held = _lock(path, fd)
            except BaseException:
                os.close(fd)
                raise
            if held:
                return cls(path, fd)
            # The file was removed (by a cleaner of temporary files, or an operator) between open and lock:
            # what is locked is a file that nobody else will ever find.
            os.close(fd)
        raise LockError(errno.EBUSY, f"the lock file {path} is removed over and over; find out by whom")

    def close(self) -> None:
        """Give the lock back. Idempotent. The file stays, so that two starts can never hold two files."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            with contextlib.suppress(OSError):  # a stale pid in the file is harmless; only the flock counts
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        # 0600: whoever can open the file can lock it, and so keep the agent from starting.
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            text = f"the lock file {path} is a symbolic link, which is not followed; remove it"
        elif error.errno == errno.EISDIR:
            text = f"the lock file {path} is a folder; remove it"
        else:
            text = f"cannot open the lock file {path}: {error.strerror}; {remedy(error)}"
        raise LockError(error.errno, text) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise LockError(errno.EINVAL, f"the lock file {path} is no regular file; remove it")
        # In a folder that others may write to, somebody could have put a hard link to a file of value here.
        if found.st_nlink > 1 or found.st_uid not in (0, os.geteuid()):
            raise LockError(
                errno.EPERM,
                f"the lock file {path} belongs to user {found.st_uid} and has {found.st_nlink} links; somebody else "
                "put it there. Remove it, and use a folder that only the agent may write",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(path: str, fd: int) -> bool:
    """Lock and sign the file. False: it is no longer the one at `path`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunningError(path, _holder(fd)) from None
    except OSError as error:
        raise LockError(error.errno, f"cannot lock {path}: {error.strerror}; {remedy(error)}") from error
    mine = os.fstat(fd)
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
        return False
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        # A full disk: the pid is for people, the flock is what counts, and /proc/locks still names us.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise LockError(error.errno, f"cannot write to the lock file {path}: {error.strerror}") from error
    return True


def _holder(fd: int) -> int | None:
    try:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    except OSError:
        text = ""  # the kernel's list below may still tell
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    return _holder_by_kernel(os.fstat(fd))


def _holder_by_kernel(found: os.stat_result) -> int | None:
    """Look the file up in ``/proc/locks``: ``1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF``."""
    identity = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            for line in file:
                fields = line.split()
                if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == identity and fields[4].isdigit():
                    return int(fields[4]) or None
    except OSError:
        return None  # no /proc here: the message then speaks of "another process"
    return None
