"""Which connection a socket of another process is.

First the protocol's name, which the kernel gives for one call (``system.sockprotoname``, Linux 3.7): most
sockets below a shell are Unix sockets of the journal, and no table needs to be read for those. Then the one
table of the process's own network namespace that can have it, a bounded part of it, for candidates only.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

TABLE_BYTES: Final = 4 * 1024 * 1024
"""Most that is read of one table, bytes: about 27,000 connections."""

_CHUNK: Final = 64 * 1024
_LISTEN: Final = b"0A"
_TABLES: Final = {b"TCP": "tcp", b"TCPv6": "tcp6", b"UDP": "udp", b"UDPv6": "udp6"}
_PREFIX: Final = "socket:["
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Row(NamedTuple):
    """One row of a table of /proc/net.

    Attributes:
        local_address: As text.
        local_port: Port.
        remote_address: As text.
        remote_port: Port, 0 where it is not connected.
        state: Two hexadecimal digits.
        inode: The socket's inode.
    """

    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    state: bytes
    inode: int


class Connection(NamedTuple):
    """A connected socket; addresses are empty and ports 0 where the table was too long to find it.

    Attributes:
        transport: ``tcp`` or ``udp``.
        local_address: This side.
        local_port: This side.
        remote_address: The other side.
        remote_port: The other side.
        inbound: The port is also listened on, so that the other side opened the connection; None: not known.
    """

    transport: str
    local_address: str
    local_port: int
    remote_address: str
    remote_port: int
    inbound: bool | None

    @property
    def loopback(self) -> bool:
        """Whether the other side is this host's loopback."""
        return self.remote_address.startswith("127.") or self.remote_address == "::1"


def decode_address(text: bytes, order: str = sys.byteorder) -> tuple[str, int]:
    """Return address and port of ``0100007F:1F90``. IPv4 in IPv6 is given as IPv4. Pure.

    Args:
        text: Address in words of 32 bits as the host stores them, colon, port, all hexadecimal.
        order: Byte order of the host, ``little`` or ``big``.

    Raises:
        ValueError: It is no such text.
    """
    address, colon, port = text.partition(b":")
    if not colon or len(address) not in (8, 32) or len(port) != 4:
        raise ValueError(f"{text[:64]!r} is no address of a table of /proc/net")
    raw = bytes.fromhex(address.decode("ascii"))
    if order == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    if len(raw) == 16 and raw.startswith(_MAPPED):
        raw = raw[12:]
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw), int(port, 16)


def parse_row(line: bytes) -> Row | None:
    """Return a row, or None for the heading and for what is no row. Pure."""
    fields = line.split(None, 10)
    if len(fields) < 10:
        return None
    try:
        local, remote = decode_address(fields[1]), decode_address(fields[2])
        return Row(*local, *remote, fields[3], int(fields[9]))
    except ValueError:
        return None


def find_row(read: Callable[[int], bytes], inode: int, limit: int = TABLE_BYTES) -> tuple[Row | None, bool, bool]:
    """Search a table for a socket without holding more than a chunk of it.

    Args:
        read: Returns up to so many next bytes, none at the end.
        inode: The socket.
        limit: Most bytes to read.

    Returns:
        The row or None, whether its local port is listened on too, and whether the limit ended the search.
    """
    wanted = b" %d " % inode
    listening: set[int] = set()
    at_head, rest, taken = True, b"", 0
    while taken < limit:
        data = read(_CHUNK)
        if not data:
            return None, False, False
        taken += len(data)
        data = rest + data
        end = data.rfind(b"\n") + 1
        block, rest = data[:end], data[end:][:_CHUNK]
        if at_head:
            # Listening sockets come first; which ports they have tells who opened a connection.
            for line in block.split(b"\n"):
                fields = line.split(None, 4)
                if len(fields) < 4 or fields[3] == b"st":
                    continue
                if fields[3] != _LISTEN:
                    at_head = False
                    break
                row = parse_row(line)
                if row is not None:
                    listening.add(row.local_port)
        at = block.find(wanted)
        while at >= 0:
            row = parse_row(block[block.rfind(b"\n", 0, at) + 1 : block.find(b"\n", at)])
            if row is not None and row.inode == inode:
                return row, row.local_port in listening, False
            at = block.find(wanted, at + 1)
    return None, False, True


def inode_of(link: str) -> int | None:
    """Return the inode of a descriptor's link ``socket:[123]``, or None where it is no socket. Pure."""
    if not link.startswith(_PREFIX):
        return None
    digits = link[len(_PREFIX) : -1]
    return int(digits) if digits.isdigit() else None


def connection_of(pid: int, fd: int, link: str) -> Connection | None:
    """Return the connection behind a descriptor, or None: no internet socket, listening, or not connected.

    Args:
        pid: The process.
        fd: Its descriptor.
        link: What the descriptor's link in /proc says.
    """
    inode = inode_of(link)
    if inode is None:
        return None
    for table in _tables(pid, fd):
        connection = _look_up(pid, table, inode)
        if connection is not None:
            return connection
    return None


def _tables(pid: int, fd: int) -> tuple[str, ...]:
    try:
        name = os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").rstrip(b"\0")
    except OSError as error:
        return tuple(_TABLES.values()) if error.errno in (errno.ENOTSUP, errno.ENODATA) else ()
    table = _TABLES.get(name)
    return (table,) if table else ()


def _look_up(pid: int, table: str, inode: int) -> Connection | None:
    try:
        with open(f"/proc/{pid}/net/{table}", "rb", buffering=0) as file:
            row, listening, cut = find_row(lambda size: file.read(size) or b"", inode)
    except OSError:
        # The process is gone, or the kernel has no such family.
        return None
    transport = table[:3]
    if cut:
        return Connection(transport, "", 0, "", 0, None)
    if row is None or row.state == _LISTEN or not row.remote_port:
        return None
    return Connection(transport, *row[:4], listening if transport == "tcp" else None)
