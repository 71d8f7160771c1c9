"""What a crashed master left in our nodes: killed, waited for, removed. Never this process or its ancestors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from garrison.supervisor.cgroups.base import KillPlan
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.cgroups.kill import kill_all, kill_processes, listed, thaw_all
from garrison.supervisor.cgroups.tree import Tree

EXIT_SECONDS = 5.0
"""Longest wait for the killed to be gone: a healthy exit takes milliseconds, one in disk wait takes for ever."""

_FIRST_STEP_SECONDS = 0.001
_STEP_SECONDS = 0.02


def ancestors(pid: int) -> frozenset[int]:
    """Return a pid and those of its ancestors, as far as this pid namespace shows them."""
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        pid = _parent(pid)
    return frozenset(found)


def stat_fields(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state on; empty where the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name stands in parentheses and may hold anything, closing parentheses too.
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parent(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[1]) if len(fields) > 1 else 0


def empty(
    directories: Sequence[str], plan: KillPlan, freezers: Iterable[str], spared: frozenset[int]
) -> tuple[int, ...]:
    """Kill everything in the nodes, frozen and throttled or not, and wait until it is gone.

    Args:
        directories: The nodes, in every hierarchy.
        plan: How to kill them at once. Not used where one of the spared sits in a node.
        freezers: v1 freezer nodes that may hold frozen processes, which die only when thawed.
        spared: Who must live: this process and its ancestors.

    Returns:
        The pids that were there, without the spared.

    Raises:
        CgroupError: Somebody is left after 5 s; it names pids and states.
    """
    there = set(listed(directories))
    victims = there - spared
    if not victims:
        return ()
    freezers = tuple(freezers)
    try:
        # cgroup.kill knows no exceptions: with one of the spared inside, the rest is signalled one by one.
        kill_all(KillPlan(quota_files=plan.quota_files) if there & spared else plan)
        for directory in freezers:
            thaw_all(directory)
        _wait(directories, spared, freezers, victims)
    except OSError as error:
        raise CgroupError(f"leftovers cannot be killed: {error}") from error
    return tuple(sorted(victims))


def _wait(directories: Sequence[str], spared: frozenset[int], freezers: Iterable[str], victims: set[int]) -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    step = _FIRST_STEP_SECONDS
    while remaining := set(listed(directories)) - spared:
        victims |= remaining
        kill_processes(sorted(remaining), directories)
        for directory in freezers:
            thaw_all(directory)
        if time.monotonic() >= deadline:
            raise CgroupError(
                f"leftovers are still alive {EXIT_SECONDS:g} s after SIGKILL: {_described(remaining)}. "
                "State D waits for a disk or a network file system: mend that or reboot, then start again"
            )
        time.sleep(step)
        step = min(step * 2, _STEP_SECONDS)


def _described(pids: Iterable[int]) -> str:
    parts: list[str] = []
    for pid in sorted(pids):
        fields = stat_fields(pid)
        parts.append(f"pid {pid} (state {fields[0] if fields else 'gone'})")
    return ", ".join(parts)


def remove_all(nodes: Iterable[tuple[Tree, str]]) -> tuple[str, ...]:
    """Remove nodes that hold nobody any more, with all below them.

    Raises:
        CgroupError: A node cannot be removed; it says who is in it.
    """
    removed: list[str] = []
    for tree, directory in nodes:
        try:
            removed += tree.remove(directory, EXIT_SECONDS)
        except BlockingIOError as error:
            inside = _described(listed([directory])) or "nobody that is listed"
            raise CgroupError(f"cannot remove the leftover cgroup {directory}: {error}; in it: {inside}") from error
    return tuple(removed)
