"""The few Linux calls that Python's standard library lacks."""

from __future__ import annotations

import ctypes
import os
import signal

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, second: int = 0, third: int = 0) -> None:
    """Set an option of this process; no more is answered than whether that worked.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(option, ctypes.c_ulong(second), ctypes.c_ulong(third), 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def become_subreaper() -> None:
    """Have orphaned descendants come to this process instead of init (Linux 3.4).

    Raises:
        OSError: The kernel refused.
    """
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel send SIGKILL to this process when the *thread* that forked it ends.

    A later change of user clears it. The parent may have died before the call: check getppid() after it.

    Raises:
        OSError: The kernel refused.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def boot_id() -> str:
    """Return what tells one boot of this machine from another; empty where the kernel does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, ValueError):
        return ""


def run_delay(pid: int) -> float | None:
    """Return for how long a process's main thread could have run and got no CPU, seconds since its start.

    Waiting because of a CFS quota counts too. None where the kernel does not tell (``CONFIG_SCHED_INFO``), or the
    process is gone.
    """
    try:
        with open(f"/proc/{pid}/schedstat", "rb", buffering=0) as file:
            return int(file.read(256).split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def own_memory() -> tuple[int, int]:
    """Return what this process has in memory, and how much of that is shared with files or others; bytes.

    Raises:
        OSError: /proc cannot be read: out of descriptors, most likely.
    """
    with open("/proc/self/statm", "rb") as file:
        resident, shared = file.read().split()[1:3]
    return int(resident) * _PAGE, int(shared) * _PAGE
