"""Forking a child into its v2 cgroup, where kernel and C library allow it; a plain fork elsewhere.

A child that is born in its node (clone3(2) with CLONE_INTO_CGROUP, Linux 5.7) needs no move, and so nobody waits
for the lock and the grace period of a move. Python has no call for it, so this does what os.fork() does around
fork(2): PyOS_BeforeFork and PyOS_AfterFork_* are public for exactly that. What glibc does in its own fork of a
process with one thread comes down to the thread id that it keeps: the kernel writes the child's to the same place,
which it knows from the start of the process. What else glibc does is for other threads, and for robust mutexes, of
which there are none. Other C libraries keep something else in that place: there it is a plain fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from typing import Final

_CLONE_PIDFD: Final = 0x1000
_CLONE_CHILD_CLEARTID: Final = 0x200000
_CLONE_CHILD_SETTID: Final = 0x1000000
_CLONE_INTO_CGROUP: Final = 0x200000000
_SYS_CLONE3: Final = 435  # the same on all architectures that Garrison runs on
_PR_GET_TID_ADDRESS: Final = 40

_ARGS: Final = struct.Struct("=11Q")
"""struct clone_args of Linux 5.7: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
set_tid_size, cgroup."""
_NO_DESCRIPTOR: Final = 2**31 - 1
_OLDEST_GLIBC: Final = (2, 25)
"""Older ones also keep the process id, and nobody would tell them the child's."""

# Not CDLL: the interpreter lock is held from before the fork to behind it.
_python = ctypes.PyDLL(None, use_errno=True)


def why_not() -> str:
    """Return why children cannot be born in their cgroup here, or an empty string where they can.

    Asks the kernel for a child in a cgroup that does not exist: one that knows the flag says EBADF. No process is made.
    """
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        library = ""
    name, _, version = library.partition(" ")
    numbers = version.split(".")
    if name != "glibc" or not all(number.isdigit() for number in numbers):
        return "the C library is not glibc"
    if tuple(map(int, numbers)) < _OLDEST_GLIBC:
        return f"{library} is older than {'.'.join(map(str, _OLDEST_GLIBC))}"
    try:
        _thread_id_address()
        _clone3(_CLONE_INTO_CGROUP, cgroup=_NO_DESCRIPTOR)
    except OSError as error:
        if error.errno == errno.EBADF:
            return ""
        # E2BIG: 5.3 to 5.6 know a shorter struct. EPERM and ENOSYS: older, or a seccomp filter.
        return f"clone3: {os.strerror(error.errno or 0)}"
    except AttributeError as error:
        return f"the interpreter does not show its own functions: {error}"
    return "clone3 takes what is no cgroup"


def plain() -> tuple[int, int | None]:
    """Fork. Returns the child's pid and pidfd (None before Linux 5.3) in the parent, and (0, None) in the child.

    Raises:
        OSError: The kernel refused.
    """
    pid = os.fork()
    if pid == 0:
        return 0, None
    try:
        return pid, os.pidfd_open(pid)
    except OSError:
        return pid, None


def into(directory: str) -> tuple[int, int | None]:
    """Fork into a v2 node; returns what `plain` does. Only where `why_not` has nothing to say, with one thread.

    Raises:
        OSError: The node is gone, or the kernel refused. There is no child then.
    """
    address = _thread_id_address()
    pidfd = ctypes.c_int(-1)
    flags = _CLONE_INTO_CGROUP | _CLONE_PIDFD | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    node = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _python.PyOS_BeforeFork()
        pid = -1
        try:
            pid = _clone3(flags, pidfd=ctypes.addressof(pidfd), child_tid=address, cgroup=node)
        finally:
            if pid == 0:
                _python.PyOS_AfterFork_Child()
            else:
                _python.PyOS_AfterFork_Parent()
    finally:
        os.close(node)
    return (0, None) if pid == 0 else (pid, pidfd.value)


def _thread_id_address() -> int:
    """Return where the kernel and the C library keep the thread id (needs CONFIG_CHECKPOINT_RESTORE)."""
    address = ctypes.c_void_p()
    if _python.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) != 0 or not address.value:
        raise OSError(ctypes.get_errno() or errno.EFAULT, "prctl(PR_GET_TID_ADDRESS)")
    return address.value


def _clone3(flags: int, *, pidfd: int = 0, child_tid: int = 0, cgroup: int) -> int:
    args = _ARGS.pack(flags, pidfd, child_tid, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    pid = int(_python.syscall(ctypes.c_long(_SYS_CLONE3), args, ctypes.c_size_t(len(args))))
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"clone3: {os.strerror(number)}")
    return pid
