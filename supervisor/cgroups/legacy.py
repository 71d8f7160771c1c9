"""cgroup v1: a hierarchy for each controller, or for several that are mounted together.

Kernel interface: Documentation/admin-guide/cgroup-v1/ and Documentation/scheduler/sched-bwc.rst. The files are
described by cgroupspy and accessed by this package: see `legacy_controllers`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from garrison.supervisor.cgroups.base import Limits, OomWatch, Usage
from garrison.supervisor.cgroups.errors import CgroupError, UnsupportedError
from garrison.supervisor.cgroups.files import PAGE_BYTES, Change, bandwidth, pages, remedy
from garrison.supervisor.cgroups.kill import below
from garrison.supervisor.cgroups.legacy_controllers import Cpu, CpuAccounting, Freezer, Memory, Pids
from garrison.supervisor.cgroups.nodes import KernelCgroups
from garrison.supervisor.cgroups.oom import EventfdWatch
from garrison.supervisor.cgroups.parts import FREEZE_SECONDS, V1_CONTROLLERS, Resources, Stopper
from garrison.supervisor.cgroups.tree import Tree
from garrison.supervisor.cgroups.unified import DEFAULT_WEIGHT

DEFAULT_SHARES = 1024
"""The kernel's default ``cpu.shares``: what ``cpu.weight`` 100 is on v2."""

_STEP_SECONDS = 0.002

_LAST_CHARGE_BYTES = 64 * PAGE_BYTES
"""How far below its cap a node may be when a charge fails: the kernel charges several pages at a time."""


class LegacyCgroups(KernelCgroups):
    """Everything on v1.

    Args:
        trees: Our nodes by controller; co-mounted controllers share one.
        others: Hierarchies in which an agent of another mode may have left nodes.

    Raises:
        UnsupportedError: A controller is not among them.
    """

    def __init__(self, trees: Mapping[str, Tree], *, others: Sequence[Tree] = ()) -> None:
        super().__init__("legacy", LegacyResources(trees), LegacyStopper(trees), others)


class LegacyResources(Resources):
    """Caps and counters of v1.

    v1 has two rules about quotas that v2 has not: a child's may not exceed its parent's, and a parent's may not
    fall below a child's (EINVAL). What applies in the end is the lower of the two either way. So a worker's node
    gets the lower one at once, and when the aggregate changes, children are lowered before it and raised after it.
    """

    def __init__(self, trees: Mapping[str, Tree]) -> None:
        _require(trees, V1_CONTROLLERS)
        self.trees = tuple(dict.fromkeys(trees[controller] for controller in V1_CONTROLLERS))
        self.cpu_tree = trees["cpu"]
        self._by = dict(trees)
        self._above: EventfdWatch | None = None
        self._above_at: dict[str, int] = {}

    @property
    def enforced(self) -> frozenset[str]:
        """All three."""
        return frozenset({"cpu", "memory", "pids"})

    def missing(self) -> list[str]:
        """Name read-only mounts; absent controllers were refused when this was made."""
        return [
            f'{tree.mount.point} is mounted read-only: mount it read-write, or set cgroup_mode = "unprivileged"'
            for tree in self.trees
            if not tree.mount.writable
        ]

    def set_up_own(self) -> None:
        """Make memory limits apply to all below (before Linux 5.11 that had to be asked for), and kill at them."""
        memory = Memory(self._by["memory"].directory)
        if memory.has("use_hierarchy") and not memory.use_hierarchy:
            try:
                memory.use_hierarchy = True
            except OSError as error:
                raise UnsupportedError(
                    f"cannot set memory.use_hierarchy in {self._by['memory'].directory}: {error.strerror}. "
                    "It has to be set before the group has children: remove the group and start again"
                ) from error

        if memory.oom_control.get("oom_kill_disable"):
            # Inherited from above: at its cap a worker would hang instead of being killed.
            try:
                memory.oom_control = 0
            except OSError as error:
                raise UnsupportedError(
                    f"cannot enable the OOM killer in {self._by['memory'].directory}: {error.strerror}"
                ) from error

    def set_up_workers(self) -> None:
        """Listen for all workers together running out of memory; the rest children inherit."""
        if self._above is not None:
            self._above.close()
        self._above_at.clear()
        # Without the notice a kill whose node has met its own cap counts as its own.
        with contextlib.suppress(OSError):
            self._above = EventfdWatch(self._by["memory"].workers)

    def made(self, worker: str) -> None:
        """Remember how often all workers together had run out of memory before."""
        self._above_at[self._by["memory"].node(worker)] = self._ooms_above()

    def _ooms_above(self) -> int:
        return 0 if self._above is None else self._above.count()

    def worker_changes(self, worker: str, limits: Limits) -> list[Change]:
        """Return the writes for a worker's node, its quota at most that of ``workers``."""
        held = _held(limits.cpu_quota_percent, _quota_percent(Cpu(self.cpu_tree.workers)))
        return self._changes(worker, replace(limits, cpu_quota_percent=held))

    def aggregate_changes(self, limits: Limits, wanted: Mapping[str, Limits]) -> list[Change]:
        """Return the writes for ``workers``, and for the quotas of those below it that are in its way."""
        quota = limits.cpu_quota_percent
        before: list[Change] = []
        after: list[Change] = []
        for directory in below(self.cpu_tree.workers)[1:]:
            child = Cpu(directory)
            now = _quota_percent(child)
            if now is None:
                # No quota of its own (lifted by a kill, perhaps): the kernel gives it the parent's.
                continue
            asked = wanted.get(os.path.relpath(directory, self.cpu_tree.workers))
            target = _held(now if asked is None else asked.cpu_quota_percent, quota)
            if target is not None and target < now:
                # Deepest first on the way down, parents first on the way up.
                before[:0] = _quota_changes(child, target)
            elif target != now:
                after += _quota_changes(child, target)
        return [*before, *self._changes(None, limits), *after]

    def _changes(self, worker: str | None, limits: Limits) -> list[Change]:
        cpu = Cpu(self.cpu_tree.node(worker))
        memory = Memory(self._by["memory"].node(worker))
        pids = Pids(self._by["pids"].node(worker))
        changes = [
            *_quota_changes(cpu, limits.cpu_quota_percent),
            cpu.change("shares", shares(limits.cpu_weight)),
            *_memory_changes(memory, pages(limits.memory_max)),
        ]
        if memory.has("soft_limit_in_bytes"):  # PREEMPT_RT kernels have none
            changes.append(memory.change("soft_limit_in_bytes", pages(limits.memory_high)))
        changes.append(pids.change("max", limits.pids_max))
        return changes

    def quota_file(self, worker: str | None) -> tuple[str, str]:
        """Return ``cpu.cfs_quota_us``."""
        return os.path.join(self.cpu_tree.node(worker), "cpu.cfs_quota_us"), "-1"

    def usage(self, node: Callable[[Tree], str]) -> Usage:
        """Return the counters.

        v1 does not say which part of the kernel memory is reclaimable, so only anonymous and shared memory count
        as working memory. OOM kills and refused forks are counted in the very node: those below are added.

        Nor does it count which node ran out of memory. So a kill is taken for the node's own where it has been at
        its own cap, unless all workers together ran out of memory since the node was made: that notice comes for
        ``workers`` and what is above it, never for a worker. (``failcnt`` would say less: it counts page cache that
        was dropped, and stays 0 on new kernels, as seen with 6.18.)
        """
        cpu = Cpu(node(self.cpu_tree)).stat
        directory = node(self._by["memory"])
        memory = Memory(directory)
        stat = memory.stat
        pids = Pids(node(self._by["pids"]))
        kills = sum(map(_oom_kills, below(directory)))
        limit = memory.number("limit_in_bytes")
        met = limit is not None and memory.max_usage_in_bytes >= limit - _LAST_CHARGE_BYTES
        above = directory in self._above_at and self._ooms_above() > self._above_at[directory]
        return Usage(
            cpu_seconds=CpuAccounting(node(self._by["cpuacct"])).usage / 1e9,
            periods=cpu["nr_periods"],
            throttled_periods=cpu["nr_throttled"],
            throttled_seconds=cpu["throttled_time"] / 1e9,
            memory_bytes=memory.usage_in_bytes,
            memory_working_bytes=stat.get("total_rss", 0) + stat.get("total_shmem", 0),
            pids=pids.current,
            oom_kills=kills,
            pids_refused=sum(map(_pids_refused, below(node(self._by["pids"])))),
            memory_max_events=max(memory.failcnt, memory.memsw_failcnt if memory.has("memsw_failcnt") else 0),
            oom_events=kills if met and not above else 0,
        )

    def memory_watch(self, level: int) -> OomWatch | None:
        """Return an eventfd that counts up whenever ``workers`` passes a level, in either direction."""
        directory = self._by["memory"].workers
        return EventfdWatch(directory, "memory.usage_in_bytes", str(level))

    def oom_watch(self, worker: str) -> OomWatch | None:
        """Return an eventfd on ``memory.oom_control``. On v1 the rest of the worker survives: kill it then."""
        return EventfdWatch(self._by["memory"].node(worker))


class LegacyStopper(Stopper):
    """The v1 freezer. A frozen process keeps its SIGKILL pending, so a kill freezes, signals and thaws."""

    def __init__(self, trees: Mapping[str, Tree]) -> None:
        _require(trees, ("freezer",))
        self.tree = trees["freezer"]

    @property
    def enforced(self) -> frozenset[str]:
        """Both."""
        return frozenset({"freeze", "kill"})

    def missing(self) -> list[str]:
        """Name a read-only mount."""
        if self.tree.mount.writable:
            return []
        return [f"{self.tree.mount.point} is mounted read-only: mount it read-write"]

    def freeze(self, directory: str, frozen: bool) -> None:
        """Write ``freezer.state`` and read it until it says so: there is no notification on v1."""
        freezer, wanted = Freezer(directory), "FROZEN" if frozen else "THAWED"
        deadline = time.monotonic() + FREEZE_SECONDS
        try:
            freezer.state = wanted
            while (state := freezer.state) != wanted:
                if time.monotonic() >= deadline:
                    raise CgroupError(
                        f"{directory} is {state} and not {wanted} after {FREEZE_SECONDS:g} s: a process in it waits "
                        "for the kernel (state D)"
                    )
                time.sleep(_STEP_SECONDS)
        except OSError as error:
            raise CgroupError(f"cannot freeze or thaw {directory}: {error}{remedy(directory, error)}") from error

    def kill_files(self, worker: str | None) -> tuple[str, ...]:
        """None on v1."""
        return ()

    def freezer(self, worker: str | None) -> str:
        """Return the node's freezer directory."""
        return self.tree.node(worker)


def shares(weight: int | None) -> int:
    """Return ``cpu.shares`` for a weight on the scale of v2, where 100 stands for v1's 1024."""
    return round((DEFAULT_WEIGHT if weight is None else weight) * DEFAULT_SHARES / DEFAULT_WEIGHT)


def _held(percent: float | None, ceiling: float | None) -> float | None:
    """Return a quota that the parent's allows. None is none of its own: the kernel then takes the parent's."""
    return percent if percent is None or ceiling is None else min(percent, ceiling)


def _quota_percent(cpu: Cpu) -> float | None:
    """Return a node's quota, percent of one core; None for none."""
    quota, period = cpu.number("cfs_quota_us"), cpu.number("cfs_period_us")
    return None if quota is None or not period else 100 * quota / period


def _quota_changes(cpu: Cpu, percent: float | None) -> list[Change]:
    """Set quota and period, the greater ratio never being above both the old and the new one on the way."""
    quota, period = bandwidth(percent)
    changes = [cpu.change("cfs_period_us", period), cpu.change("cfs_quota_us", quota)]
    now = cpu.number("cfs_period_us")
    return changes if now is None or period >= now else changes[::-1]


def _memory_changes(memory: Memory, wanted: int | None) -> list[Change]:
    """Cap memory with and without swap: the former may never be below the latter, on the way too."""
    plain = memory.change("limit_in_bytes", wanted)
    if not memory.has("memsw_limit_in_bytes"):  # swap accounting is off
        return [plain]
    both = memory.change("memsw_limit_in_bytes", wanted)
    now = memory.number("limit_in_bytes")
    raising = wanted is None or (now is not None and wanted > now)
    return [both, plain] if raising else [plain, both]


def _oom_kills(directory: str) -> int:
    try:
        # Before Linux 4.13 there is no such count.
        return int(Memory(directory).oom_control.get("oom_kill", 0))
    except OSError as error:
        return _none_if_gone(error)


def _pids_refused(directory: str) -> int:
    pids = Pids(directory)
    try:
        return int(pids.events.get("max", 0)) if pids.has("events") else 0
    except OSError as error:
        return _none_if_gone(error)


def _none_if_gone(error: OSError) -> int:
    """A node below may be removed between the listing and the reading: it counts nothing."""
    if error.errno not in (errno.ENOENT, errno.ENODEV):
        raise error
    return 0


def _require(trees: Mapping[str, Tree], controllers: Sequence[str]) -> None:
    if missing := [controller for controller in controllers if controller not in trees]:
        raise UnsupportedError(
            f"no cgroup v1 hierarchy with {', '.join(missing)} is mounted: mount one "
            f"(mount -t cgroup -o {missing[0]} none /sys/fs/cgroup/{missing[0]}), "
            'or set cgroup_mode = "unprivileged"'
        )
