"""The proc connector: fork, exec and exit of every process of the host, told by the kernel over netlink.

The socket carries a classic BPF filter, so that threads and the kinds of event that nobody here reads are
dropped by the kernel before they cost a wakeup. A filter of events in ``proc_input`` (Linux 6.6) would do
part of the same on new kernels only, and would also swallow the acknowledgement of the subscription.

Layouts: ``linux/netlink.h``, ``linux/connector.h``, ``linux/cn_proc.h``.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
import time
from typing import Final, NamedTuple

NETLINK_CONNECTOR: Final = 11
CN_IDX_PROC: Final = 1
CN_VAL_PROC: Final = 1

ACK: Final = 0
FORK: Final = 0x1
EXEC: Final = 0x2
EXIT: Final = 0x80000000

_LISTEN: Final = 1
_IGNORE: Final = 2
_NLMSG_NOOP: Final = 1
_NLMSG_DONE: Final = 3
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_MEMINFO_DROPS: Final = 8
_DATAGRAM_BYTES: Final = 4096

_NLMSG = struct.Struct("=IHHII")
_CN = struct.Struct("=IIIIHH")
_EVENT = struct.Struct("=IIQ")
_FOUR = struct.Struct("=IIII")
_TWO = struct.Struct("=II")
_ONE = struct.Struct("=I")
_HEADERS: Final = _NLMSG.size + _CN.size


class ConnectorError(Exception):
    """The proc connector cannot be used here. The text says why; the caller polls /proc instead."""


class DatagramError(ValueError):
    """A datagram is not what the kernel sends. Nothing of it was used; the caller counts it and goes on."""


class ProcEvent(NamedTuple):
    """One event.

    Attributes:
        what: `FORK`, `EXEC`, `EXIT` or `ACK`.
        pid: The process: the child of a fork. For `ACK` the acknowledgement number.
        parent: The parent of a fork, else 0.
        code: Wait status of an exit, or the error number of an `ACK`, else 0.
        timestamp_ns: Monotonic nanoseconds at which the kernel made the event.
    """

    what: int
    pid: int
    parent: int
    code: int
    timestamp_ns: int


def parse(datagram: bytes) -> list[ProcEvent]:
    """Return the events of a datagram; threads and kinds that are not ours are left out. Pure.

    Raises:
        DatagramError: A length does not fit, or a message is shorter than its kind needs.
    """
    events: list[ProcEvent] = []
    offset, end = 0, len(datagram)
    while offset < end:
        if end - offset < _NLMSG.size:
            raise DatagramError(f"{end - offset} bytes at the end are too few for a netlink header")
        length, kind, _, _, _ = _NLMSG.unpack_from(datagram, offset)
        if length < _NLMSG.size or length > end - offset:
            raise DatagramError(f"a netlink message claims {length} of {end - offset} bytes")
        if kind == _NLMSG_DONE:
            event = _message(datagram, offset, length)
            if event is not None:
                events.append(event)
        elif kind != _NLMSG_NOOP:
            raise DatagramError(f"a netlink message of type {kind}")
        offset += (length + 3) & ~3
    return events


def _message(datagram: bytes, start: int, length: int) -> ProcEvent | None:
    if length < _HEADERS:
        raise DatagramError(f"{length} bytes are too few for a connector message")
    idx, val, _, ack, payload, _ = _CN.unpack_from(datagram, start + _NLMSG.size)
    if payload > length - _HEADERS:
        raise DatagramError(f"a connector message claims {payload} of {length - _HEADERS} bytes")
    if idx != CN_IDX_PROC or val != CN_VAL_PROC:
        return None
    at = start + _HEADERS
    if payload < _EVENT.size:
        raise DatagramError(f"{payload} bytes are too few for a process event")
    what, _, when = _EVENT.unpack_from(datagram, at)
    at += _EVENT.size
    room = payload - _EVENT.size
    if what == EXEC:
        pid, tgid = _fields(_TWO, datagram, at, room)
        return ProcEvent(EXEC, tgid, 0, 0, when) if pid == tgid else None
    if what == FORK:
        _, parent, child, tgid = _fields(_FOUR, datagram, at, room)
        return ProcEvent(FORK, tgid, parent, 0, when) if child == tgid else None
    if what == EXIT:
        pid, tgid, code, _ = _fields(_FOUR, datagram, at, room)
        return ProcEvent(EXIT, tgid, 0, code, when) if pid == tgid else None
    if what == ACK:
        (error,) = _fields(_ONE, datagram, at, room)
        return ProcEvent(ACK, ack, 0, error, when)
    return None


def _fields(layout: struct.Struct, datagram: bytes, at: int, room: int) -> tuple[int, ...]:
    if room < layout.size:
        raise DatagramError(f"{room} bytes are too few for the {layout.size} of a process event's fields")
    return layout.unpack_from(datagram, at)


def request(operation: int, ack: int) -> bytes:
    """Return the message that starts or ends the subscription. Pure."""
    body = _ONE.pack(operation)
    size = _HEADERS + len(body)
    return _NLMSG.pack(size, _NLMSG_DONE, 0, 0, 0) + _CN.pack(CN_IDX_PROC, CN_VAL_PROC, 0, ack, len(body), 0) + body


def socket_filter() -> list[tuple[int, int, int, int]]:
    """Return the classic BPF program: pass acknowledgements, execs, and forks and exits of whole processes.

    BPF loads words in network order, the message has them in the host's: constants are swapped instead.
    """
    load, equal, to_x, equal_x, give = 0x20, 0x15, 0x07, 0x1D, 0x06
    what, data = _HEADERS, _HEADERS + _EVENT.size
    return [
        (load, 0, 0, what),
        (equal, 12, 0, socket.htonl(EXEC)),
        (equal, 11, 0, ACK),
        (equal, 2, 0, socket.htonl(FORK)),
        (equal, 5, 0, socket.htonl(EXIT)),
        (give, 0, 0, 0),
        (load, 0, 0, data + 8),  # fork: child_pid against child_tgid
        (to_x, 0, 0, 0),
        (load, 0, 0, data + 12),
        (equal_x, 4, 5, 0),
        (load, 0, 0, data),  # exit: process_pid against process_tgid
        (to_x, 0, 0, 0),
        (load, 0, 0, data + 4),
        (equal_x, 0, 1, 0),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    ]


class Connector:
    """A subscribed socket. Use `open_connector`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._early: list[ProcEvent] = []
        self.overruns = 0
        """Times the kernel said that events were lost for want of buffer."""
        self.malformed = 0
        """Datagrams that were not understood or did not come from the kernel."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._sock.fileno()

    @property
    def early(self) -> bool:
        """Whether `read` has events that the descriptor does not show: they came with the acknowledgement."""
        return bool(self._early)

    def lost(self) -> int | None:
        """Return how many events the kernel has dropped since the start; None before Linux 4.12."""
        try:
            raw = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
        except OSError:
            return None
        if len(raw) < 4 * (_MEMINFO_DROPS + 1):
            return None
        drops: int = struct.unpack_from("=I", raw, 4 * _MEMINFO_DROPS)[0]
        return drops

    def buffer_bytes(self) -> int:
        """Return the receive buffer that the kernel granted, bytes (it doubles what is asked for)."""
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def read(self, limit: int = 512) -> tuple[list[ProcEvent], bool]:
        """Return events that are there now, at most about `limit`, and whether more may be waiting.

        An overrun is counted in `overruns` and reading goes on: the kernel drops until the queue is empty, which
        it was for certain when nothing more is waiting.

        Raises:
            ConnectorError: The socket does not work any more.
        """
        events, self._early = self._early, []
        receive = self._sock.recvfrom
        for _ in range(limit):
            try:
                datagram, sender = receive(_DATAGRAM_BYTES)
            except BlockingIOError:
                return events, False
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self.overruns += 1
                    continue
                raise ConnectorError(f"reading the proc connector failed: {error.strerror}") from error
            if sender[0] != 0:
                self.malformed += 1
                continue
            try:
                events += parse(datagram)
            except DatagramError:
                self.malformed += 1
        return events, True

    def subscribe(self, timeout: float) -> None:
        """Ask for events and wait for the kernel's acknowledgement.

        Outside the initial user and pid namespaces the kernel ignores the request without a word, and events
        may come all the same while somebody else listens: only an acknowledged subscription counts.

        Raises:
            ConnectorError: Refused, or not acknowledged within `timeout` seconds.
        """
        number = int.from_bytes(os.urandom(4), "little") & 0x7FFFFFFE
        try:
            self._sock.send(request(_LISTEN, number))
        except OSError as error:
            raise ConnectorError(f"the kernel has no proc connector here: {error.strerror}") from error
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        kept: list[ProcEvent] = []
        while (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
            for event in self.read()[0]:
                if event.what != ACK:
                    kept.append(event)
                elif event.pid == number + 1:
                    if event.code:
                        reason = os.strerror(event.code)
                        raise ConnectorError(f"the kernel refused the proc connector: {reason} (CAP_NET_ADMIN?)")
                    self._early = kept
                    return
        raise ConnectorError(
            "the kernel did not acknowledge the proc connector: not in the initial pid and user namespaces?"
        )

    def close(self) -> None:
        """End the subscription and give the socket back. Idempotent."""
        if self._sock.fileno() >= 0:
            # The kernel before 6.6 does not notice a closed listener and would go on making events.
            with contextlib.suppress(OSError):
                self._sock.send(request(_IGNORE, 0))
            self._sock.close()


def open_connector(buffer_bytes: int, timeout: float = 2.0) -> Connector:
    """Return a subscribed connector.

    Args:
        buffer_bytes: Receive buffer to ask for; above ``net.core.rmem_max`` only with CAP_NET_ADMIN.
        timeout: Seconds to wait for the acknowledgement.

    Raises:
        ConnectorError: It cannot be used here; the text says why.
    """
    try:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, NETLINK_CONNECTOR
        )
    except OSError as error:
        raise ConnectorError(f"no netlink connector socket: {error.strerror}") from error
    connector = Connector(sock)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        program = socket_filter()
        code = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in program))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), code.buffer_info()[0]))
        sock.bind((0, CN_IDX_PROC))
        connector.subscribe(timeout)
    except OSError as error:
        sock.close()
        hint = " (CAP_NET_ADMIN is needed before Linux 6.6)" if error.errno == errno.EPERM else ""
        raise ConnectorError(f"the proc connector was refused: {error.strerror}{hint}") from error
    except ConnectorError:
        connector.close()
        raise
    return connector
