"""The tree of nodes on kernels that have cgroups: one implementation, put together from version-specific parts."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from garrison.supervisor.cgroups import leftovers
from garrison.supervisor.cgroups.base import Cgroups, Entry, KillPlan, Leftovers, Limits, Mode, OomWatch, Usage
from garrison.supervisor.cgroups.errors import (
    CgroupError,
    KillError,
    LimitError,
    PlacementError,
    UnsupportedError,
)
from garrison.supervisor.cgroups.files import apply, read, remedy, stall_seconds, write
from garrison.supervisor.cgroups.hierarchy import read_membership
from garrison.supervisor.cgroups.kill import below, kill_all, listed
from garrison.supervisor.cgroups.parts import Resources, Stopper, v1_freezers
from garrison.supervisor.cgroups.tree import SUPERVISOR, WORKERS, Tree

REMOVE_SECONDS = 0.1
"""Longest wait for lingering tasks when a worker's node is removed; the caller's loop stands meanwhile."""

_GONE = (errno.ENOENT, errno.ENODEV)


class KernelCgroups(Cgroups):
    """Cgroups that the kernel enforces.

    `kill`, `kill_plan`, `members` and `usage` read nothing that the other methods change, so they may run in
    another thread; the rest belongs to one thread at a time.

    Args:
        mode: What it is called.
        resources: How nodes are capped and counted.
        stopper: How they are frozen and killed.
        others: Hierarchies not used in this mode in which an agent of another mode may have left nodes.
    """

    def __init__(self, mode: Mode, resources: Resources, stopper: Stopper, others: Sequence[Tree] = ()) -> None:
        self.mode = mode
        self.enforced = resources.enforced | stopper.enforced
        self._resources = resources
        self._stopper = stopper
        # The stopper's first: who is there can be killed, whatever fails afterwards.
        self._trees = tuple(dict.fromkeys((stopper.tree, *resources.trees)))
        self._others = tuple(tree for tree in others if tree not in self._trees)
        self._wanted: dict[str, Limits] = {}
        # None: this process. A test that must stay in the groups it was started in puts a child here instead.
        self._master: int | None = None

    # Beginning and end ------------------------------------------------------------------------------------

    def lock(self) -> bool:
        """Take the lock in every hierarchy in use, and in the others where an ``<own>`` exists."""
        try:
            # One order for all modes, so that of two agents at least one gets all.
            for tree in sorted((*self._trees, *self._others), key=lambda tree: tree.directory):
                if not tree.lock(make=tree in self._trees):
                    self.unlock()
                    return False
        except CgroupError:
            self.unlock()
            raise
        return True

    def unlock(self) -> None:
        """Give the lock back before the process ends. Idempotent."""
        for tree in (*self._trees, *self._others):
            tree.unlock()

    def prepare(self, aggregate: Limits) -> Leftovers:
        """See `Cgroups.prepare`. Takes the lock if it is not held yet: nobody else's workers are killed."""
        if missing := [*self._resources.missing(), *self._stopper.missing()]:
            raise UnsupportedError(f"cgroup mode {self.mode} is not possible here: {'; '.join(missing)}")
        self._require_lock()
        found = self._sweep([WORKERS, SUPERVISOR])
        for tree in self._trees:
            tree.make(tree.supervisor)
        self._move_self()
        self._resources.set_up_own()
        for tree in self._trees:
            tree.make(tree.workers)
        self._resources.set_up_workers()
        self.limit_aggregate(aggregate)
        return found

    def cleanup(self) -> Leftovers:
        """See `Cgroups.cleanup`.

        Raises:
            CgroupError: Another agent holds the lock, or something cannot be killed or removed.
        """
        self._require_lock()
        names = {
            os.path.basename(path)
            for tree in (*self._trees, *self._others)
            for path in _children(tree.directory)
            # systemd keeps nodes of its own in a delegated unit (.control).
            if not os.path.basename(path).startswith(".")
        }
        found = self._sweep(sorted(names))
        nodes = list(found.nodes)
        for tree in (*self._trees, *self._others):
            # A live process there means this one, an ancestor, or what systemd put into its unit.
            if not tree.delegated and os.path.isdir(tree.directory) and not listed([tree.directory]):
                nodes += leftovers.remove_all([(tree, tree.directory)])
        self.unlock()
        return Leftovers(found.pids, tuple(nodes))

    def _require_lock(self) -> None:
        if not self.lock():
            raise CgroupError(
                f"another agent holds {self._resources.cpu_tree.directory}: stop it first, or set another cgroup_root"
            )

    def _sweep(self, names: Sequence[str]) -> Leftovers:
        """Kill and remove the named children of ``<own>``, but for nodes that hold this process or its ancestors."""
        trees = (*self._trees, *self._others)
        spared = leftovers.ancestors(self._master or os.getpid())
        pids: set[int] = set()
        nodes: list[str] = []
        for name in names:
            directories = [os.path.join(tree.directory, name) for tree in trees]
            plan = KillPlan(
                kill_files=tuple(
                    path for path in (os.path.join(d, "cgroup.kill") for d in directories) if os.path.exists(path)
                ),
                freezer=os.path.join(self._stopper.tree.directory, name) if self._stopper.freezer(None) else "",
                procs_dirs=tuple(directories),
                quota_files=self._quota_files(name),
            )
            freezers = [os.path.join(directory, name) for directory in v1_freezers(trees)]
            pids.update(leftovers.empty(directories, plan, freezers, spared))
            keep = listed(directories)
            if keep and name == WORKERS:
                self._move_self()
                keep = listed(directories)
            if keep and name == WORKERS:
                raise CgroupError(
                    f"{directories[0]} holds pids {keep}, which are ancestors of this process: start the agent "
                    "from outside its own workers"
                )
            if not keep:
                nodes += leftovers.remove_all(zip(trees, directories, strict=True))
        self._wanted.clear()
        return Leftovers(tuple(sorted(pids)), tuple(nodes))

    def _quota_files(self, name: str) -> tuple[tuple[str, str], ...]:
        if name != WORKERS or not os.path.isdir(self._resources.cpu_tree.workers):
            return ()
        return (self._resources.quota_file(None),)

    def _move_self(self) -> None:
        """Move this process, and whoever else sits in ``<own>`` itself, into ``supervisor``."""
        me = self._master or os.getpid()
        for tree in self._trees:
            tree.make(tree.supervisor)
            for pid in (me, *tree.direct(tree.directory)):
                try:
                    tree.place(tree.supervisor, pid)
                except ProcessLookupError:
                    continue
                except OSError as error:
                    hint = remedy(tree.supervisor, error)
                    raise UnsupportedError(
                        f"cannot move pid {pid} into {tree.supervisor}: {error.strerror}{hint}"
                    ) from error
        membership = read_membership(me)
        for tree in self._trees:
            if not tree.holds(tree.supervisor, membership):
                raise PlacementError(
                    f"pid {me} was put into {tree.supervisor} but /proc/{me}/cgroup says otherwise: "
                    "does another program move it back?"
                )

    # Caps -------------------------------------------------------------------------------------------------

    def limit_aggregate(self, limits: Limits) -> None:
        """See `Cgroups.limit_aggregate`."""
        with _as_limit_error(WORKERS):
            apply(self._resources.aggregate_changes(limits, dict(self._wanted)))

    def create(self, worker: str, limits: Limits) -> None:
        """See `Cgroups.create`. What an earlier process left there is removed if it is empty."""
        if not self.remove(worker):
            raise CgroupError(
                f"the cgroup of {worker} still holds pids {self.members(worker)}: kill them before it is made anew"
            )
        try:
            for tree in self._trees:
                tree.make(tree.node(worker), fresh=True)
            self.limit(worker, limits)
            self._resources.made(worker)
        except CgroupError:
            self.remove(worker)
            raise

    def limit(self, worker: str, limits: Limits) -> None:
        """See `Cgroups.limit`."""
        with _as_limit_error(worker):
            apply(self._resources.worker_changes(worker, limits))
        self._wanted[worker] = limits

    # Processes --------------------------------------------------------------------------------------------

    def entry(self, worker: str) -> Entry:
        """See `Cgroups.entry`."""
        cpu = self._resources.cpu_tree
        return Entry(
            born_in=next((tree.node(worker) for tree in self._trees if tree.mount.version == 2), ""),
            tasks=tuple(
                os.path.join(tree.node(worker), "tasks")
                for tree in sorted(self._trees, key=lambda tree: tree is cpu)
                if tree.mount.version == 1
            ),
        )

    def place(self, worker: str, pid: int) -> None:
        """See `Cgroups.place`."""
        missing = self._not_holding(worker, pid)
        for tree in missing:
            node = tree.node(worker)
            try:
                tree.place(node, pid)
            except ProcessLookupError as error:
                raise PlacementError(f"pid {pid} is gone: it cannot be put into {node}") from error
            except OSError as error:
                raise PlacementError(
                    f"pid {pid} cannot be put into {node}: {error.strerror}{remedy(node, error)}"
                ) from error
        # A zombie can be written into cgroup.procs, too: the kernel takes it and does nothing.
        if missing and (left := self._not_holding(worker, pid)):
            raise PlacementError(
                f"pid {pid} was put into {left[0].node(worker)} but /proc/{pid}/cgroup says otherwise: "
                "it has died, or another program moves it"
            )
        # And v2 shows a zombie that was born in the node, or died in it, as still there.
        if _has_died(pid):
            raise PlacementError(f"pid {pid} of worker {worker} has died")

    def _not_holding(self, worker: str, pid: int) -> list[Tree]:
        """Return the hierarchies in which a process is not in the node."""
        try:
            membership = read_membership(pid)
        except OSError as error:
            raise PlacementError(f"pid {pid} of worker {worker} is gone: {error}") from error
        return [tree for tree in self._trees if not tree.holds(tree.node(worker), membership)]

    def members(self, worker: str | None = None) -> Sequence[int]:
        """See `Cgroups.members`. A process that is in the node in one hierarchy only counts, too."""
        try:
            return listed(tree.node(worker) for tree in self._trees)
        except OSError as error:
            raise CgroupError(f"cannot list the processes of {worker or WORKERS}: {error}") from error

    def freeze(self, worker: str, frozen: bool) -> None:
        """See `Cgroups.freeze`."""
        self._stopper.freeze(self._stopper.tree.node(worker), frozen)

    def kill(self, worker: str | None = None) -> int:
        """See `Cgroups.kill`."""
        try:
            killed = kill_all(self._plan(worker))
            if worker is not None:
                self._forgive()
        except OSError as error:
            raise KillError(f"killing {worker or 'all workers'}: {error}") from error
        return killed

    def _forgive(self) -> None:
        """Set the workers' common CPU quota anew, which clears what they owe: the dying need it to exit.

        Since Linux 6.18 a task is stopped where it would return to user code, so the kernel's own work for it runs
        on and is paid for afterwards. Seen with many leaking workers at their common memory cap: while the kernel
        reclaimed for the others, those that were killed stood behind that debt for five seconds, with the memory that
        all waited for; and the healthy ones for nine.
        """
        path, lifted = self._resources.quota_file(None)
        if not os.path.exists(path) or (quota := read(path).strip()).split()[0] == lifted:
            return
        try:
            write(path, lifted)
        finally:
            write(path, quota)

    def kill_plan(self) -> KillPlan:
        """See `Cgroups.kill_plan`."""
        return self._plan(None)

    def _plan(self, worker: str | None) -> KillPlan:
        return KillPlan(
            kill_files=self._stopper.kill_files(worker),
            freezer=self._stopper.freezer(worker),
            procs_dirs=tuple(tree.node(worker) for tree in self._trees),
            quota_files=(self._resources.quota_file(worker),),
        )

    # Facts ------------------------------------------------------------------------------------------------

    def usage(self, worker: str | None = None) -> Usage:
        """See `Cgroups.usage`."""
        try:
            return self._resources.usage(lambda tree: tree.node(worker))
        except OSError as error:
            if error.errno in _GONE:
                return Usage()
            raise CgroupError(f"cannot read the counters of {worker or WORKERS}: {error}") from error

    def usage_of_master(self) -> Usage:
        """See `Cgroups.usage_of_master`."""
        try:
            return self._resources.usage(lambda tree: tree.supervisor)
        except OSError as error:
            raise CgroupError(f"cannot read the counters of {SUPERVISOR}: {error}") from error

    def memory_watch(self, level: int) -> OomWatch | None:
        """See `Cgroups.memory_watch`."""
        try:
            return self._resources.memory_watch(level)
        except OSError as error:
            raise CgroupError(f"cannot watch the memory of {WORKERS}: {error}") from error

    def io_stall_seconds(self) -> float | None:
        """See `Cgroups.io_stall_seconds`: every v2 node has pressure files of its own, with or without controllers."""
        try:
            return stall_seconds(read(os.path.join(self._stopper.tree.workers, "io.pressure")), "some")
        except OSError:
            # A v1 freezer, PSI switched off, or a kernel before 4.20.
            return None

    def oom_watch(self, worker: str) -> OomWatch | None:
        """See `Cgroups.oom_watch`.

        Raises:
            CgroupError: The node is not there.
        """
        try:
            return self._resources.oom_watch(worker)
        except OSError as error:
            raise CgroupError(f"cannot watch {worker} for OOM kills: {error}") from error

    def remove(self, worker: str) -> bool:
        """See `Cgroups.remove`. Waits at most 0.1 s for tasks that are just exiting."""
        if self.members(worker):
            return False
        for tree in self._trees:
            try:
                tree.remove(tree.node(worker), REMOVE_SECONDS)
            except BlockingIOError:
                return False
        self._wanted.pop(worker, None)
        return True

    def path(self, worker: str) -> str:
        """See `Cgroups.path`."""
        return self._resources.cpu_tree.node(worker)


def _has_died(pid: int) -> bool:
    try:
        # The name may hold anything; the state follows the last bracket (proc(5)).
        return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _children(directory: str) -> list[str]:
    return [path for path in below(directory) if os.path.dirname(path) == directory]


@contextlib.contextmanager
def _as_limit_error(node: str) -> Iterator[None]:
    """Name the node in a `LimitError`, and make one of an unreadable present value."""
    try:
        yield
    except LimitError as error:
        raise LimitError(f"limits of {node}: {error}") from error
    except OSError as error:
        raise LimitError(f"limits of {node}: {error}") from error
