"""Filters of system calls, in classic BPF built by hand; see seccomp(2).

A list of what is refused, not of what is allowed: the interpreter and its libraries use others on another kernel or C
library, and a worker that fails for want of a harmless call detects nothing. Calls that are newer than the list do not
exist for a worker (ENOSYS, so that libraries fall back to older ones). The list is searched by halves: six
comparisons a call, and none since Linux 5.11, which remembers what is always allowed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache
from typing import Final

from garrison.ipc.rights import SYSTEM_CALLS, SystemCalls
from garrison.supervisor.linux import prctl
from garrison.supervisor.rights.systemcalls import ADMINISTRATIVE, CHANGING, MACHINES, NEWEST, PARTLY

_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_MODE_FILTER: Final = 2
_SET_MODE_FILTER: Final = 1
_FLAG_SPEC_ALLOW: Final = 4
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}

_LOAD: Final = 0x20
_JUMP: Final = 0x05
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_ANY_BIT: Final = 0x45
_MASK: Final = 0x54
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EPERM
_UNKNOWN: Final = 0x00050000 | errno.ENOSYS
_NUMBER_AT: Final = 0
_ARCH_AT: Final = 4
_ARGUMENTS_AT: Final = 16

_CLONE_THREAD: Final = 0x10000
_CLONE_NEW: Final = 0x7E020000
"""CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID and NET."""
_AF_NETLINK: Final = 16
_NETLINK_CONNECTOR: Final = 11
"""The one that only tells. NETLINK_SOCK_DIAG can also end connections."""
_SOCK_TYPE_MASK: Final = 0xF
_SOCK_DGRAM: Final = 2
_IOCTL_HARMLESS: Final = (0x5401, 0x5421, 0x541B, 0x5450, 0x5451)
"""TCGETS (isatty), FIONBIO, FIONREAD, FIONCLEX, FIOCLEX."""

_Step = tuple[int, int, int, int]
_libc = ctypes.CDLL(None, use_errno=True)


def loosest(levels: tuple[SystemCalls, ...]) -> SystemCalls:
    """Return the level that lets all of these work."""
    return min(levels, key=SYSTEM_CALLS.index, default="usual")


def why_not(machine: str | None = None) -> str:
    """Return why no filter can be had here, or an empty string."""
    machine = machine or os.uname().machine
    if machine not in MACHINES:
        return f"the numbers of the system calls of {machine} are not known"
    try:
        # There is no filter at 0. A kernel that has filters complains of the address, any other one of the mode.
        prctl(_PR_SET_SECCOMP, _MODE_FILTER, 0)
    except OSError as error:
        if error.errno not in (errno.EFAULT, errno.EACCES):
            return f"the kernel has no filters of system calls ({error.strerror})"
    return ""


@cache
def program(level: SystemCalls, machine: str) -> bytes:
    """Return a level's filter as an array of ``struct sock_filter``. Pure.

    Raises:
        KeyError: The machine is not known.
    """
    audit, column = MACHINES[machine]
    outcomes: dict[int, list[_Step]] = {}
    refused = ADMINISTRATIVE if level == "usual" else {**ADMINISTRATIVE, **CHANGING}
    for numbers in refused.values():
        if (number := numbers[column]) is not None:
            outcomes[number] = [(_RETURN, 0, 0, _REFUSE)]
    for name, check in _checks(level).items():
        if (number := PARTLY[name][column]) is not None:
            outcomes[number] = check
    steps = [
        (_LOAD, 0, 0, _ARCH_AT),
        # A 32-bit call has other numbers.
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, NEWEST + 1),
        (_RETURN, 0, 0, _UNKNOWN),
        *_search(sorted(outcomes.items())),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def prepare() -> None:
    """Make all filters ahead: a forked child would spend 3 ms on its own, and share nothing of it."""
    if not why_not():
        for level in SYSTEM_CALLS[1:]:
            program(level, os.uname().machine)


def install(level: SystemCalls) -> None:
    """Put the filter on this thread and all that come from it, for good. Privileges can not be gained any more either.

    Raises:
        OSError: The kernel refused.
    """
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if level == "any":
        return
    machine = os.uname().machine
    code = program(level, machine)
    held = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    # Without the flag kernels before 5.16 turn off speculation for filtered processes: dearer than the filter itself.
    call = ctypes.c_long(_SYS_SECCOMP[machine])
    if _libc.syscall(call, _SET_MODE_FILTER, ctypes.c_ulong(_FLAG_SPEC_ALLOW), filters) == 0:
        return
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):  # neither before Linux 4.17 nor before 3.17
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    kept = ctypes.create_string_buffer(filters, len(filters))
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(kept))


def _checks(level: SystemCalls) -> dict[str, list[_Step]]:
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)
    # The flags of clone3 are behind a pointer: whoever is told that it does not exist takes clone.
    found = {
        "clone": [_argument(0), (_ANY_BIT, 1, 0, _CLONE_NEW), allow, refuse],
        "clone3": [(_RETURN, 0, 0, _UNKNOWN)],
    }
    if level == "observe":
        found["clone"] = [
            _argument(0),
            (_ANY_BIT, 2, 0, _CLONE_NEW),
            (_ANY_BIT, 0, 1, _CLONE_THREAD),
            allow,
            refuse,
        ]
        found["socket"] = [
            _argument(0),
            (_EQUAL, 0, 3, _AF_NETLINK),
            _argument(2),
            (_EQUAL, 0, 1, _NETLINK_CONNECTOR),
            allow,
            refuse,
        ]
        # One that is not bound to its other end can be sent from to any address: the log, the init system.
        found["socketpair"] = [
            _argument(1),
            (_MASK, 0, 0, _SOCK_TYPE_MASK),
            (_EQUAL, 1, 0, _SOCK_DGRAM),
            allow,
            refuse,
        ]
        last = len(_IOCTL_HARMLESS) - 1
        wanted = [(_EQUAL, last - at, 0 if at < last else 1, code) for at, code in enumerate(_IOCTL_HARMLESS)]
        found["ioctl"] = [_argument(1), *wanted, allow, refuse]
        found["prlimit64"] = [_argument(0), (_EQUAL, 0, 1, 0), allow, refuse]
    return found


def _argument(index: int) -> _Step:
    """Load the lower half of an argument: both machines are little-endian, and all that is looked at has 32 bits."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)


def _search(outcomes: list[tuple[int, list[_Step]]]) -> list[_Step]:
    if len(outcomes) == 1:
        number, outcome = outcomes[0]
        return [(_EQUAL, 1, 0, number), (_RETURN, 0, 0, _ALLOW), *outcome]
    half = len(outcomes) // 2
    low, high = _search(outcomes[:half]), _search(outcomes[half:])
    # A jump by condition reaches 255 steps, another one any number.
    return [(_AT_LEAST, 0, 1, outcomes[half][0]), (_JUMP, 0, 0, len(low)), *low, *high]
