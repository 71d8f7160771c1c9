"""cgroup v2: one hierarchy for everything.

Kernel interface: Documentation/admin-guide/cgroup-v2.rst. A node whose children have controllers may hold no
process itself, so this process goes into the leaf ``supervisor`` before anything is enabled.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence

from garrison.supervisor.cgroups.base import Limits, OomWatch, Usage
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.cgroups.files import (
    Change,
    bandwidth,
    flat_keyed,
    pages,
    read,
    remedy,
    text_change,
    write,
    write_busy,
)
from garrison.supervisor.cgroups.nodes import KernelCgroups
from garrison.supervisor.cgroups.parts import FREEZE_SECONDS, V2_CONTROLLERS, Resources, Stopper
from garrison.supervisor.cgroups.tree import Tree

DEFAULT_WEIGHT = 100
"""The kernel's default ``cpu.weight``."""


class UnifiedCgroups(KernelCgroups):
    """Everything on v2.

    Args:
        tree: Our nodes in the v2 hierarchy.
        required: Controllers without which `prepare` refuses. An empty set makes it do without those that are
            absent: caps of their kind are then not written, and missing in `enforced`.
        others: v1 hierarchies in which an agent of another mode may have left nodes.
    """

    def __init__(self, tree: Tree, *, required: frozenset[str] = V2_CONTROLLERS, others: Sequence[Tree] = ()) -> None:
        super().__init__("unified", UnifiedResources(tree, required), UnifiedStopper(tree), others)


class UnifiedResources(Resources):
    """Caps and counters of v2."""

    def __init__(self, tree: Tree, required: frozenset[str] = V2_CONTROLLERS) -> None:
        self.trees = (tree,)
        self.cpu_tree = tree
        self._tree = tree
        self._required = required

    @property
    def enforced(self) -> frozenset[str]:
        """Which of ``cpu``, ``memory``, ``pids`` the hierarchy offers us."""
        return V2_CONTROLLERS & self._available()

    def _top(self) -> str:
        """The node from which controllers come: our unit where it is delegated, else the mount point."""
        return self._tree.directory if self._tree.delegated else self._tree.mount.point

    def _available(self) -> frozenset[str]:
        try:
            return frozenset(read(os.path.join(self._top(), "cgroup.controllers")).split())
        except FileNotFoundError:
            return frozenset()

    def missing(self) -> list[str]:
        """Name the controllers that are required and not offered, and what to do."""
        missing = sorted(self._required - self._available())
        if not missing:
            return []
        where = os.path.join(self._top(), "cgroup.controllers")
        if self._tree.delegated:
            hint = "set Delegate=yes in the unit"
        else:
            hint = (
                "they are disabled in the kernel or mounted as cgroup v1: boot with "
                "systemd.unified_cgroup_hierarchy=1 and without cgroup_disable=, or let cgroup_mode be auto"
            )
        return [f'no {", ".join(missing)} in {where} ({hint}; or set cgroup_mode = "unprivileged")']

    def set_up_own(self) -> None:
        """Enable the controllers from the top down to ``<own>``."""
        wanted = V2_CONTROLLERS & self._available()
        node = self._top()
        below_top = os.path.relpath(self._tree.directory, node)
        _enable(node, wanted)
        for part in below_top.split("/") if below_top != "." else ():
            node = os.path.join(node, part)
            _enable(node, wanted)

    def set_up_workers(self) -> None:
        """Enable the controllers for the workers' nodes."""
        _enable(self._tree.workers, V2_CONTROLLERS & self._available())

    def worker_changes(self, worker: str, limits: Limits) -> list[Change]:
        """Return the writes for a worker's node: an OOM kills all of it."""
        return self._changes(self._tree.node(worker), limits, oom_group=1)

    def aggregate_changes(self, limits: Limits, wanted: Mapping[str, Limits]) -> list[Change]:
        """Return the writes for ``workers``: an OOM of all kills one of them, not all.

        The kernel looks for ``memory.oom.group`` from the victim's node up to the one that is out of memory, and the
        victim's own has it set. v2 lets children have more than their parent.
        """
        return self._changes(self._tree.workers, limits, oom_group=0)

    def _changes(self, node: str, limits: Limits, *, oom_group: int) -> list[Change]:
        enforced = self.enforced
        changes: list[Change] = []

        def add(name: str, wanted: int | str | None) -> None:
            changes.append(text_change(os.path.join(node, name), wanted))

        if "cpu" in enforced:
            quota, period = bandwidth(limits.cpu_quota_percent)
            add("cpu.max", f"{'max' if quota is None else quota} {period}")
            add("cpu.weight", DEFAULT_WEIGHT if limits.cpu_weight is None else limits.cpu_weight)
        if "memory" in enforced:
            add("memory.high", pages(limits.memory_high))
            add("memory.max", pages(limits.memory_max))
            # Both can be absent: without swap accounting, and before Linux 4.19.
            if os.path.exists(os.path.join(node, "memory.swap.max")):
                add("memory.swap.max", None if limits.memory_max is None else 0)
            if os.path.exists(os.path.join(node, "memory.oom.group")):
                add("memory.oom.group", oom_group)
        if "pids" in enforced:
            add("pids.max", limits.pids_max)
        return changes

    def quota_file(self, worker: str | None) -> tuple[str, str]:
        """Return ``cpu.max``."""
        return os.path.join(self._tree.node(worker), "cpu.max"), "max"

    def usage(self, node: Callable[[Tree], str]) -> Usage:
        """Return the counters; those of absent controllers are 0 (CPU time is there without one)."""
        directory = node(self._tree)
        cpu = flat_keyed(read(os.path.join(directory, "cpu.stat")))
        memory = flat_keyed(_optional(directory, "memory.stat"))
        events = flat_keyed(_optional(directory, "memory.events"))
        return Usage(
            cpu_seconds=cpu.get("usage_usec", 0) / 1e6,
            periods=cpu.get("nr_periods", 0),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_seconds=cpu.get("throttled_usec", 0) / 1e6,
            memory_bytes=int(_optional(directory, "memory.current") or 0),
            memory_working_bytes=working_bytes(memory),
            pids=int(_optional(directory, "pids.current") or 0),
            oom_kills=events.get("oom_kill", 0),
            pids_refused=flat_keyed(_optional(directory, "pids.events")).get("max", 0),
            memory_high_events=events.get("high", 0),
            memory_max_events=events.get("max", 0),
            # Counted in the node whose cap was hit and in those above it, never in those below: mm/memcontrol.c,
            # mem_cgroup_oom. A kill is counted in the victim's node and above.
            oom_events=events.get("oom", 0),
        )

    def memory_watch(self, level: int) -> OomWatch | None:
        """Return a watch on the events of ``workers``: ``high``, where that is set, and ``max``.

        ``memory.events`` speaks of every event of every worker too, and one that is held at its own ``memory.high``
        would have all of them looked at without end; ``memory.events.local`` does not (old kernels lack it).
        """
        from garrison.supervisor.cgroups.oom import EventsFileWatch

        if "memory" not in self.enforced:
            return None
        local = os.path.join(self._tree.workers, "memory.events.local")
        return EventsFileWatch(local if os.path.exists(local) else local.removesuffix(".local"))

    def oom_watch(self, worker: str) -> OomWatch | None:
        """Return a watch on ``memory.events``, or None where the memory controller is absent."""
        from garrison.supervisor.cgroups.oom import EventsFileWatch

        path = os.path.join(self._tree.node(worker), "memory.events")
        return EventsFileWatch(path) if "memory" in self.enforced else None


class UnifiedStopper(Stopper):
    """``cgroup.freeze`` (5.2) and ``cgroup.kill`` (5.14), in the v2 hierarchy, with or without controllers."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._has_kill = offers(tree.mount.point, "cgroup.kill")
        self._has_freeze = offers(tree.mount.point, "cgroup.freeze")

    @property
    def enforced(self) -> frozenset[str]:
        """``kill`` always: without ``cgroup.kill`` it is freeze-kill-thaw, or a loop over the list."""
        return frozenset({"kill", "freeze"} if self._has_freeze else {"kill"})

    def missing(self) -> list[str]:
        """Nothing: every v2 kernel can kill."""
        return []

    def freeze(self, directory: str, frozen: bool) -> None:
        """Write ``cgroup.freeze`` and wait for ``cgroup.events``, which the kernel notifies as POLLPRI."""
        file = os.path.join(directory, "cgroup.freeze")
        try:
            events = os.open(os.path.join(directory, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CgroupError(f"cannot freeze or thaw {directory}: {error}") from error
        try:
            write(file, "1" if frozen else "0")
            poll = select.poll()
            poll.register(events, select.POLLPRI | select.POLLERR)
            deadline = time.monotonic() + FREEZE_SECONDS
            # Reading takes the notification back, so it comes before each wait.
            while flat_keyed(os.pread(events, 4096, 0).decode()).get("frozen") != int(frozen):
                if (rest := deadline - time.monotonic()) <= 0:
                    raise CgroupError(
                        f"{directory} is not {'frozen' if frozen else 'thawed'} after {FREEZE_SECONDS:g} s: a "
                        "process in it waits for the kernel (state D)"
                    )
                poll.poll(rest * 1000)
        except OSError as error:
            raise CgroupError(f"cannot freeze or thaw {directory}: {error}{remedy(file, error)}") from error
        finally:
            os.close(events)

    def kill_files(self, worker: str | None) -> tuple[str, ...]:
        """Return ``cgroup.kill`` where the kernel has it."""
        return (os.path.join(self.tree.node(worker), "cgroup.kill"),) if self._has_kill else ()

    def freezer(self, worker: str | None) -> str:
        """Return the node itself on kernels from 5.2 up to 5.14."""
        return self.tree.node(worker) if self._has_freeze and not self._has_kill else ""


def working_bytes(stat: Mapping[str, int]) -> int:
    """Return what the kernel cannot take back from a node, by its v2 ``memory.stat``, bytes.

    That is anonymous memory, shared memory (tmpfs pages have no file to go back to) and kernel memory without
    reclaimable slab: dentries of the files that a scan walked through are cache and no need.
    """
    if "kernel" in stat:  # since Linux 5.18
        kernel = stat["kernel"] - stat.get("slab_reclaimable", 0)
    else:
        kernel = sum(stat.get(key, 0) for key in ("kernel_stack", "pagetables", "percpu", "slab_unreclaimable"))
    return max(0, stat.get("anon", 0) + stat.get("shmem", 0) + stat.get("sock", 0) + kernel)


def offers(point: str, name: str) -> bool:
    """Tell whether the kernel has a file that only nodes below the root have, like ``cgroup.kill``.

    Looks at a child of the mount point. Where there is none yet, one is made for a moment; where that is not
    allowed either, the kernel's version decides.
    """
    if os.path.exists(os.path.join(point, name)):
        return True  # not the real root: a container's namespace
    with os.scandir(point) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                continue
            has = os.path.exists(os.path.join(entry.path, name))
            # A child that is removed at this moment has nothing any more: it proves nothing.
            if has or os.path.exists(os.path.join(entry.path, "cgroup.procs")):
                return has
    probe = os.path.join(point, f"garrison-probe-{os.getpid()}")
    try:
        os.mkdir(probe)
    except OSError:
        return _kernel() >= {"cgroup.kill": (5, 14), "cgroup.freeze": (5, 2)}[name]
    try:
        return os.path.exists(os.path.join(probe, name))
    finally:
        os.rmdir(probe)


def _kernel() -> tuple[int, int]:
    major, _, rest = os.uname().release.partition(".")
    minor = rest.split(".")[0].split("-")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def _enable(node: str, controllers: frozenset[str]) -> None:
    path = os.path.join(node, "cgroup.subtree_control")
    lacking = sorted(controllers - set(read(path).split())) if controllers else []
    if lacking:
        write_busy(path, " ".join(f"+{controller}" for controller in lacking))


def _optional(node: str, name: str) -> str:
    """Return the text of a file whose controller may be absent."""
    try:
        return read(os.path.join(node, name)).strip()
    except FileNotFoundError:
        return ""
