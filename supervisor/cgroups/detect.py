"""Chooses the cgroup mode and finds our place in each hierarchy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal

from garrison.supervisor.cgroups.base import Cgroups, Mode
from garrison.supervisor.cgroups.errors import UnsupportedError
from garrison.supervisor.cgroups.hierarchy import (
    UNIFIED_KEY,
    Mount,
    by_key,
    path_of,
    read_membership,
    read_mounts,
)
from garrison.supervisor.cgroups.host import KERNEL_MODES, REMEDY, HostFacts, describe_host
from garrison.supervisor.cgroups.tree import SUPERVISOR, Tree

DEFAULT_ROOT = "/garrison"
"""Our node where nothing was delegated to us and no other root was asked for."""

_MARKS = ("trusted.delegate", "user.delegate")
"""How systemd marks a delegated group; the second since version 251, for managers without privileges."""

__all__ = ["DEFAULT_ROOT", "HostFacts", "describe_host", "detect", "open_cgroups", "own_path"]


def detect(mounts: Sequence[Mount] | None = None) -> Mode:
    """Return the mode that ``auto`` means here: the first possible of unified, hybrid, legacy.

    Args:
        mounts: The cgroup mounts; None reads this process's.

    Raises:
        UnsupportedError: None is possible; it says what stands against each, and what to do.
    """
    facts = describe_host(mounts)
    if facts.mode is None:
        against = "; ".join(f"{mode}: {', '.join(facts.why_not[mode])}" for mode in KERNEL_MODES)
        raise UnsupportedError(f"this host cannot enforce caps. {against}. What to do: {REMEDY}")
    return facts.mode


def open_cgroups(
    mode: Literal["auto"] | Mode = "auto", root: str | None = None, *, mounts: Sequence[Mount] | None = None
) -> Cgroups:
    """Return the implementation for a mode. Makes nothing yet: `Cgroups.lock` and `Cgroups.prepare` do.

    Args:
        mode: ``auto``, or one that was asked for.
        root: ``<own>``, relative to each hierarchy's mount; None: what systemd delegated, else ``/garrison``.
        mounts: The cgroup mounts; None reads this process's.

    Raises:
        UnsupportedError: The host cannot do it; it says why, and what to do.
    """
    if mode == "unprivileged":
        from garrison.supervisor.cgroups.unprivileged import UnprivilegedCgroups

        return UnprivilegedCgroups()
    mounts = read_mounts() if mounts is None else tuple(mounts)
    chosen = detect(mounts) if mode == "auto" else mode
    if mode != "auto" and (against := describe_host(mounts).why_not[chosen]):
        raise UnsupportedError(f"cgroup_mode = {chosen!r} is not possible here: {', '.join(against)}. {REMEDY}")
    trees = trees_by_key(mounts, root)
    if chosen == "unified":
        from garrison.supervisor.cgroups.unified import UnifiedCgroups

        return UnifiedCgroups(trees[UNIFIED_KEY], others=tuple(trees.values()))
    if chosen == "hybrid":
        from garrison.supervisor.cgroups.hybrid import HybridCgroups

        return HybridCgroups(trees, trees[UNIFIED_KEY], others=tuple(trees.values()))
    from garrison.supervisor.cgroups.legacy import LegacyCgroups

    return LegacyCgroups(trees, others=tuple(trees.values()))


def trees_by_key(mounts: Sequence[Mount], root: str | None) -> dict[str, Tree]:
    """Return our nodes by controller, and by the empty key for v2; co-mounted controllers share one.

    Named v1 hierarchies hold no controller: they belong to systemd, and we stay where it put us in them.

    Raises:
        UnsupportedError: The root cannot be ours.
    """
    membership = read_membership()
    made: dict[Mount, Tree] = {}
    trees: dict[str, Tree] = {}
    for key, mount in by_key(mounts).items():
        if mount.version == 1 and key not in mount.controllers:
            continue
        if mount not in made:
            path, delegated = own_path(mount, membership, mounts, root)
            made[mount] = Tree(mount, path, delegated=delegated)
        trees[key] = made[mount]
    return trees


def own_path(
    mount: Mount, membership: Mapping[str, str], mounts: Sequence[Mount], root: str | None = None
) -> tuple[str, bool]:
    """Return the cgroup path of ``<own>`` in a hierarchy, and whether systemd delegated it.

    Args:
        mount: The hierarchy.
        membership: Where this process is.
        mounts: All hierarchies: systemd marks a unit in its own (v2, or ``name=systemd``), and delegates the
            same path in the others.
        root: What was asked for, relative to the mount.
    """
    if root is not None:
        return mount.path(root), False
    present = path_of(mount, membership)
    if present is not None:
        unit, _, leaf = present.rpartition("/")
        # After a restart by exec, or with DelegateSubgroup=, we begin inside our own leaf; systemd runs the control
        # commands of a delegated unit (ExecStopPost=) in ".control" below it.
        path = unit if leaf in (SUPERVISOR, ".control") else present
        directory = mount.directory(path)
        if path.endswith(".service") and directory and os.path.isdir(directory) and _delegated(path, mount, mounts):
            return path, True
    return mount.path(DEFAULT_ROOT), False


def _delegated(path: str, mount: Mount, mounts: Sequence[Mount]) -> bool:
    for candidate in (mount, *(other for other in mounts if other.version == 2 or other.name == "systemd")):
        directory = candidate.directory(path)
        for mark in _MARKS if directory else ():
            try:
                if os.getxattr(directory or "", mark) == b"1":
                    return True
            except OSError:
                # No such mark, or no right to read it: then it was not delegated to us.
                continue
    return False
