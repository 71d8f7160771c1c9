"""What master and nursery say to each other: one msgpack struct a datagram on a SOCK_SEQPACKET pair.

File descriptors travel beside a message (SCM_RIGHTS): four with a `Spawn`, one with a `Spawned`.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Literal

import msgspec

from garrison.ipc.rights import SystemCalls

MAX_DATAGRAM = 64 * 1024
"""Largest message, bytes; well below the smallest default of a Unix socket's send buffer (208 KiB)."""

SPAWN_FDS = 4
"""Descriptors beside a `Spawn`, in this order: config (read), events (write), output (write), gate (read)."""


class Setup(msgspec.Struct, tag="setup", kw_only=True):
    """To the nursery, first: what to do when the master is gone, and which worker code to load ahead."""

    kill_files: tuple[str, ...] = ()
    freezer: str = ""
    procs_dirs: tuple[str, ...] = ()
    quota_files: tuple[tuple[str, str], ...] = ()
    preload: tuple[str, ...] = ()


class Rights(msgspec.Struct, kw_only=True, frozen=True):
    """What a worker may do, as its settings say.

    Attributes:
        user: Name of the user that it becomes; empty: it stays the agent's.
        uid: That user's id.
        gid: Its group.
        groups: Its supplementary groups.
        user_is_chosen: Somebody chose that user, so that it is never another one.
        capabilities: What it is given, or it does not start; None: what its modules declare, as far as there is.
        system_calls: The filter (`ipc.rights.SystemCalls`); empty: what its modules declare.
    """

    user: str = ""
    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()
    user_is_chosen: bool = False
    capabilities: tuple[str, ...] | None = None
    system_calls: SystemCalls | Literal[""] = ""


class Spawn(msgspec.Struct, tag="spawn", kw_only=True):
    """To the nursery: fork a worker and stop it at its gate.

    With `command` the child becomes that program, else it runs `modules` (name, spec) in the runtime.
    ``rlimits`` are (resource, soft, hard). ``born_in`` and ``tasks`` are those of `cgroups.base.Entry`. With `tasks`
    the child says over its gate, a socket then, that it has tried them all.
    """

    id: int
    worker: str
    host: str
    state_dir: str
    modules: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    beat_seconds: float = 5.0
    queue_bytes: int = 1024 * 1024
    rlimits: tuple[tuple[int, int, int], ...] = ()
    nice: int = 0
    oom_score_adj: int = 900
    subreaper: bool = False
    born_in: str = ""
    tasks: tuple[str, ...] = ()
    rights: Rights = Rights()


class Signal(msgspec.Struct, tag="signal"):
    """To the nursery: signal its own unreaped child, for kernels without pidfds (before 5.3)."""

    pid: int
    signal: int


class Inspect(msgspec.Struct, tag="inspect"):
    """To the nursery: say what you are, for tests and for diagnosis."""


class Hello(msgspec.Struct, tag="hello"):
    """From the nursery, first: ready to fork."""

    pid: int


class Spawned(msgspec.Struct, tag="spawned"):
    """From the nursery: the child waits at its gate. Its pidfd comes along where the kernel has them."""

    id: int
    pid: int


class Refused(msgspec.Struct, tag="refused"):
    """From the nursery: the fork did not happen."""

    id: int
    error: str


class Exited(msgspec.Struct, tag="exited", kw_only=True):
    """From the nursery: a child was reaped. `status` is that of wait(2); times in seconds, memory in bytes."""

    pid: int
    status: int
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_bytes: int = 0


class Inspected(msgspec.Struct, tag="inspected"):
    """From the nursery: its threads, its children, and the names in its ``sys.modules``."""

    threads: int
    children: tuple[int, ...]
    modules: tuple[str, ...]


_FD_BYTES = array.array("i").itemsize

ToNursery = Setup | Spawn | Signal | Inspect
FromNursery = Hello | Spawned | Refused | Exited | Inspected

_encoder = msgspec.msgpack.Encoder()
_to_nursery: msgspec.msgpack.Decoder[ToNursery] = msgspec.msgpack.Decoder(ToNursery)
_from_nursery: msgspec.msgpack.Decoder[FromNursery] = msgspec.msgpack.Decoder(FromNursery)


def send(sock: socket.socket, message: ToNursery | FromNursery, fds: tuple[int, ...] = ()) -> None:
    """Send one message with its descriptors.

    Raises:
        ValueError: The message does not fit a datagram.
        OSError: The peer is gone, or (non-blocking) the socket is full.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_DATAGRAM:
        raise ValueError(f"a message of {len(data)} bytes to or from the nursery; at most {MAX_DATAGRAM} fit")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return one datagram and the descriptors that came along; ``b""`` at the end of the connection.

    Raises:
        BlockingIOError: A non-blocking socket has nothing to read.
    """
    # Not socket.recv_fds: it ignores its flags (in CPython 3.11), and what arrives must be close-on-exec, or it
    # leaks into the next program that this process starts.
    room = socket.CMSG_SPACE(SPAWN_FDS * _FD_BYTES)
    data, ancillary, flags, _ = sock.recvmsg(MAX_DATAGRAM, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += memoryview(rights[: len(rights) - len(rights) % _FD_BYTES]).cast("i")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise OSError("a message between master and nursery was cut off")
    return data, fds


def decode_for_nursery(data: bytes) -> ToNursery:
    """Return the message to the nursery in a datagram."""
    return _to_nursery.decode(data)


def decode_from_nursery(data: bytes) -> FromNursery:
    """Return the nursery's message in a datagram."""
    return _from_nursery.decode(data)
