"""Which container a process is in, from its /proc/PID/cgroup. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Container(NamedTuple):
    """A container: its id as its runtime writes it, and the runtime's name, empty where the path does not tell."""

    id: str
    runtime: str


_HEX_ID: Final = re.compile(r"(?:^|[/:_-])([0-9a-f]{64})(?=\.scope|/|$)")
_ECS_TASK: Final = re.compile(r"/ecs/[^/]+/([0-9a-f]{32}-\d{6,10})(?=/|$)")
_LXC: Final = re.compile(r"/lxc(?:\.payload[./]|/)([^/]+)")
_NSPAWN: Final = re.compile(r"/machine\.slice/(?:machine-([^/]+)\.scope|systemd-nspawn@([^/]+)\.service)")
_ESCAPED: Final = re.compile(r"\\x([0-9a-fA-F]{2})")
_MANAGERS: Final = ("conmon-", "conmon/")
_RUNTIMES: Final = (
    ("cri-containerd", "containerd"),
    ("containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("crio", "cri-o"),
    ("libpod", "podman"),
    ("podman", "podman"),
    ("docker", "docker"),
    ("/ecs/", "docker"),
    ("garden", "garden"),
)


def container_of(text: str) -> Container | None:
    """Return the container that a cgroup file names, the innermost where several are nested.

    Known: Docker, containerd, CRI-O, Podman, nerdctl, kubelet's pods with cgroupfs or systemd scopes, ECS,
    LXC and systemd-nspawn; v1, v2 and hybrid. The manager of a container (conmon) is not inside it.
    """
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        _, colon, path = rest.partition(":")
        if not colon or len(path) < 2:
            continue
        found = _of_path(path)
        if found is not None:
            return found
    return None


def _of_path(path: str) -> Container | None:
    ids = list(_HEX_ID.finditer(path))
    if ids:
        last = ids[-1]
        start = last.start(1)
        segment = path.rfind("/", 0, start)
        if any(name in path[segment + 1 : start] or path.startswith(name, start) for name in _MANAGERS):
            return None
        lead = path[:start]
        for word, runtime in _RUNTIMES:
            if word in lead:
                return Container(last.group(1), runtime)
        return Container(last.group(1), "")
    task = _ECS_TASK.search(path)
    if task is not None:
        return Container(task.group(1), "containerd")
    lxc = _LXC.search(path)
    if lxc is not None:
        return Container(lxc.group(1), "lxc")
    machine = _NSPAWN.search(path)
    if machine is not None:
        name = _ESCAPED.sub(lambda code: chr(int(code.group(1), 16)), machine.group(1) or machine.group(2))
        # libvirt keeps its virtual machines and its LXC containers in the same slice.
        if name.startswith("qemu-"):
            return None
        return Container(name, "systemd-nspawn")
    return None
