"""Users and groups of this host, from /etc/passwd and /etc/group alone.

Never through NSS: ``getpwnam`` may ask LDAP or SSSD over the network, and a worker must start without one.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

MAX_BYTES: Final = 4 * 1024 * 1024
"""Most that is read of either file."""
MAX_GROUPS: Final = 64
"""Most supplementary groups; the kernel allows 65,536, which nobody's worker needs."""


class NoAccountError(LookupError):
    """There is no such user on this host; the text says where it was looked for."""


class Account(NamedTuple):
    """A user as a process becomes it.

    Attributes:
        name: Name.
        uid: User id.
        gid: Primary group.
        groups: Supplementary groups, sorted.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def find(name: str, passwd: str, group: str) -> Account | None:
    """Return an account out of the content of the two files, or None. Lines that are no entry are skipped. Pure."""
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and fields[0] == name and fields[2].isdigit() and fields[3].isdigit():
            member_of = sorted(_groups_of(name, group))[:MAX_GROUPS]
            return Account(name, int(fields[2]), int(fields[3]), tuple(member_of))
    return None


def lookup(name: str, folder: str = "/etc") -> Account:
    """Return a user of this host.

    Raises:
        NoAccountError: There is none, or the files cannot be read.
    """
    passwd = os.path.join(folder, "passwd")
    try:
        found = find(name, _read(passwd), _read(os.path.join(folder, "group")))
    except OSError as error:
        raise NoAccountError(f"user {name}: {error.filename} cannot be read: {error.strerror}") from error
    if found is None:
        raise NoAccountError(f"there is no user {name} in {passwd} (network accounts are not looked up)")
    return found


def _groups_of(name: str, group: str) -> set[int]:
    found = set()
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[2].isdigit() and name in fields[3].split(","):
            found.add(int(fields[2]))
    return found


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES).decode("utf-8", "replace")
