"""Tells systemd how the agent is doing: the sd_notify protocol, one datagram a message.

Nothing here blocks or raises: an agent must not fail because its supervisor does not listen. What could not
be sent is counted; READY=1, without which a start fails in the end, goes out with the next message that can be
sent. The variables stay in the environment; whoever starts a child leaves `VARIABLES` out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Not for children: one of them could otherwise speak for the service, or keep a dead one's watchdog quiet."""

MAX_STATUS_CHARACTERS = 512


class Notifier:
    """The connection to the service manager; without one every call does nothing and returns False.

    Args:
        environ: Where `VARIABLES` are looked up.
        pid: This process, to tell whether the watchdog is meant for it.

    Attributes:
        failures: Messages that could not be sent.
        last_error: Why the last of them could not; empty where none failed.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, pid: int | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.failures = 0
        self.last_error = ""
        self._watchdog = _watchdog_interval(environ, os.getpid() if pid is None else pid)
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = _address(name)
        self._socket: socket.socket | None = None
        self._ready_owed = False
        if name and not self._address:
            self._fail(f"NOTIFY_SOCKET={name!r} is no UNIX socket's name")

    @property
    def enabled(self) -> bool:
        """Whether a service manager listens."""
        return bool(self._address)

    def watchdog_interval(self) -> float | None:
        """Return how many seconds may lie between two calls of `watchdog`: half of what systemd waits.

        None where the unit has no watchdog, or it is meant for another process.
        """
        return self._watchdog

    def ready(self, status: str = "") -> bool:
        """The service is up, or has finished reloading."""
        # A manager that is slow to read has room for few messages (net.unix.max_dgram_qlen, 10 by default), and a start
        # of many workers fills it with status lines.
        self._ready_owed = True
        return self._send(_status(status))

    def status(self, text: str) -> bool:
        """Set the line that ``systemctl status`` shows; control characters become spaces."""
        return self._send(_status(text) or "STATUS=")

    def watchdog(self) -> bool:
        """The service is alive; to be called when a turn of its loop has finished."""
        return self._send("WATCHDOG=1")

    def stopping(self, status: str = "") -> bool:
        """The service has begun to stop."""
        self._ready_owed = False
        return self._send("STOPPING=1", _status(status))

    def reloading(self) -> bool:
        """The service has begun to reload; `ready` ends that. The time stamp is what Type=notify-reload wants."""
        self._ready_owed = False  # another one follows at the end of this
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def main_pid(self, pid: int) -> bool:
        """Another process than the one that systemd started is the service's main one."""
        return self._send(f"MAINPID={pid}")

    def close(self) -> None:
        """Close the socket. Idempotent; a later call opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if not self._address:
            return False
        import socket  # only under a service manager, and in the master only, where asyncio has it anyway

        try:
            if self._socket is None:
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                self._socket = socket.socket(socket.AF_UNIX, kind)
            owed = ("READY=1",) if self._ready_owed else ()
            self._socket.sendto("\n".join(filter(None, (*owed, *lines))).encode(), self._address)
        except OSError as error:
            self._fail(str(error))
            return False
        self._ready_owed = False
        return True

    def _fail(self, why: str) -> None:
        self.failures += 1
        self.last_error = why


def _address(name: str) -> bytes:
    """Return the socket's address; empty where the name is none that this process could send to."""
    encoded = os.fsencode(name)
    if len(encoded) < 2 or len(encoded) > 107:
        return b""
    if name.startswith("@"):
        return b"\0" + encoded[1:]
    return encoded if name.startswith("/") else b""


def _status(text: str) -> str:
    if not text:
        return ""
    # A newline would end the assignment and let the rest pass as another one.
    line = "".join(letter if letter.isprintable() else " " for letter in text[:MAX_STATUS_CHARACTERS])
    return f"STATUS={line}"


def _watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    usec, owner = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (usec.isascii() and usec.isdigit()) or int(usec) == 0:
        return None
    if owner and owner != str(pid):
        return None
    return int(usec) / 2_000_000
