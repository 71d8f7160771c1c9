"""Capabilities of this process, by capget(2), capset(2) and prctl(2); see capabilities(7)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from garrison.ipc.rights import CAPABILITIES
from garrison.supervisor.linux import prctl

_VERSION_3: Final = 0x20080522
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


class Held(NamedTuple):
    """The three sets that capset(2) writes, as bits by number."""

    effective: int
    permitted: int
    inheritable: int


def bits(names: Iterable[str]) -> int:
    """Return names as bits.

    Raises:
        ValueError: There is no such capability.
    """
    return sum(1 << CAPABILITIES.index(name) for name in set(names))


def names(value: int) -> tuple[str, ...]:
    """Return bits as names, in the order of their numbers; those of a newer kernel as ``cap_41``."""
    return tuple(
        CAPABILITIES[at] if at < len(CAPABILITIES) else f"cap_{at}"
        for at in range(value.bit_length())
        if value >> at & 1
    )


def held() -> Held:
    """Return what the calling thread holds.

    Raises:
        OSError: The kernel refused.
    """
    data = (ctypes.c_uint32 * 6)()
    _call("capget", _libc.capget((ctypes.c_uint32 * 2)(_VERSION_3, 0), data))
    low, high = data[:3], data[3:]
    return Held(*(first | second << 32 for first, second in zip(low, high, strict=True)))


def hold(value: Held) -> None:
    """Have the calling thread hold exactly this. Other threads keep what they have.

    Raises:
        OSError: It asks for more than is permitted.
    """
    parts = [*(number & 0xFFFFFFFF for number in value), *(number >> 32 for number in value)]
    _call("capset", _libc.capset((ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)(*parts)))


@contextlib.contextmanager
def borrowed(name: str) -> Iterator[None]:
    """Make a permitted capability effective in this thread for a moment; nothing changes where it is, or cannot be.

    Raises:
        OSError: The kernel refused.
    """
    before = held()
    bit = 1 << CAPABILITIES.index(name)
    if before.effective & bit or not before.permitted & bit:
        yield
        return
    hold(before._replace(effective=before.effective | bit))
    try:
        yield
    finally:
        hold(before)


def bound(value: int) -> None:
    """Take all but `value` out of the bounding set: no program that this process starts ever gets the others.

    Raises:
        OSError: The kernel refused (CAP_SETPCAP is needed).
    """
    for number in range(64):
        if value >> number & 1:
            continue
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the kernel has no more than these
                return
            raise


def hand_on(value: int) -> None:
    """Make the ambient set exactly `value`: what a program gets that is run next, whoever runs it.

    Raises:
        OSError: The kernel has no ambient set (before Linux 4.3), or `value` is not permitted and inheritable.
    """
    try:
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError:
        if value:
            raise
        return  # where there is no such set it is empty
    for number in range(value.bit_length()):
        if value >> number & 1:
            prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def _call(what: str, answer: int) -> None:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
