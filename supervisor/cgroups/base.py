"""The one interface to cgroups; `detect.open_cgroups` chooses the implementation.

The tree is ``<own>/supervisor`` for the master and the nursery and ``<own>/workers/<worker>`` for each
worker. All methods are synchronous file operations of microseconds to a few milliseconds. `kill` may be
called from any thread; the caller holds one lock around it and around create-place-verify, so that limits
lifted by a kill are never those of a worker that is just starting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["unified", "hybrid", "legacy", "unprivileged"]

CPU_PERIOD_US = 100_000
"""The CFS period that quotas refer to, microseconds: the kernel's own default."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of one node. None means no cap of that kind.

    Attributes:
        cpu_quota_percent: Hard cap, percent of one core.
        cpu_weight: Share under contention, 1 to 10000, on the scale of v2 (100 is the kernel's default).
        memory_high: Bytes above which the kernel reclaims and slows allocations (v1: soft limit).
        memory_max: Bytes, swap included, above which the kernel kills.
        pids_max: Processes and threads.
    """

    cpu_quota_percent: float | None = None
    cpu_weight: int | None = None
    memory_high: int | None = None
    memory_max: int | None = None
    pids_max: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a node and everything below it has used; counters run since the node was made.

    Attributes:
        cpu_seconds: CPU time, seconds.
        periods: CFS periods in which the node wanted to run.
        throttled_periods: Those in which it was stopped by its quota.
        throttled_seconds: Time it stood stopped by its quota, seconds.
        memory_bytes: All that is charged, page cache included, bytes.
        memory_working_bytes: Anonymous and unreclaimable kernel memory, bytes: what counts for the breaker.
        pids: Processes and threads now.
        oom_kills: Processes that the kernel killed for want of memory in this node, whoever's cap it was.
        pids_refused: Forks refused by ``pids.max``.
        memory_high_events: How often it was held back at its ``memory.high``; 0 on v1, which has none.
        memory_max_events: How often it ran into its own memory cap, page cache that could be dropped included.
        oom_events: How often nothing could be dropped at its *own* cap, so that the kernel looked for a victim. On
            v1 that is not counted by the kernel and inferred: see `legacy.LegacyResources.usage`.
    """

    cpu_seconds: float = 0.0
    periods: int = 0
    throttled_periods: int = 0
    throttled_seconds: float = 0.0
    memory_bytes: int = 0
    memory_working_bytes: int = 0
    pids: int = 0
    oom_kills: int = 0
    pids_refused: int = 0
    memory_high_events: int = 0
    memory_max_events: int = 0
    oom_events: int = 0

    @property
    def oom_origin(self) -> Literal["own", "ancestor"] | None:
        """Whose cap killed here since the node was made: its own or that of a node above; None where none did.

        A worker that the kernel picked because all of them together ran out of memory is a victim and no culprit.
        """
        if not self.oom_kills:
            return None
        return "own" if self.oom_events else "ancestor"


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What `Cgroups.prepare` found of a crashed master: killed and removed."""

    pids: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KillPlan:
    """All that is needed to kill the ``workers`` node without this package: what the nursery holds.

    Attributes:
        kill_files: Files to write ``1`` into (``cgroup.kill``); empty where the kernel has none.
        freezer: v1 freezer directory of the ``workers`` node for freeze-kill-thaw, or empty.
        procs_dirs: Directories whose ``cgroup.procs`` (they and all below) list what must die.
        quota_files: (file, value) pairs written after the kill so that the dying are not throttled,
            children after their parents; a directory's children are globbed at the time of the kill.
    """

    kill_files: tuple[str, ...] = ()
    freezer: str = ""
    procs_dirs: tuple[str, ...] = ()
    quota_files: tuple[tuple[str, str], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Entry:
    """How a new process gets into a node by itself, without the lock of the whole host that a move by pid takes.

    That lock (``cgroup_threadgroup_rwsem``) waits for a grace period of the kernel, 15 ms at the median. Two ways
    spare it: to be born in the node, and, on v1, to move oneself as a single thread (since Linux 5.5; older
    kernels do the same under the lock). Neither proves anything: `Cgroups.place` has the last word.

    Attributes:
        born_in: The v2 directory for clone3(2) with CLONE_INTO_CGROUP, or empty.
        tasks: The v1 files into which the process writes ``0``, in this order. The CPU cap comes last: once under
            it, the process may have to wait for the rest of its period.
    """

    born_in: str = ""
    tasks: tuple[str, ...] = ()


class OomWatch(ABC):
    """Tells that the kernel has killed for want of memory in a node; made for an event loop."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that becomes readable (or, where `exceptional`, POLLPRI) on an event."""

    @abstractmethod
    def drain(self) -> None:
        """Take the notification, so that the descriptor is quiet again. Says nothing about a real OOM."""

    @abstractmethod
    def close(self) -> None:
        """Give the descriptor back. Idempotent."""


class Cgroups(ABC):
    """The agent's part of the cgroup tree. ``worker=None`` means the whole ``workers`` node."""

    mode: Mode
    enforced: frozenset[str]
    """Which of ``cpu``, ``memory``, ``pids``, ``freeze``, ``kill`` the kernel enforces here."""

    @abstractmethod
    def prepare(self, aggregate: Limits) -> Leftovers:
        """Kill and remove leftovers, build the tree, move this process into ``supervisor``, cap ``workers``.

        Raises:
            UnsupportedError: The host cannot do it; the text says what is missing and how to get it.
            LimitError: The aggregate caps do not read back.
        """

    @abstractmethod
    def lock(self) -> bool:
        """Take the exclusive lock of the ``<own>`` node. False: another agent holds it."""

    @abstractmethod
    def limit_aggregate(self, limits: Limits) -> None:
        """Change the caps of the ``workers`` node; raises parents before children need it.

        Raises:
            LimitError: Refused, or reads back as another value; the old caps are back in force.
        """

    @abstractmethod
    def create(self, worker: str, limits: Limits) -> None:
        """Make a fresh node for a worker with its caps, written and read back.

        Raises:
            LimitError: A cap could not be set; the node is removed again.
            CgroupError: The node could not be made.
        """

    @abstractmethod
    def limit(self, worker: str, limits: Limits) -> None:
        """Change the caps of a node, written and read back.

        Raises:
            LimitError: Refused, or reads back as another value; the old caps are back in force.
        """

    def entry(self, worker: str) -> Entry:
        """Return how a new process gets into a node of `create` by itself; an empty one where `place` has to do it."""
        return Entry()

    @abstractmethod
    def place(self, worker: str, pid: int) -> None:
        """Have a process in the node (every hierarchy), as ``/proc/PID/cgroup`` shows it; move it where it is not.

        Raises:
            PlacementError: It is not there, or is gone.
        """

    @abstractmethod
    def members(self, worker: str | None = None) -> Sequence[int]:
        """Return the pids in the node and below it; empty where it does not exist. Zombies may be absent."""

    @abstractmethod
    def freeze(self, worker: str, frozen: bool) -> None:
        """Stop or continue all processes of a node. Returns when the kernel says so, or after 1 s.

        Raises:
            CgroupError: The kernel did not reach the state within 1 s.
        """

    @abstractmethod
    def kill(self, worker: str | None = None) -> int:
        """SIGKILL everything in the node, then lift its CPU quota so that the dying can exit.

        Does not wait for the exits. Frozen or throttled processes die too. Safe from any thread, idempotent.
        A node killed this way must be created anew before its next use, which restores its limits;
        after ``kill(None)`` `limit_aggregate` must be called again before the next start.

        Returns:
            How many processes were there (0 where that is not known for free).

        Raises:
            KillError: The kill could not be carried out.
        """

    @abstractmethod
    def kill_plan(self) -> KillPlan:
        """Return what the nursery needs to kill the ``workers`` node by itself when the master is gone."""

    @abstractmethod
    def usage(self, worker: str | None = None) -> Usage:
        """Return the counters of a node; zeros where it does not exist."""

    @abstractmethod
    def usage_of_master(self) -> Usage:
        """Return the counters of the master and the nursery."""

    @abstractmethod
    def memory_watch(self, level: int) -> OomWatch | None:
        """Return a notifier of all workers together coming near their memory cap, or None: poll `usage`.

        It may also notify for nothing, and counts page cache: whoever is told looks at the counters.

        Args:
            level: Where a notice is wanted, bytes charged to ``workers``, page cache included.

        Raises:
            CgroupError: The kernel refuses.
        """

    @abstractmethod
    def io_stall_seconds(self) -> float | None:
        """Return for how long some task of the workers has waited for block I/O; None where nobody knows.

        The clock is that of ``/proc/pressure/io``: seconds in which at least one task stood still for I/O.
        """

    @abstractmethod
    def oom_watch(self, worker: str) -> OomWatch | None:
        """Return a notifier of OOM kills in the node, or None where the kernel offers none: poll `usage`."""

    @abstractmethod
    def remove(self, worker: str) -> bool:
        """Remove a worker's node. False where processes are still in it; True also where it is not there."""

    @abstractmethod
    def path(self, worker: str) -> str:
        """Return the node's path as shown to people: absolute, on the hierarchy that holds its CPU cap."""

    @abstractmethod
    def cleanup(self) -> Leftovers:
        """Kill and remove all that is below ``<own>``, and ``<own>`` where it is empty and ours.

        Never moves this process: a master that is itself below ``<own>`` leaves ``<own>/supervisor`` to the
        next start or to ``garrisond --cleanup``.
        """
