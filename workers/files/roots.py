"""From settings to targets: presets, homes of users, and the real paths behind symbolic links."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from garrison.workers.files import rules
from garrison.workers.files.presets import PERSISTENCE, WEB_ROOTS
from garrison.workers.files.rules import Rule
from garrison.workers.files.settings import Config
from garrison.workers.files.targets import Target, literal_prefix, parts
from garrison.workers.users import MAX_BYTES

MAX_HOMES: Final = 2000
"""Most homes that are looked at; each costs a few watches."""

_NO_HOMES: Final = frozenset(
    ("/", "/nonexistent", "/dev", "/dev/null", "/proc", "/sys", "/bin", "/sbin", "/usr/bin", "/usr/sbin")
)


def parse_homes(data: bytes, limit: int = MAX_HOMES) -> tuple[list[str], int]:
    """Return the homes in /etc/passwd, each once, in order, and how many were too many. Pure."""
    homes: dict[str, None] = {}
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) < 6 or not fields[5].startswith(b"/"):
            continue
        home = os.fsdecode(os.path.normpath(fields[5]))
        home = home.replace("//", "/", 1) if home.startswith("//") else home
        if home not in _NO_HOMES and len(fields[5]) <= 1024:
            homes.setdefault(home)
    return list(homes)[:limit], max(0, len(homes) - limit)


def read_homes(path: str = "/etc/passwd") -> tuple[list[str], int]:
    """Return the homes of the users of this host, and how many were too many; none where there is no such file."""
    try:
        with open(path, "rb") as file:
            return parse_homes(file.read(MAX_BYTES))
    except OSError:
        return [], 0


def wanted(config: Config) -> list[tuple[str, str, Rule | None, bool]]:
    """Return path, key, rule and whether `include` applies, of everything the settings ask for. Pure."""
    found: list[tuple[str, str, Rule | None, bool]] = []
    if "persistence" in config.presets:
        found += [(path, f"persistence:{path}", rule, False) for rule, paths in PERSISTENCE for path in paths]
    if "web" in config.presets:
        found += [(path, f"web:{path}", rules.WEB, True) for path in WEB_ROOTS]
    found += [(path, f"alert_paths:{path}", rules.WATCHED, False) for path in config.alert_paths]
    found += [(path, f"paths:{path}", None, True) for path in config.paths]
    return found


def targets(config: Config, homes: list[str]) -> list[Target]:
    """Return the targets with real paths.

    Links in front of a path are resolved: /home may be one. At its end only those that root has made are followed,
    because a user could otherwise have us look at any place.
    """
    found: dict[Target, None] = {}
    real_homes = [os.path.realpath(home) for home in homes]
    for path, key, rule, filtered in wanted(config):
        if path.startswith("~"):
            for home in real_homes:
                found.setdefault(Target(home + path[1:], key, rule, filtered))
            continue
        for real in _real(path):
            found.setdefault(Target(real, key, rule, filtered))
    return list(found)


def _real(path: str) -> list[str]:
    front, rest = literal_prefix(path)
    if rest:
        return [_join(os.path.realpath(front), rest)]
    head, _, tail = front.rpartition("/")
    place = _join(os.path.realpath(head or "/"), tail) if parts(front) else "/"
    found = [place]
    with contextlib.suppress(OSError):  # nothing there yet, which is the normal case
        if os.path.islink(place) and os.lstat(place).st_uid == 0:
            found.append(os.path.realpath(place))
    return found


def _join(folder: str, rest: str) -> str:
    return f"/{rest}" if folder == "/" else f"{folder}/{rest}"
