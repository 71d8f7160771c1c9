"""Which cgroup hierarchies there are, and where a process is in them. Pure parsing of two files of /proc.

A hierarchy is known by a **key**: the empty string for v2, else one of its controllers (``cpu``) or its
name (``name=systemd``). Co-mounted controllers (``cpu,cpuacct``) share one mount and are each a key of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNIFIED_KEY = ""
"""The key of the v2 hierarchy, as it stands in ``/proc/PID/cgroup``."""

V1_CONTROLLERS = frozenset(
    {
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "debug",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    }
)
"""Names that a v1 mount's options may hold: what else stands there (``rw``, ``xattr``) is no controller."""

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted hierarchy.

    Attributes:
        version: 1 or 2.
        controllers: v1: those of this mount. v2: empty, because there they are a matter of each node.
        name: Name of a named v1 hierarchy (``systemd``), else empty.
        root: Cgroup path that is visible at the mount point; not ``/`` for bind mounts and namespaces.
        point: The mount point.
        writable: Mounted read-write.
    """

    version: int
    controllers: frozenset[str]
    name: str
    root: str
    point: str
    writable: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys under which this hierarchy is found, sorted."""
        if self.version == 2:
            return (UNIFIED_KEY,)
        return (*sorted(self.controllers), f"name={self.name}") if self.name else tuple(sorted(self.controllers))

    def directory(self, path: str) -> str | None:
        """Return the directory of a cgroup path; None where this mount does not show it."""
        relative = self.inside(path)
        if relative is None:
            return None
        return os.path.join(self.point, relative) if relative else self.point

    def inside(self, path: str) -> str | None:
        """Return a cgroup path relative to the mount's root, without slashes at its ends, or None."""
        if ".." in path.split("/"):
            # The reader's cgroup namespace does not contain the group.
            return None
        root = self.root.rstrip("/")
        if path != root and not path.startswith(root + "/"):
            return None
        return path[len(root) :].strip("/")

    def path(self, relative: str) -> str:
        """Return the cgroup path of a path relative to the mount's root: what ``/proc/PID/cgroup`` shows."""
        return "/" + "/".join(part for part in (self.root.strip("/"), relative.strip("/")) if part)


def unescape(field: str) -> str:
    r"""Return a field of mountinfo with its octal escapes (``\040`` is a space) resolved."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Return the cgroup mounts of a ``/proc/PID/mountinfo``, each mount point once: the topmost mount.

    Format: proc(5). Lines of other file systems and lines that are no mountinfo are left out.
    """
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        front, separator, back = line.partition(" - ")
        fields, tail = front.split(), back.split()
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue
        point = unescape(fields[4])
        # Whatever is mounted over a hierarchy hides it.
        found.pop(point, None)
        if tail[0] not in ("cgroup", "cgroup2"):
            continue
        mount_options, options = fields[5].split(","), tail[2].split(",")
        version = 2 if tail[0] == "cgroup2" else 1
        name = next((option[5:] for option in options if option.startswith("name=")), "")
        found[point] = Mount(
            version=version,
            controllers=V1_CONTROLLERS.intersection(options) if version == 1 else frozenset(),
            name=name if version == 1 else "",
            root=unescape(fields[3]),
            point=point,
            writable="rw" in mount_options and "rw" in options,
        )
    return tuple(found.values())


def by_key(mounts: Iterable[Mount]) -> dict[str, Mount]:
    """Return one mount for each key; of several the one that shows most and can be written wins."""
    chosen: dict[str, Mount] = {}
    for mount in mounts:
        for key in mount.keys:
            best = chosen.get(key)
            if best is None or _rank(mount) < _rank(best):
                chosen[key] = mount
    return chosen


def _rank(mount: Mount) -> tuple[bool, int]:
    return not mount.writable, len(mount.root.strip("/"))


def parse_membership(text: str) -> dict[str, str]:
    """Return key → cgroup path of a ``/proc/PID/cgroup``: the keys are those of `Mount.keys`.

    A removed v2 group keeps the mark `` (deleted)`` that the kernel adds: it is no group any more, and its
    path shall equal none.
    """
    paths: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for key in fields[1].split(","):
                paths[key] = fields[2]
    return paths


def path_of(mount: Mount, membership: Mapping[str, str]) -> str | None:
    """Return the cgroup path of a process in a mounted hierarchy, or None where it is not listed."""
    for key in mount.keys:
        if key in membership:
            return membership[key]
    return None


def read_mounts(pid: int | str = "self") -> tuple[Mount, ...]:
    """Return the cgroup mounts that a process sees.

    Raises:
        OSError: No such process, or no /proc.
    """
    return parse_mountinfo(_read(f"/proc/{pid}/mountinfo"))


def read_membership(pid: int | str = "self") -> dict[str, str]:
    """Return where a process is, by key.

    Raises:
        OSError: No such process (also ESRCH, for one that dies while it is read), or no /proc.
    """
    return parse_membership(_read(f"/proc/{pid}/cgroup"))


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
