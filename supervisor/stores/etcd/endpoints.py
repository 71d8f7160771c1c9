"""The endpoints of the configuration: what is one, and in which order a host tries them. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

from garrison.ipc.pacing import spread
from garrison.supervisor.keys import shown

DEFAULT_PORT = 2379
MAX_PORT = 65535

_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")
_SCHEMES = ("http", "https")


class Endpoint(NamedTuple):
    """One endpoint as configured.

    Attributes:
        host: A name, or an IP without brackets.
        port: TCP port.
        scheme: ``http``, ``https``, or empty where none was written.
    """

    host: str
    port: int = DEFAULT_PORT
    scheme: str = ""

    def __str__(self) -> str:
        """Return ``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ip(self) -> bool:
        """Tell whether nothing needs to be resolved."""
        return _is_ip(self.host)


class Address(NamedTuple):
    """Where to connect.

    Attributes:
        host: The name or IP as configured: certificates are checked against it.
        port: TCP port.
        ip: What the name was resolved to; equals `host` where that is an IP.
    """

    host: str
    port: int
    ip: str

    def __str__(self) -> str:
        """Return ``host:port``, and behind it the IP that a name was resolved to."""
        text = str(Endpoint(self.host, self.port))
        return text if self.host == self.ip else f"{text} ({self.ip})"


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint that `text` names: ``[http[s]://]host[:port]``, an IPv6 address in brackets.

    Raises:
        ValueError: It names none; the text says why.
    """
    scheme, rest = "", text
    if "://" in text:
        scheme, _, rest = text.partition("://")
        if scheme not in _SCHEMES:
            raise ValueError(f"{shown(text)!r}: a scheme is http or https")
        rest = rest.removesuffix("/")
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")) or not _is_ip(host) or ":" not in host:
            raise ValueError(f"{shown(text)!r}: an IPv6 address is written as [2001:db8::1]:2379")
        port = port[1:] if port else str(DEFAULT_PORT)
    elif rest.count(":") > 1:
        raise ValueError(f"{shown(text)!r}: put an IPv6 address in brackets, as in [2001:db8::1]:2379")
    else:
        host, colon, port = rest.partition(":")
        port = port if colon else str(DEFAULT_PORT)
        looks_like_ip = host.replace(".", "").isdecimal()
        if not (_is_ip(host) if looks_like_ip else _NAME.fullmatch(host)):
            raise ValueError(f"{shown(text)!r} is no host:port")
    if not port.isascii() or not port.isdecimal() or not 0 < int(port[:9]) <= MAX_PORT:
        raise ValueError(f"{shown(text)!r}: a port is a number from 1 to {MAX_PORT}")
    return Endpoint(host, int(port), scheme)


def first_index(host: str, count: int) -> int:
    """Return which endpoint a host tries first: fixed for it, and even over a fleet."""
    return int(spread(host, "etcd endpoint") * count)


def choose_ip(ips: Sequence[str], host: str, attempt: int) -> str:
    """Return one of the addresses of a name: fixed for a host, another one at each attempt."""
    return ips[(int(spread(host, "etcd address") * len(ips)) + attempt) % len(ips)]


def _is_ip(host: str) -> bool:
    if "%" in host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
