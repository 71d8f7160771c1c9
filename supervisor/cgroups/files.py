"""Kernel files: written unbuffered, read back and compared; a group of writes holds whole or not at all."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from garrison.supervisor.cgroups.base import CPU_PERIOD_US
from garrison.supervisor.cgroups.errors import LimitError, UnsupportedError
from garrison.supervisor.cgroups.kill import read, write

__all__ = [
    "PAGE_BYTES",
    "Change",
    "amount",
    "apply",
    "bandwidth",
    "flat_keyed",
    "pages",
    "read",
    "remedy",
    "stall_seconds",
    "text_change",
    "write",
    "write_busy",
]

Value = int | str | None

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
"""The unit in which the kernel keeps memory limits, bytes."""

LEAST_QUOTA_US = 1000
"""The kernel's smallest quota, microseconds (``min_cfs_quota_period`` in kernel/sched)."""
LONGEST_PERIOD_US = 1_000_000
"""Its longest period, microseconds (``max_cfs_quota_period``)."""
LEAST_PERCENT = 100 * LEAST_QUOTA_US / LONGEST_PERIOD_US
"""The smallest cap that the two allow, percent of one core."""

_NO_LIMIT = 1 << 62
"""v1 shows no limit as a huge number: 2⁶³-1 rounded to pages, or 2⁶⁴-1 before Linux 3.19."""

_BUSY_SECONDS = 1.0
_BUSY_STEP_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Change:
    """One value that a kernel file shall have.

    Attributes:
        file: Its path, for messages.
        wanted: What the file shall read afterwards, in the form that `get` returns. None: no limit.
        get: Reads the file.
        put: Writes the file.
    """

    file: str
    wanted: Value
    get: Callable[[], Value]
    put: Callable[[Value], None]


def text_change(file: str, wanted: Value) -> Change:
    """Return the change of a file that holds one number, ``max``, or one line of text."""

    def get() -> Value:
        text = read(file).strip()
        return text if isinstance(wanted, str) else amount(text)

    def put(value: Value) -> None:
        write(file, "max" if value is None else str(value))

    return Change(file, wanted, get, put)


def apply(changes: Sequence[Change]) -> None:
    """Make all changes in their order; each is read back. On a failure the old values return, last first.

    Raises:
        LimitError: The kernel refused one, or keeps another value. It names file, wanted and got.
    """
    made: list[tuple[Change, Value]] = []
    for change in changes:
        try:
            before = change.get()
            if before == change.wanted:
                continue
            made.append((change, before))
            change.put(change.wanted)
            after = change.get()
        except (OSError, ValueError) as error:
            text = f"{change.file}: cannot be set to {_shown(change.wanted)}: {error}{remedy(change.file, error)}"
            raise LimitError(text + _undo(made)) from error
        if after != change.wanted:
            text = f"{change.file}: wanted {_shown(change.wanted)}, got {_shown(after)} when read back"
            raise LimitError(text + _undo(made))


def _undo(made: Sequence[tuple[Change, Value]]) -> str:
    """Restore old values; return what to add to the message where one does not return."""
    lost = ""
    for change, before in reversed(made):
        try:
            if change.get() != before:
                change.put(before)
        except (OSError, ValueError) as error:
            lost += f"; {change.file} could not be put back to {_shown(before)}: {error}"
    return lost


def _shown(value: Value) -> str:
    return "no limit" if value is None else str(value)


def remedy(file: str, error: Exception) -> str:
    """Return what the operator can do about a refused cgroup file, as the end of a sentence."""
    number = error.errno if isinstance(error, OSError) else None
    name = os.path.basename(file)
    if number == errno.EROFS:
        return (
            ". The cgroup file system is mounted read-only: mount it read-write "
            '(containers: give it the host\'s cgroups), or set cgroup_mode = "unprivileged"'
        )
    if number in (errno.EACCES, errno.EPERM):
        return '. Run the agent as root, or as a systemd unit with Delegate=yes, or set cgroup_mode = "unprivileged"'
    if number == errno.ENOENT:
        return ". The kernel does not offer this file: its controller is off, or the group was removed"
    if number == errno.EINVAL and name.startswith("cpu.cfs_"):
        return (
            ". cgroup v1 allows no quota above that of a parent, none below that of a child, and none under "
            "1 ms a period: compare the quotas of the groups above and below"
        )
    if number == errno.EBUSY and name.startswith("memory."):
        return ". The group uses more than that and the kernel cannot reclaim it: choose a larger limit"
    return ""


def bandwidth(percent: float | None) -> tuple[int | None, int]:
    """Return quota and period in microseconds; the quota is None for no cap.

    The period is `CPU_PERIOD_US`, or longer where the kernel's least quota, 1 ms, would be more than was asked for.

    Args:
        percent: Percent of one core.

    Raises:
        LimitError: Less than `LEAST_PERCENT`.
    """
    if percent is None:
        return None, CPU_PERIOD_US
    quota = round(percent * CPU_PERIOD_US / 100)
    if quota >= LEAST_QUOTA_US:
        return quota, CPU_PERIOD_US
    if percent < LEAST_PERCENT:
        raise LimitError(
            f"a CPU quota of {percent:g} % of one core is below the least of {LEAST_PERCENT:g} %: raise it"
        )
    return LEAST_QUOTA_US, min(LONGEST_PERIOD_US, round(LEAST_QUOTA_US * 100 / percent))


def pages(limit: int | None) -> int | None:
    """Return a memory limit as the kernel will keep it, bytes: rounded down to whole pages.

    Raises:
        LimitError: Less than one page.
    """
    if limit is None:
        return None
    whole = limit // PAGE_BYTES * PAGE_BYTES
    if whole <= 0:
        raise LimitError(f"a memory limit of {limit} bytes is less than one page of {PAGE_BYTES}: raise it")
    return None if whole >= _NO_LIMIT else whole


def amount(text: str | int | None) -> int | None:
    """Return a limit as read from any version: None for ``max``, -1 and the huge number of v1.

    Raises:
        ValueError: It is no number.
    """
    if text is None or text == "max":
        return None
    number = int(text)
    return None if number < 0 or number >= _NO_LIMIT else number


def flat_keyed(text: str) -> dict[str, int]:
    """Parse ``key value`` lines with whole numbers; other lines are left out, kernels add new ones."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key and value.isascii() and value.isdigit():
            values[key] = int(value)
    return values


def stall_seconds(text: str, kind: str) -> float:
    """Return the total of one line of a pressure file, seconds; 0 where it has no such line (`full` of ``cpu``).

    Args:
        text: Its content: ``some avg10=0.00 avg60=0.00 avg300=0.00 total=12345``, in microseconds.
        kind: ``some`` (at least one task stood still) or ``full`` (all that had work did).
    """
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if name == kind and total.isascii() and total.isdigit():
            return int(total) / 1e6
    return 0.0


def write_busy(path: str, value: str) -> None:
    """Write, again while the kernel answers EBUSY, for at most 1 s.

    Enabling ``memory`` in a freshly delegated unit answers EBUSY for a moment after a restart.

    Raises:
        UnsupportedError: Still refused; the text says what to do.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            write(path, value)
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(_BUSY_STEP_SECONDS)
                continue
            hint = remedy(path, error)
            if error.errno == errno.EBUSY:
                hint = (
                    ". Processes sit in this group itself, and cgroup v2 allows none beside children that have "
                    "controllers: start the agent as a systemd unit with Delegate=yes, or move them to a leaf"
                )
            raise UnsupportedError(f"cannot write {value!r} to {path}: {error.strerror}{hint}") from error
        return
