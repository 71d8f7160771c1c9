"""Where the metrics endpoint listens: a loopback address and port, or a UNIX socket. Pure."""

from __future__ import annotations

import socket
from typing import NamedTuple

MAX_SOCKET_PATH = 107
_IPV6_LOOPBACK = b"\0" * 15 + b"\1"


class Address(NamedTuple):
    """One place to listen at.

    Attributes:
        family: ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
        host: The IP, or the path of the socket.
        port: TCP port; 0 for a UNIX socket.
    """

    family: socket.AddressFamily
    host: str
    port: int = 0

    def __str__(self) -> str:
        """Return what `parse_address` reads."""
        if self.family == socket.AF_UNIX:
            return self.host
        return f"[{self.host}]:{self.port}" if self.family == socket.AF_INET6 else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address that `text` names: ``127.0.0.1:9469``, ``[::1]:9469`` or ``/run/garrison/metrics.sock``.

    Raises:
        ValueError: It names none, or one that others than this host could reach; the text says why.
    """
    if text.startswith("/"):
        if not text.isprintable() or ".." in text.split("/") or text.endswith("/"):
            raise ValueError("the path of a socket has no '..', no control characters and no '/' at its end")
        if len(text.encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"the path of a UNIX socket has at most {MAX_SOCKET_PATH} bytes")
        return Address(socket.AF_UNIX, text)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ValueError("expected an address and a port of 1 to 65535, as in 127.0.0.1:9469, or the path of a socket")
    if host.startswith("[") and host.endswith("]"):
        return Address(socket.AF_INET6, _loopback(socket.AF_INET6, host[1:-1]), int(port))
    return Address(socket.AF_INET, _loopback(socket.AF_INET, host), int(port))


def is_loopback(family: socket.AddressFamily, host: str) -> bool:
    """Tell whether an IP is one of this host's loopback addresses."""
    try:
        packed = socket.inet_pton(family, host)
    except (OSError, ValueError):
        return False
    return packed[0] == 127 if family == socket.AF_INET else packed == _IPV6_LOOPBACK


def _loopback(family: socket.AddressFamily, host: str) -> str:
    if not is_loopback(family, host):
        raise ValueError(
            "metrics are served on loopback only: write 127.0.0.1 or [::1] (no name, which may resolve to anything), "
            "and let a proxy or node_exporter's textfile carry them further"
        )
    return host
