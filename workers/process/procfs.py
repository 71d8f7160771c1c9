"""Facts of one process from /proc/PID.

The directory is opened once and everything is read relative to it: the descriptor stays bound to that one
process, so a pid that is given to another process meanwhile answers ESRCH instead of a stranger's facts.
Every fact may be missing. Names that are no UTF-8 keep their bytes through surrogateescape.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final, NamedTuple

from garrison.workers.process.containers import Container, container_of
from garrison.workers.process.facts import Image, Process

ARGS_BYTES: Final = 512
"""Bytes of the command line that are kept."""

_UNSET_LOGIN: Final = b"4294967295"
_KERNEL_THREAD_FLAG: Final = 0x00200000
_DELETED: Final = " (deleted)"
_MEMFD: Final = "/memfd:"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_CLOEXEC


class Stat(NamedTuple):
    """What of /proc/PID/stat is used.

    Attributes:
        name: Short name.
        state: State letter; ``Z`` and ``X`` have ended.
        ppid: Parent now.
        group: Process group.
        session: Session.
        tty: Device number of the terminal, 0 for none.
        kernel: A kernel thread.
        start_ticks: Start in clock ticks since boot.
        stamp: Changes with each exec and is kept by a fork: where stack and code start, which the kernel
            places at random. 0 where the kernel does not let us see them.
    """

    name: str
    state: str
    ppid: int
    group: int
    session: int
    tty: int
    kernel: bool
    start_ticks: int
    stamp: int


def parse_stat(data: bytes) -> Stat | None:
    """Return the fields of a stat line, or None where it is not one. Pure; see proc(5)."""
    opening, closing = data.find(b"("), data.rfind(b")")
    if opening < 0 or closing < opening:
        return None
    fields = data[closing + 2 : closing + 512].split()
    if len(fields) < 26:
        return None
    try:
        code, stack = int(fields[23]), int(fields[25])
        return Stat(
            os.fsdecode(data[opening + 1 : closing]),
            fields[0].decode("ascii"),
            int(fields[1]),
            int(fields[2]),
            int(fields[3]),
            int(fields[4]),
            bool(int(fields[6]) & _KERNEL_THREAD_FLAG),
            int(fields[19]),
            # The kernel shows 0 or 1 to readers without ptrace access.
            (stack << 20) ^ code if stack > 1 else 0,
        )
    except (ValueError, UnicodeDecodeError):
        return None


def parse_uids(status: bytes) -> tuple[int, int] | None:
    """Return the real and the effective user id of a status file, or None where it has none. Pure."""
    at = status.find(b"\nUid:")
    if at < 0:
        return None
    fields = status[at + 5 : at + 80].split(None, 3)
    try:
        return int(fields[0]), int(fields[1])
    except (IndexError, ValueError):
        return None


def parse_args(data: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the arguments in the first `ARGS_BYTES` of a cmdline file and whether there was more. Pure."""
    truncated = len(data) > ARGS_BYTES
    if not data:
        return (), False
    data = data[:ARGS_BYTES] if truncated else data.removesuffix(b"\0")
    return tuple(map(os.fsdecode, data.split(b"\0"))), truncated


def tty_name(device: int) -> str:
    """Return a terminal's name below /dev for the number of a stat file, ``major:minor`` for rare kinds, "" for 0."""
    if not device:
        return ""
    major, minor = tty_numbers(device)
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    if major == 5 and minor < 3:
        return ("tty", "console", "ptmx")[minor]
    if major == 204 and minor >= 64:
        return f"ttyAMA{minor - 64}"
    if major == 229:
        return f"hvc{minor}"
    return f"{major}:{minor}"


def tty_numbers(device: int) -> tuple[int, int]:
    """Return major and minor of a stat file's terminal number: the kernel's ``new_encode_dev``."""
    device &= 0xFFFFFFFF
    return (device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00)


def read_stat(pid: int) -> Stat | None:
    """Return the stat of a process, or None where it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", _FILE)
    except OSError:
        return None
    try:
        return parse_stat(os.read(fd, 1024))
    except OSError:
        return None
    finally:
        os.close(fd)


def read_process(pid: int, parent: Image | None = None, *, thrifty: bool = False) -> Process | None:
    """Return what /proc tells of a process, or None where it is gone.

    About 20 system calls, 13 where `thrifty`.

    Args:
        pid: The process.
        parent: Its parent's image, where known: spares reading the user ids where they are the parent's, and
            gives container and login user where `thrifty`.
        thrifty: Leave out working directory, login user and container.
    """
    try:
        directory = os.open(f"/proc/{pid}", _DIRECTORY)
    except OSError:
        return None
    try:
        stat = parse_stat(_read(directory, "stat", 1024))
        if stat is None:
            return None
        executable, deleted, memfd = _executable(directory)
        args, truncated = parse_args(_read(directory, "cmdline", ARGS_BYTES + 1))
        uid, euid = _uids(directory, parent)
        image = Image(
            name=stat.name,
            executable=executable,
            deleted=deleted,
            memfd=memfd,
            args=args,
            args_truncated=truncated,
            cwd="" if thrifty else _link(directory, "cwd"),
            uid=uid,
            euid=euid,
            login_uid=(parent.login_uid if parent else -1) if thrifty else _login_uid(directory),
            tty=stat.tty,
            session=stat.session,
            group=stat.group,
            kernel=stat.kernel,
            container=(parent.container if parent else None) if thrifty else _container(directory),
            complete=stat.kernel or bool(executable),
        )
        return Process(pid=pid, ppid=stat.ppid, start_ticks=stat.start_ticks, stamp=stat.stamp, image=image)
    finally:
        os.close(directory)


def executable_state(pid: int) -> tuple[str, bool, bool]:
    """Return (path, deleted, memfd) of a process's executable now; the path is empty where it is gone."""
    try:
        link = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return "", False, False
    if not link.endswith(_DELETED):
        return link, False, False
    try:
        gone = os.stat(f"/proc/{pid}/exe").st_nlink == 0
    except OSError:
        return "", False, False
    return _judge_link(link, gone)


def replaced(pid: int, path: str) -> bool:
    """Return whether a file is at `path` now, seen from the process's own root directory."""
    try:
        os.stat(f"/proc/{pid}/root{path}")
    except OSError:
        return False
    return True


def clock_ticks() -> int:
    """Return the clock ticks a second that start times are counted in."""
    return os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """Return the first 8 characters of the kernel's boot id, empty where it cannot be read."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(8)
    except (OSError, ValueError):
        return ""


def _read(directory: int, name: str, size: int) -> bytes:
    """Return the file's first bytes; none where it cannot be read: the process may end between two reads."""
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError:
        return b""
    try:
        return os.read(fd, size)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _link(directory: int, name: str) -> str:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return ""


def _executable(directory: int) -> tuple[str, bool, bool]:
    link = _link(directory, "exe")
    if not link.endswith(_DELETED):
        return link, False, False
    try:
        gone = os.stat("exe", dir_fd=directory).st_nlink == 0
    except OSError:
        gone = True
    return _judge_link(link, gone)


def _judge_link(link: str, gone: bool) -> tuple[str, bool, bool]:
    """A file may really be named ``x (deleted)``: the number of its names decides, not the text."""
    if not gone:
        return link, False, False
    path = link.removesuffix(_DELETED)
    return path, True, path.startswith(_MEMFD)


def _uids(directory: int, parent: Image | None) -> tuple[int, int]:
    """The directory's owner is always the effective user, at a sixth of the cost of the status file.

    Where it is the parent's real and effective user, the real one has not changed either.
    """
    try:
        owner = os.fstat(directory).st_uid
    except OSError:
        return -1, -1
    if parent is not None and parent.uid == parent.euid == owner:
        return owner, owner
    return parse_uids(_read(directory, "status", 1024)) or (-1, owner)


def _login_uid(directory: int) -> int:
    data = _read(directory, "loginuid", 16).strip()
    return int(data) if data.isdigit() and data != _UNSET_LOGIN else -1


def _container(directory: int) -> Container | None:
    return _container_of(_read(directory, "cgroup", 4096))


@lru_cache(maxsize=128)
def _container_of(data: bytes) -> Container | None:
    """Siblings have the same text: looking it up is cheaper than reading it again."""
    return container_of(data.decode("utf-8", "replace"))
