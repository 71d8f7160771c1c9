"""Our nodes in one hierarchy: made, filled, listed and removed. The same in every version."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Mapping

from garrison.supervisor.cgroups.errors import CgroupError, UnsupportedError
from garrison.supervisor.cgroups.files import read, remedy, write
from garrison.supervisor.cgroups.hierarchy import Mount, path_of
from garrison.supervisor.cgroups.kill import below, listed
from garrison.supervisor.rights.capabilities import borrowed

SUPERVISOR = "supervisor"
WORKERS = "workers"

NAME_BYTES = 128
"""Longest worker name, bytes."""

_STEP_SECONDS = 0.002
_RELOCK = 5


def check_name(worker: str) -> str:
    """Return a worker's name if it can name a node.

    Raises:
        CgroupError: It is empty, too long, hidden, or holds a slash, a dot or a control character; the dot
            because ``memory.max`` is a kernel file.
    """
    allowed = worker.isprintable() and not any(mark in worker for mark in "/. ")
    if not worker or not allowed or len(worker.encode()) > NAME_BYTES:
        raise CgroupError(f"{worker!r} cannot name a cgroup: use letters, digits, '-' and '_' only")
    return worker


class Tree:
    """The ``<own>`` node of one mounted hierarchy and what is below it.

    Args:
        mount: The hierarchy.
        own: Cgroup path of ``<own>``, as ``/proc/PID/cgroup`` would show it.
        delegated: systemd made ``<own>`` for us: it is never removed, and nothing above it is touched.

    Raises:
        UnsupportedError: The mount does not show that path.
    """

    def __init__(self, mount: Mount, own: str, *, delegated: bool = False) -> None:
        directory = mount.directory(own)
        if directory is None or not own.strip("/"):
            raise UnsupportedError(
                f"the cgroup {own!r} cannot be our own in the hierarchy at {mount.point} (which shows {mount.root}): "
                "set cgroup_root to a path below that"
            )
        self.mount = mount
        self.own = "/" + own.strip("/")
        self.delegated = delegated
        self.directory = directory
        self.supervisor = os.path.join(directory, SUPERVISOR)
        self.workers = os.path.join(directory, WORKERS)
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"Tree({self.directory!r})"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the hierarchy."""
        return self.mount.keys

    def node(self, worker: str | None) -> str:
        """Return the directory of a worker's node, or of ``workers``.

        Raises:
            CgroupError: The name cannot name a node.
        """
        return self.workers if worker is None else os.path.join(self.workers, check_name(worker))

    def make(self, directory: str, *, fresh: bool = False) -> bool:
        """Make a node and, below the mount, its parents. True where it was not there.

        Args:
            directory: The node.
            fresh: It must not exist yet.

        Raises:
            UnsupportedError: No right to, or a read-only mount.
            CgroupError: Anything else that the kernel answers.
        """
        parent = os.path.dirname(directory)
        if parent != self.mount.point and not os.path.isdir(parent):
            self.make(parent)
        try:
            self._mkdir(directory)
        except FileExistsError:
            if fresh or not os.path.isdir(directory):
                raise CgroupError(f"cannot make the cgroup {directory}: it is already there") from None
            return False
        except OSError as error:
            kind = UnsupportedError if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else CgroupError
            raise kind(f"cannot make the cgroup {directory}: {error.strerror}{remedy(directory, error)}") from error
        if "cpuset" in self.mount.controllers:
            self._inherit_cpuset(directory)
        return True

    def _mkdir(self, directory: str) -> None:
        with self._right(directory):
            os.mkdir(directory, 0o755)

    def _inherit_cpuset(self, directory: str) -> None:
        # A fresh v1 cpuset is empty and takes no process (ENOSPC); it matters where cpuset is co-mounted.
        for name in ("cpuset.cpus", "cpuset.mems"):
            try:
                if not read(os.path.join(directory, name)).strip():
                    write(os.path.join(directory, name), read(os.path.join(os.path.dirname(directory), name)).strip())
            except OSError as error:
                raise CgroupError(f"cannot fill {os.path.join(directory, name)}: {error.strerror}") from error

    def place(self, directory: str, pid: int) -> None:
        """Move a process into a node.

        Raises:
            OSError: ESRCH: it is gone. Else the kernel refused.
        """
        write(os.path.join(directory, "cgroup.procs"), str(pid))

    def holds(self, directory: str, membership: Mapping[str, str]) -> bool:
        """Tell whether a process is in the node itself, by what `hierarchy.parse_membership` returned."""
        path = path_of(self.mount, membership)
        return path is not None and self.mount.directory(path) == directory

    def covers(self, membership: Mapping[str, str]) -> bool:
        """Tell whether a process is in ``<own>`` or below it."""
        path = path_of(self.mount, membership)
        return path is not None and (path + "/").startswith(self.own + "/")

    def direct(self, directory: str) -> list[int]:
        """Return the pids in a node itself, without those below it."""
        try:
            return [pid for pid in map(int, read(os.path.join(directory, "cgroup.procs")).split()) if pid > 0]
        except FileNotFoundError:
            return []

    def remove(self, directory: str, seconds: float) -> list[str]:
        """Remove a node with all below it, children first; again while the kernel answers EBUSY.

        The last task of a node lingers in it for a moment after its exit, and a node with live processes
        answers the same: so it is asked who is in it, and only the former is waited for.

        Args:
            directory: The node.
            seconds: Longest wait for the lingering.

        Returns:
            The directories that were removed.

        Raises:
            CgroupError: The kernel refuses for another reason than tasks.
            BlockingIOError: Tasks are still in it.
        """
        removed: list[str] = []
        deadline = time.monotonic() + seconds
        for node in reversed(below(directory)):
            while True:
                try:
                    self._rmdir(node)
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                        raise CgroupError(
                            f"cannot remove the cgroup {node}: {error.strerror}{remedy(node, error)}"
                        ) from error
                    if time.monotonic() >= deadline or listed([node]):
                        raise BlockingIOError(error.errno, error.strerror, node) from error
                    time.sleep(_STEP_SECONDS)
                    continue
                removed.append(node)
                break
        return removed

    def _rmdir(self, directory: str) -> None:
        with self._right(directory):
            os.rmdir(directory)

    def _right(self, directory: str) -> contextlib.AbstractContextManager[None]:
        # The top of a hierarchy is writable for nobody, and the master has this capability put away.
        top = os.path.dirname(directory) == self.mount.point
        return borrowed("dac_override") if top else contextlib.nullcontext()

    def lock(self, *, make: bool = True) -> bool:
        """Take the exclusive lock of ``<own>``; it ends with `unlock`, the process, or an exec.

        Args:
            make: Make ``<own>`` where it is not there. Without it a missing node counts as locked.

        Returns:
            False where another process holds it.

        Raises:
            CgroupError: ``<own>`` cannot be made or opened.
        """
        if self._lock is not None:
            return True
        for _ in range(_RELOCK):
            if make:
                self.make(self.directory)
            try:
                descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                if not make:
                    return True
                continue
            except OSError as error:
                raise CgroupError(f"cannot open {self.directory}: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError as error:
                os.close(descriptor)
                raise CgroupError(f"cannot lock {self.directory}: {error.strerror}") from error
            if self._is(descriptor):
                self._lock = descriptor
                return True
            # Its last holder removed the node between our open and our lock.
            os.close(descriptor)
        raise CgroupError(f"cannot lock {self.directory}: it is removed again and again; who else uses it?")

    def _is(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.directory))
        except FileNotFoundError:
            return False

    def unlock(self) -> None:
        """Give the lock back. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
