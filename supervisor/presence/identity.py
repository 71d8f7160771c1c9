"""Who this host and this process are, as the registration says it."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import os
import socket
import struct
import time

from garrison.supervisor.events.own import timestamp
from garrison.supervisor.presence.document import MAX_ADDRESSES, Registration
from garrison.supervisor.version import VERSION

MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"
INET6_FILE = "/proc/net/if_inet6"

_SIOCGIFCONF = 0x8912
_IFREQ_BYTES = 40 if struct.calcsize("P") == 8 else 32  # struct ifreq of <net/if.h>
_MAX_INTERFACES = 256
_MAX_FILE_BYTES = 64 * 1024


def own_registration(cgroup_mode: str, groups: tuple[str, ...], addresses: tuple[str, ...]) -> Registration:
    """Return the registration of this process; its ``instance`` is another one with each call."""
    return Registration(
        version=VERSION,
        machine_id=machine_id(),
        boot_id=boot_id(),
        instance=os.urandom(8).hex(),
        pid=os.getpid(),
        ip_addresses=addresses,
        kernel=os.uname().release,
        cgroup_mode=cgroup_mode,
        groups=groups,
        started=timestamp(time.time()),
    )


def machine_id(paths: tuple[str, ...] = MACHINE_ID_FILES) -> str:
    """Return the machine's id, or "" where it has none (a container; an image before its first boot)."""
    for path in paths:
        text = _first_line(path)
        if len(text) == 32 and text.isalnum():
            return text.lower()
    return ""


def boot_id(path: str = BOOT_ID_FILE) -> str:
    """Return the id of the kernel's start, or "" where it cannot be told."""
    return _first_line(path)


def ip_addresses(towards: str = "") -> tuple[str, ...]:
    """Return this host's addresses: the one used towards an address first, then IPv4, then IPv6.

    Loopback and link-local addresses are left out where there are others, and so is what is beyond `MAX_ADDRESSES`.

    Args:
        towards: An IP address, such as that of the endpoint; "" where there is none.
    """
    first = source_address(towards)
    found = dict.fromkeys(text for text in (first, *_ipv4(), *_ipv6()) if text and _public(text))
    return tuple(found)[:MAX_ADDRESSES] or ((first,) if first else ())


def source_address(towards: str) -> str:
    """Return the address that the kernel would send from, or "" where it has no route. Nothing is sent."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(towards).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.connect((towards, 9))  # any port: connecting a datagram socket only looks up the route
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""


def _public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return not (address.is_loopback or address.is_link_local)


def _ipv4() -> list[str]:
    """Return the addresses of all interfaces, by SIOCGIFCONF: bounded, and no library is needed."""
    names = array.array("B", bytes(_IFREQ_BYTES * _MAX_INTERFACES))
    address, _ = names.buffer_info()
    request = struct.pack("iP", len(names), address)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFCONF, request)
    except OSError:
        return []
    length = min(struct.unpack("iP", answer)[0], len(names))
    data = names.tobytes()
    # In each struct ifreq: 16 bytes of name, then a struct sockaddr_in, whose address stands at its byte 4.
    return [socket.inet_ntoa(data[at + 20 : at + 24]) for at in range(0, length, _IFREQ_BYTES)]


def _ipv6(path: str = INET6_FILE) -> list[str]:
    found = []
    for line in _read(path).splitlines():
        digits = line.partition(" ")[0]
        if len(digits) == 32:
            try:
                found.append(str(ipaddress.IPv6Address(int(digits, 16))))
            except ValueError:
                continue
    return found


def _first_line(path: str) -> str:
    return _read(path).partition("\n")[0].strip()


def _read(path: str) -> str:
    """Return the beginning of a small file; "" where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        return os.read(fd, _MAX_FILE_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
