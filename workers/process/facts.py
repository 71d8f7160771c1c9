"""What is known of a process. Structs of msgspec: small, quick to make, and loaded in every worker anyway."""

from __future__ import annotations

import msgspec

from garrison.workers.process.containers import Container


class Image(msgspec.Struct, kw_only=True, gc=False, frozen=True):
    """What an exec made of a process; children that only forked share it.

    Attributes:
        name: The kernel's short name (comm), at most 15 bytes.
        executable: Path of the file, without the kernel's `` (deleted)`` mark; empty where it is not known.
        deleted: No name in the file system leads to the executable any more.
        memfd: The executable is an anonymous file in memory; `executable` is ``/memfd:NAME``.
        args: Arguments as far as the first 512 bytes reach.
        args_truncated: There was more.
        cwd: Working directory; empty where it is not known.
        uid: Real user id, -1 where it is not known.
        euid: Effective user id, -1 where it is not known.
        login_uid: The user who logged in, -1 where nobody did or it is not known.
        tty: Device number of the controlling terminal, 0 for none.
        session: Session id.
        group: Process group id.
        kernel: A kernel thread.
        container: The container that the process is in.
        complete: Executable and arguments could be read.
    """

    name: str = ""
    executable: str = ""
    deleted: bool = False
    memfd: bool = False
    args: tuple[str, ...] = ()
    args_truncated: bool = False
    cwd: str = ""
    uid: int = -1
    euid: int = -1
    login_uid: int = -1
    tty: int = 0
    session: int = 0
    group: int = 0
    kernel: bool = False
    container: Container | None = None
    complete: bool = False


class Process(msgspec.Struct, kw_only=True, gc=False):
    """One process.

    Attributes:
        pid: Process id, as in the initial pid namespace.
        ppid: Who forked it, as told by the fork event; else the parent when /proc was read. 0: not known.
        start_ticks: Start, clock ticks since boot; 0 where it is not known. With the pid it is unique.
        stamp: Tells one exec from the next (see `procfs.Stat`); 0 where it is not known.
        image: What it executes; None where that is not known.
        forked: It has not executed anything of its own: `image` is its parent's.
        shell: `image` is a shell.
        exited: Monotonic seconds at which it ended, None while it lives.
        alerted: Bits of the rules that have alerted for it since its last exec.
        links: Where its standard input and output led when they were last looked at.
    """

    pid: int
    ppid: int = 0
    start_ticks: int = 0
    stamp: int = 0
    image: Image | None = None
    forked: bool = False
    shell: bool = False
    exited: float | None = None
    alerted: int = 0
    links: tuple[str, ...] = ()
