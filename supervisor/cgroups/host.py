"""What this host offers for cgroups: facts for detection and for ``garrison doctor``. Writes nothing but one probe.

The probe: where the v2 tree has no child yet, `unified.offers` makes one for a moment to see which files the
kernel gives it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from garrison.supervisor.cgroups.base import Mode
from garrison.supervisor.cgroups.hierarchy import UNIFIED_KEY, Mount, by_key, path_of, read_membership, read_mounts
from garrison.supervisor.cgroups.kill import read
from garrison.supervisor.cgroups.parts import V1_CONTROLLERS, V2_CONTROLLERS
from garrison.supervisor.cgroups.tree import SUPERVISOR
from garrison.supervisor.cgroups.unified import offers

KERNEL_MODES: tuple[Mode, ...] = ("unified", "hybrid", "legacy")
"""In the order of preference."""

REMEDY = (
    "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or mount the cgroup v1 controllers cpu, cpuacct, "
    'memory, pids and freezer, run as root, or set cgroup_mode = "unprivileged" to do without enforced caps'
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the host offers.

    Attributes:
        mode: What ``auto`` would take; None where no mode enforces caps.
        controllers: Mount point by controller, for v1 and v2 alike.
        unified_mount: Mount point of the v2 tree, or empty.
        cgroup_kill: The kernel kills a node in one write (5.14).
        cgroup_freeze: The kernel freezes v2 nodes (5.2).
        psi: Pressure stall information is there and switched on (4.20).
        pidfd: Processes can be held by a descriptor (5.3).
        writable: By mount point: mounted read-write, and this user may write.
        why_not: By mode: what stands against it; empty where it is possible.
    """

    mode: Mode | None
    controllers: Mapping[str, str]
    unified_mount: str
    cgroup_kill: bool
    cgroup_freeze: bool
    psi: bool
    pidfd: bool
    writable: Mapping[str, bool]
    why_not: Mapping[Mode, tuple[str, ...]] = field(default_factory=dict)


def describe_host(mounts: Sequence[Mount] | None = None) -> HostFacts:
    """Return the facts about this host.

    Args:
        mounts: The cgroup mounts; None reads this process's.

    Raises:
        OSError: /proc is not there.
    """
    mounts = read_mounts() if mounts is None else mounts
    keyed = by_key(mounts)
    tree = keyed.get(UNIFIED_KEY)
    controllers = {key: mount.point for key, mount in keyed.items() if key in mount.controllers}
    on_unified = unified_controllers(tree)
    if tree is not None:
        controllers.update((name, tree.point) for name in on_unified)
    writable = {mount.point: mount.writable and may_write(mount) for mount in mounts}
    kill = tree is not None and offers(tree.point, "cgroup.kill")
    freeze = tree is not None and offers(tree.point, "cgroup.freeze")
    why_not = reasons(keyed, on_unified, kill=kill and freeze, writable=writable)
    return HostFacts(
        mode=next((mode for mode in KERNEL_MODES if not why_not[mode]), None),
        controllers=dict(sorted(controllers.items())),
        unified_mount="" if tree is None else tree.point,
        cgroup_kill=kill,
        cgroup_freeze=freeze,
        psi=_psi(),
        pidfd=_pidfd(),
        writable=writable,
        why_not=why_not,
    )


def reasons(
    keyed: Mapping[str, Mount], on_unified: frozenset[str], *, kill: bool, writable: Mapping[str, bool]
) -> dict[Mode, tuple[str, ...]]:
    """Return for each mode what stands against it. Pure.

    Args:
        keyed: What `hierarchy.by_key` returned.
        on_unified: Controllers that the v2 tree offers.
        kill: It has ``cgroup.kill`` and ``cgroup.freeze``.
        writable: By mount point.
    """
    tree = keyed.get(UNIFIED_KEY)

    def refused(used: Sequence[Mount]) -> list[str]:
        points = sorted({mount.point for mount in used if not writable.get(mount.point, False)})
        return [f"{point} is read-only or not writable by this user" for point in points]

    v1 = {name: keyed[name] for name in (*V1_CONTROLLERS, "freezer") if name in keyed}
    without = [name for name in V1_CONTROLLERS if name not in v1]
    absent = [f"no cgroup v1 hierarchy with {', '.join(without)} is mounted"] if without else []
    capping = [mount for name, mount in v1.items() if name != "freezer"]
    no_tree = [] if tree else ["no cgroup v2 tree is mounted"]
    tree_refused = refused([tree]) if tree else []
    lacking = sorted(V2_CONTROLLERS - on_unified)
    return {
        "unified": (
            *no_tree,
            *([f"the cgroup v2 tree at {tree.point} does not offer {', '.join(lacking)}"] if tree and lacking else []),
            *tree_refused,
        ),
        "hybrid": (
            *absent,
            *no_tree,
            *(
                [f"the cgroup v2 tree at {tree.point} has no cgroup.kill and cgroup.freeze (Linux 5.14)"]
                if tree and not kill
                else []
            ),
            *refused(capping),
            *tree_refused,
        ),
        "legacy": (
            *absent,
            *([] if "freezer" in v1 else ["no cgroup v1 hierarchy with freezer is mounted"]),
            *refused(list(v1.values())),
        ),
        "unprivileged": (),
    }


def unified_controllers(tree: Mount | None) -> frozenset[str]:
    """Return what the v2 tree offers at its top; what of it a unit gets is checked when the tree is prepared."""
    if tree is None:
        return frozenset()
    try:
        return frozenset(read(os.path.join(tree.point, "cgroup.controllers")).split())
    except FileNotFoundError:
        return frozenset()


def may_write(mount: Mount) -> bool:
    """Tell whether this user may make nodes: at the mount point, or in its own unit, as where it was delegated."""
    path = path_of(mount, read_membership()) or "/"
    own = mount.directory(path.removesuffix(f"/{SUPERVISOR}"))
    mine = own is not None and own.endswith(".service") and os.access(own, os.W_OK)
    return mine or os.access(mount.point, os.W_OK)


def _psi() -> bool:
    try:
        # With psi=0 on the kernel's command line the file is there and answers EOPNOTSUPP.
        return bool(read("/proc/pressure/cpu"))
    except OSError:
        return False


def _pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True
