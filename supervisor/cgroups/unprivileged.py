"""No cgroups: rlimits, nice values and polling, for hosts and users that may not have them.

Nothing here is enforced by the kernel on a node as a whole, so `enforced` is empty and the mode must be asked
for. Who belongs to a worker is found by looking: descendants of its process, and the sessions that it or they
ever had. A process that forks, leaves the session and loses its parent between two looks is not found again.
"""

from __future__ import annotations

import fcntl
import math
import os
import resource
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from garrison.supervisor.cgroups.base import Cgroups, KillPlan, Leftovers, Limits, Mode, OomWatch, Usage
from garrison.supervisor.cgroups.errors import CgroupError, KillError, PlacementError

if TYPE_CHECKING:
    import psutil

Identity = tuple[int, float]
"""A process: pid and start time, because pids come round again."""

CPU_NICE = 10
"""The nice value of a worker that should have a CPU quota: nobody holds it to that, so it yields at least."""

_WEIGHT_STEP = 1.25
"""One nice level is about a quarter more or less CPU time (kernel/sched/core.c, sched_prio_to_weight)."""

_ROUNDS = 50
_STEP_SECONDS = 0.01


class CpuLedger:
    """CPU time of a changing set of processes, so that the sum never falls. Pure.

    When a process ends its time is lost from sight, and appears again in its parent's children's time if the
    parent waits for it: what appears there is counted only as far as it exceeds what was counted before.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._last: dict[Identity, tuple[float, float]] = {}

    def update(self, now: Mapping[Identity, tuple[float, float]]) -> float:
        """Take in (own, waited-for children's) seconds of each process there is; return the total, seconds."""
        inherited = 0.0
        for identity, (own, children) in now.items():
            own_before, children_before = self._last.get(identity, (0.0, 0.0))
            self.total += max(0.0, own - own_before)
            inherited += max(0.0, children - children_before)
        vanished = sum(own + children for key, (own, children) in self._last.items() if key not in now)
        self.total += max(0.0, inherited - vanished)
        self._last = dict(now)
        return self.total


@dataclass(slots=True)
class _Node:
    limits: Limits
    ledger: CpuLedger = field(default_factory=CpuLedger)
    known: frozenset[Identity] = frozenset()
    """Members seen at the last look."""
    sessions: dict[int, Identity] = field(default_factory=dict)
    """Sessions that members began, with the member."""


class UnprivilegedCgroups(Cgroups):
    """The interface without the kernel's help.

    All methods but `kill` belong to one thread; `kill` looks for itself and may meet any of them.

    Args:
        lock_file: The file whose lock keeps a second agent of the same user out. None: a file in the user's
            run directory.
    """

    mode: Mode = "unprivileged"
    enforced: frozenset[str] = frozenset()

    def __init__(self, lock_file: str | None = None) -> None:
        self._lock_file = lock_file or default_lock_file()
        self._lock: int | None = None
        self._nodes: dict[str, _Node] = {}
        self._aggregate = Limits()

    def prepare(self, aggregate: Limits) -> Leftovers:
        """Record the caps. A crashed master's workers cannot be told from other processes; they die by PDEATHSIG."""
        if not self.lock():
            raise CgroupError(f"another agent holds {self._lock_file}: stop it first")
        self._aggregate = aggregate
        return Leftovers()

    def lock(self) -> bool:
        """Take the lock of the lock file.

        Raises:
            CgroupError: The file cannot be made or is not ours.
        """
        if self._lock is not None:
            return True
        try:
            descriptor = os.open(
                self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
            )
        except OSError as error:
            raise CgroupError(f"cannot open the lock file {self._lock_file}: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise CgroupError(f"the lock file {self._lock_file} belongs to somebody else: remove it")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor
        return True

    def unlock(self) -> None:
        """Give the lock back before the process ends. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def limit_aggregate(self, limits: Limits) -> None:
        """Record the caps."""
        self._aggregate = limits

    def create(self, worker: str, limits: Limits) -> None:
        """Record a worker.

        Raises:
            CgroupError: Its old processes are still there.
        """
        if not self.remove(worker):
            raise CgroupError(f"{worker} still has pids {self.members(worker)}: kill them before it starts anew")
        self._nodes[worker] = _Node(limits)

    def limit(self, worker: str, limits: Limits) -> None:
        """Record the caps.

        Raises:
            CgroupError: No such worker.
        """
        self._node(worker).limits = limits

    def limits(self, worker: str | None = None) -> Limits:
        """Return the recorded caps, which the master's own polling holds against `usage`."""
        return self._aggregate if worker is None else self._node(worker).limits

    def place(self, worker: str, pid: int) -> None:
        """Record the pid.

        Raises:
            PlacementError: It is gone.
        """
        import psutil

        node = self._node(worker)
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                raise PlacementError(f"pid {pid} of worker {worker} has died")
            node.known |= {_identity(process)}
        except psutil.NoSuchProcess as error:
            raise PlacementError(f"pid {pid} of worker {worker} is gone") from error

    def members(self, worker: str | None = None) -> Sequence[int]:
        """Return the pids found by looking."""
        return sorted(process.pid for node in self._chosen(worker) for process in _look(node))

    def freeze(self, worker: str, frozen: bool) -> None:
        """Send SIGSTOP or SIGCONT to all members, again until no new one appears.

        Raises:
            CgroupError: New members kept appearing, or one may not be signalled.
        """
        number = signal.SIGSTOP if frozen else signal.SIGCONT
        done: set[Identity] = set()
        for _ in range(_ROUNDS):
            fresh = [member for node in self._chosen(worker) for member in _look(node) if _identity(member) not in done]
            if not fresh:
                return
            for member in fresh:
                _send(member, number)
                done.add(_identity(member))
        raise CgroupError(f"{worker} forks faster than it can be {'stopped' if frozen else 'continued'}")

    def kill(self, worker: str | None = None) -> int:
        """SIGKILL all members until none is left, which a process in disk wait can delay.

        Raises:
            KillError: Members are left after half a second; it names them.
        """
        seen: set[Identity] = set()
        left: list[psutil.Process] = []
        for _ in range(_ROUNDS):
            left = [member for node in self._chosen(worker) for member in _look(node)]
            if not left:
                return len(seen)
            for member in left:
                try:
                    _send(member, signal.SIGKILL)
                except CgroupError as error:
                    raise KillError(str(error)) from error
                seen.add(_identity(member))
            time.sleep(_STEP_SECONDS)
        raise KillError(
            f"{worker or 'all workers'}: still there after {_ROUNDS} times SIGKILL: {[p.pid for p in left]}"
        )

    def kill_plan(self) -> KillPlan:
        """Return an empty plan: the nursery knows its children, and they die with it by PDEATHSIG."""
        return KillPlan()

    def usage(self, worker: str | None = None) -> Usage:
        """Return sums over the members: what a quota throttled, and OOM kills, are not to be seen.

        Working memory is what is resident and not shared with files or other processes by mapping.
        """
        cpu, memory, working, threads = 0.0, 0, 0, 0
        for node in self._chosen(worker):
            times: dict[Identity, tuple[float, float]] = {}
            for process in _look(node):
                if (facts := _facts(process)) is None:
                    continue
                own, children, resident, private, count = facts
                times[_identity(process)] = (own, children)
                memory, working, threads = memory + resident, working + private, threads + count
            cpu += node.ledger.update(times)
        return Usage(cpu_seconds=cpu, memory_bytes=memory, memory_working_bytes=working, pids=threads)

    def usage_of_master(self) -> Usage:
        """Return what this process uses; the nursery, which does nothing between starts, is not found here."""
        import psutil

        facts = _facts(psutil.Process())
        if facts is None:
            return Usage()
        own, _, resident, private, threads = facts
        return Usage(cpu_seconds=own, memory_bytes=resident, memory_working_bytes=private, pids=threads)

    def memory_watch(self, level: int) -> OomWatch | None:
        """None: the kernel tells nobody."""
        return None

    def io_stall_seconds(self) -> float | None:
        """None: no node, no count."""
        return None

    def oom_watch(self, worker: str) -> OomWatch | None:
        """None: the kernel tells nobody."""
        return None

    def remove(self, worker: str) -> bool:
        """Forget a worker without processes."""
        if self.members(worker):
            return False
        self._nodes.pop(worker, None)
        return True

    def path(self, worker: str) -> str:
        """Return an empty string: there is no node."""
        return ""

    def cleanup(self) -> Leftovers:
        """Kill the members that are known and forget them."""
        pids = tuple(self.members())
        self.kill()
        nodes = tuple(self._nodes)
        self._nodes.clear()
        self.unlock()
        return Leftovers(pids, nodes)

    def _node(self, worker: str) -> _Node:
        try:
            return self._nodes[worker]
        except KeyError:
            raise CgroupError(f"no worker {worker!r} was created") from None

    def _chosen(self, worker: str | None) -> list[_Node]:
        if worker is None:
            return list(self._nodes.values())
        return [self._nodes[worker]] if worker in self._nodes else []


def rlimits(limits: Limits) -> dict[int, tuple[int, int]]:
    """Return the rlimits, (soft, hard) by resource, that the spawner sets in the child. Pure.

    RLIMIT_DATA counts private writable memory since Linux 4.7: the nearest to a memory cap that one process can
    have (RLIMIT_AS would count address space that nobody uses). RLIMIT_NPROC is left alone: it counts all
    processes of the user, the desktop's too. No core files, whose writing costs the host.
    """
    values = {resource.RLIMIT_CORE: (0, 0)}
    if limits.memory_max is not None:
        values[resource.RLIMIT_DATA] = (limits.memory_max, limits.memory_max)
    return values


def nice(limits: Limits) -> int:
    """Return the nice value, 0 to 19, that the spawner sets in the child. Pure.

    From the weight where there is one (100 is nice 0); at least `CPU_NICE` where there is a quota.
    """
    value = 0
    if limits.cpu_weight is not None:
        value = round(math.log(100 / limits.cpu_weight) / math.log(_WEIGHT_STEP))
    if limits.cpu_quota_percent is not None:
        value = max(value, CPU_NICE)
    return min(19, max(0, value))


def default_lock_file() -> str:
    """Return the lock file of this user: in /run for root, else in the run directory of the session, else in /tmp."""
    user = os.geteuid()
    if user == 0:
        return "/run/garrison-unprivileged.lock"
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(run) and os.path.isdir(run):
        return os.path.join(run, "garrison.lock")
    return f"/tmp/garrison-{user}.lock"  # noqa: S108 opened with O_NOFOLLOW, and its owner is checked


def _look(node: _Node) -> list[psutil.Process]:
    """Return the living members of a node and remember them for the next look."""
    if not node.known and not node.sessions:
        return []
    children, by_session = _survey()
    queue = [pid for pid, started in node.known if _alive(pid, started)]
    sessions: dict[int, Identity] = {}
    for session, leader in node.sessions.items():
        # A session's number stays taken while anybody is in it. So it is the same one, unless it is empty now, or
        # its number belongs to a process that is not the one that began it.
        if (inside := by_session.get(session)) and (session not in inside or _alive(*leader)):
            sessions[session] = leader
            queue += inside
    spared = os.getpid()
    found: dict[Identity, psutil.Process] = {}
    reached: set[int] = set()
    while queue:
        pid = queue.pop()
        if pid in reached or pid == spared:
            continue
        reached.add(pid)
        queue += children.get(pid, ())
        if (process := _alive(pid)) is not None:
            identity = _identity(process)
            found[identity] = process
            if pid in by_session.get(pid, ()):
                sessions[pid] = identity
                queue += by_session[pid]
    node.known = frozenset(found)
    node.sessions = sessions
    return [found[identity] for identity in sorted(found)]


def _alive(pid: int, started: float | None = None) -> psutil.Process | None:
    """Return a process if it is there, is no zombie and, where that is asked, began at that time."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or started not in (None, process.create_time()):
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def _survey() -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return children by parent and processes by session, of all that /proc shows."""
    children: dict[int, list[int]] = {}
    sessions: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
        sessions.setdefault(int(fields[3]), []).append(int(name))
    return children, sessions


def _identity(process: psutil.Process) -> Identity:
    return process.pid, process.create_time()


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process unless its pid has come to another one."""
    import psutil

    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise CgroupError(f"{number.name} to pid {process.pid}: not allowed, it changed its user") from error


def _facts(process: psutil.Process) -> tuple[float, float, int, int, int] | None:
    """Return own and children's CPU seconds, resident and private bytes, threads; None where it is gone."""
    import psutil

    try:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            return (
                times.user + times.system,
                times.children_user + times.children_system,
                memory.rss,
                max(0, memory.rss - memory.shared),
                process.num_threads(),
            )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
