"""What the host is doing without us, from /proc. Plain reading and subtracting; what follows is `budget.pressure`'s.

Two rules keep our own load out of it. CPU time is host busy time minus what our cgroups have used. Waiting (PSI) is
counted by the kernel for everybody at once, so it is looked at only while no worker of ours is stopped by its quota or
held at ``memory_high``, and from waiting for I/O our own nodes' part is taken off; where nobody knows that part
(a v1 host without a v2 tree beside it) it is told from the processes of ours that wait.

Sources: Documentation/accounting/psi.rst, proc_stat(5), proc_meminfo(5), proc_loadavg(5).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from garrison.supervisor.budget.pressure import Reading
from garrison.supervisor.cgroups.files import read, stall_seconds

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Own:
    """What the agent did itself, since it was started.

    Attributes:
        cpu_seconds: CPU time of master, nursery and workers. None: not known now.
        io_stall_seconds: Time in which some task of ours waited for block I/O, or None.
        held_back: A worker was stopped by its quota, or held at ``memory_high``, since the last look.
        processes: Processes and threads of the workers now: at most so many of ours can be in a queue.
    """

    cpu_seconds: float | None = 0.0
    io_stall_seconds: float | None = None
    held_back: bool = False
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """What /proc says at a time; None where this kernel does not say it.

    Attributes:
        at: Monotonic seconds.
        cpus: CPUs that are online.
        busy_seconds: CPU time of all CPUs together that was not idle; what a hypervisor took away counts as busy.
        iowait_seconds: Idle CPU time with a task waiting for I/O.
        io_seconds: Time in which all that had work to do waited for block I/O (PSI ``full``: ``some`` is near 100 % on
            any database host that is well).
        memory_seconds: Time in which some task waited for memory (PSI).
        load: Tasks that run or wait for I/O, over the last minute.
        available: Memory that can be had without swapping, bytes.
        total: All memory, bytes.
        own: What of it was ours.
    """

    at: float
    cpus: int = 1
    busy_seconds: float | None = None
    iowait_seconds: float | None = None
    io_seconds: float | None = None
    memory_seconds: float | None = None
    load: float | None = None
    available: int | None = None
    total: int | None = None
    own: Own = Own()


def look(at: float, own: Own, proc: str = "/proc") -> Counters:
    """Return the counters now. What cannot be read is None: without it the policy does without that measure."""
    busy, iowait, cpus = parse_stat(_text(proc, "stat"))
    memory = parse_meminfo(_text(proc, "meminfo"))
    return Counters(
        at=at,
        cpus=cpus or os.cpu_count() or 1,
        busy_seconds=busy,
        iowait_seconds=iowait,
        io_seconds=_stalled(proc, "io", "full"),
        memory_seconds=_stalled(proc, "memory", "some"),
        load=parse_loadavg(_text(proc, "loadavg")),
        available=_available(memory),
        total=memory.get("MemTotal"),
        own=own,
    )


def compare(last: Counters | None, new: Counters) -> Reading:
    """Return what happened between two looks, without ourselves. Pure."""
    if last is None or new.at <= last.at:
        return Reading(at=new.at, available=new.available)
    seconds = new.at - last.at
    return Reading(
        at=new.at,
        seconds=seconds,
        cpu_percent=_cpu(last, new, seconds),
        io_percent=_io(last, new, seconds),
        memory_percent=None if new.own.held_back else _share(last.memory_seconds, new.memory_seconds, seconds),
        available=new.available,
    )


def _cpu(last: Counters, new: Counters, seconds: float) -> float | None:
    if last.busy_seconds is None or new.busy_seconds is None:
        return None
    if last.own.cpu_seconds is None or new.own.cpu_seconds is None:
        return None
    # The kernel counts the two with different clocks, so a small difference may come out below zero.
    others = new.busy_seconds - last.busy_seconds - max(0.0, new.own.cpu_seconds - last.own.cpu_seconds)
    return max(0.0, min(100.0, 100.0 * others / (new.cpus * seconds)))


def _io(last: Counters, new: Counters, seconds: float) -> float | None:
    if new.own.held_back:
        return None
    waited = _share(last.io_seconds, new.io_seconds, seconds)
    if (
        waited is not None
        and (ours := _share(last.own.io_stall_seconds, new.own.io_stall_seconds, seconds)) is not None
    ):
        # Ours counts from the first waiting task, and others may have waited at the same time: what is left is the
        # least that others waited for.
        return max(0.0, waited - ours)
    # Without PSI, or where ours is not known: that share of the time in which CPUs had nothing but waiting, and only
    # when more tasks are in the queues than CPUs and everything of ours together could fill.
    if new.load is None or new.load < new.cpus + new.own.processes:
        return 0.0 if new.load is not None else None
    idle_waiting = _share(last.iowait_seconds, new.iowait_seconds, seconds * new.cpus)
    return idle_waiting if waited is None or idle_waiting is None else max(waited, idle_waiting)


def _share(before: float | None, after: float | None, seconds: float) -> float | None:
    if before is None or after is None:
        return None
    return max(0.0, min(100.0, 100.0 * (after - before) / seconds))


def parse_stat(text: str) -> tuple[float | None, float | None, int]:
    """Return busy seconds, iowait seconds and the number of CPUs of ``/proc/stat``. Pure.

    The fields of the first line: user nice system idle iowait irq softirq steal guest guest_nice; guest time is in
    user already.
    """
    lines = text.splitlines()
    fields = lines[0].split() if lines else []
    cpus = sum(1 for line in lines if line.startswith("cpu") and line[3:4].isdigit())
    try:
        values = [int(field) for field in fields[1:9]] if fields[:1] == ["cpu"] else []
    except ValueError:
        values = []
    if len(values) < 5:
        return None, None, cpus
    return (sum(values) - values[3] - values[4]) / _TICKS, values[4] / _TICKS, cpus


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the values of ``/proc/meminfo`` in bytes. Pure."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if fields and fields[0].isdigit():
            values[name] = int(fields[0]) * (1024 if fields[1:] == ["kB"] else 1)
    return values


def parse_loadavg(text: str) -> float | None:
    """Return the load over the last minute of ``/proc/loadavg``. Pure."""
    try:
        return float(text.split(maxsplit=1)[0])
    except (IndexError, ValueError):
        return None


def _available(memory: dict[str, int]) -> int | None:
    if "MemAvailable" in memory:
        return memory["MemAvailable"]
    # Before Linux 3.14: what is free, and half of what can be dropped.
    if "MemFree" in memory:
        return memory["MemFree"] + (memory.get("Cached", 0) - memory.get("Shmem", 0)) // 2
    return None


def _stalled(proc: str, resource: str, kind: str) -> float | None:
    text = _text(proc, "pressure", resource)
    return stall_seconds(text, kind) if text else None


def _text(*parts: str) -> str:
    """Return the text of a file of /proc; empty where it is not there or switched off (psi=0: EOPNOTSUPP)."""
    try:
        return read(os.path.join(*parts))
    except OSError:
        return ""
