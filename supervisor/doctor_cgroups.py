"""The doctor's look at cgroups: which caps the kernel enforces here, and through what.

The facts come from `garrison.supervisor.cgroups`, so that the doctor and the agent cannot disagree.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from garrison.supervisor.cgroups.detect import HostFacts, describe_host
from garrison.supervisor.cgroups.host import KERNEL_MODES, REMEDY
from garrison.supervisor.doctor import Check, Finding, fail, ok, warn

if TYPE_CHECKING:
    from garrison.supervisor.settings import Settings

CONTROLLERS: Final = (
    ("cpu", "hard CPU caps", "a kernel with CONFIG_CFS_BANDWIDTH"),
    ("memory", "hard memory caps", "a kernel with CONFIG_MEMCG; on some systems boot with `cgroup_enable=memory`"),
    ("pids", "caps on processes", "a kernel of 4.3 or newer with CONFIG_CGROUP_PIDS"),
)
"""Controllers that caps need: name, what for, and how to get it."""

_UNPRIVILEGED: Final = "unprivileged"


def checks(settings: Settings | None) -> list[tuple[str, Check]]:
    """Return the checks of the hierarchies."""
    wanted = settings.agent.cgroup_mode if settings is not None else "auto"
    try:
        host = describe_host()
    except OSError as error:
        reason = f"{error.filename or '/proc'} cannot be read: {error.strerror}"
        return [("mode", partial(fail, "mode", reason, "mount /proc"))]
    found: list[tuple[str, Check]] = [("mode", partial(mode, host, wanted))]
    found += [(name, partial(controller, host, name, *texts)) for name, *texts in CONTROLLERS]
    if host.controllers.get("cpu") not in (None, host.unified_mount):
        found.append(
            ("cpuacct", partial(controller, host, "cpuacct", "CPU accounting", "a kernel with CONFIG_CGROUP_CPUACCT"))
        )
    found += [
        ("freezer", partial(freezer, host)),
        ("cgroup.kill", partial(kill, host)),
        ("swap", partial(swap, host)),
    ]
    return found


def mode(host: HostFacts, wanted: str) -> Finding:
    """Judge the mode that the agent takes, or was told to take."""
    if wanted == _UNPRIVILEGED:
        instead = f"; this host could do {host.mode}" if host.mode else ""
        remedy = 'remove `cgroup_mode = "unprivileged"` from the configuration' if host.mode else REMEDY
        return warn("mode", f"unprivileged, as configured: the kernel holds no worker to its caps{instead}", remedy)
    if wanted == "auto" and host.mode is None:
        against = "; ".join(f"{one}: {', '.join(host.why_not[one])}" for one in KERNEL_MODES if one in host.why_not)
        return fail("mode", f"this host cannot enforce caps, so the agent does not start (71). {against}", REMEDY)
    for one, against_it in host.why_not.items():
        if one == wanted and against_it:
            return fail(
                "mode",
                f"{wanted} is configured and not possible here: {', '.join(against_it)}",
                'use `cgroup_mode = "auto"`' if host.mode else REMEDY,
            )
    return ok("mode", f"{host.mode}" if wanted == "auto" else f"{wanted}, as configured")


def controller(host: HostFacts, name: str, purpose: str, remedy: str) -> Finding:
    """Judge one controller."""
    title = f"controller {name}"
    point = host.controllers.get(name)
    if point is None:
        return fail(title, f"not there: no {purpose}", f"{remedy}; on cgroup v2 the unit needs Delegate=yes")
    where = f"v2, {point}" if point == host.unified_mount else f"v1, {point}"
    if not host.writable.get(point, False):
        return fail(
            title,
            f"{where} is read-only or not writable by this user: no {purpose}",
            "run as root; in a container mount the cgroups writable",
        )
    return ok(title, f"{where}: {purpose}")


def freezer(host: HostFacts) -> Finding:
    """Say how workers are frozen."""
    if host.cgroup_freeze:
        return ok("freezer", "cgroup.freeze (v2)")
    if "freezer" in host.controllers:
        return ok("freezer", f"v1, {host.controllers['freezer']}; cgroup.freeze (5.2) is not available")
    return fail("freezer", "neither v1's nor cgroup.freeze (5.2): workers cannot be frozen", REMEDY)


def kill(host: HostFacts) -> Finding:
    """Say how workers are killed."""
    if host.cgroup_kill:
        return ok("cgroup.kill", "available: one write kills a whole worker")
    return warn(
        "cgroup.kill",
        "not available; fallback in use: freeze, SIGKILL to each process, thaw, until the node is empty",
        "a kernel of 5.14 or newer has it, where the cgroup v2 tree is mounted",
    )


def swap(host: HostFacts, swaps: str = "/proc/swaps") -> Finding:
    """Say whether a memory cap covers swap."""
    with open(swaps, encoding="utf-8", errors="replace") as file:
        swapping = len(file.read().splitlines()) > 1
    if not swapping:
        return ok("swap", "there is none that a worker could fill")
    point = host.controllers.get("memory")
    if point is not None and _counts_swap(point, unified=point == host.unified_mount):
        return ok("swap", "counted: a memory cap covers it")
    return warn("swap", "not counted: a worker at its memory cap may fill the swap space", "boot with `swapaccount=1`")


def _counts_swap(point: str, *, unified: bool) -> bool:
    if not unified:
        return os.path.exists(os.path.join(point, "memory.memsw.limit_in_bytes"))
    # The root of v2 has no such file; every node with the controller has it, or none.
    with os.scandir(point) as entries:
        nodes = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any(os.path.exists(os.path.join(node, "memory.swap.max")) for node in nodes)
