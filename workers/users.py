"""Names of users and groups, from /etc/passwd and /etc/group alone.

Never through NSS: ``getpwuid`` may ask LDAP or SSSD over the network, once for each process on the host.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

MAX_BYTES: Final = 4 * 1024 * 1024
"""Most that is read of the file, bytes."""

MAX_USERS: Final = 10_000
"""Most names that are kept."""


def parse_passwd(data: bytes, limit: int = MAX_USERS) -> dict[int, str]:
    """Return names by id, the first one where an id is there twice. Lines that are no entry are skipped. Pure.

    /etc/group has its ids in the same column.
    """
    names: dict[int, str] = {}
    for line in data.split(b"\n"):
        fields = line.split(b":", 3)
        if len(fields) < 4 or not fields[0] or not fields[2].isdigit() or len(fields[2]) > 10:
            continue
        if len(names) >= limit:
            break
        names.setdefault(int(fields[2]), fields[0][:256].decode("utf-8", "replace"))
    return names


class Users:
    """Names by id; the file is read again when its time, size or inode changed, at most every `check_seconds`.

    Args:
        path: The passwd or group file.
        check_seconds: Least seconds between two looks at the file.
    """

    def __init__(self, path: str = "/etc/passwd", check_seconds: float = 2.0) -> None:
        self._path = path
        self._check_seconds = check_seconds
        self._checked: float | None = None
        self._seen: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}

    def name(self, uid: int, now: float) -> str | None:
        """Return the name of an id at the monotonic time `now` (seconds), or None where it has none here."""
        if self._checked is None or now - self._checked >= self._check_seconds:
            self._checked = now
            # A file that is missing or half replaced keeps the names of before: ids are in the events anyway.
            with contextlib.suppress(OSError):
                self._refresh()
        return self._names.get(uid)

    def _refresh(self) -> None:
        facts = os.stat(self._path)
        stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        if stamp == self._seen:
            return
        with open(self._path, "rb") as file:
            self._names = parse_passwd(file.read(MAX_BYTES))
        self._seen = stamp
