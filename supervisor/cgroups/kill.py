"""The one kill function: carries out a `KillPlan`.

The nursery holds a plan for the whole ``workers`` node and runs it by itself when the master is gone, so
this module imports nothing but the standard library's `os`, `signal` and `time`, and the plan's type.

Two ways lead to the same end. Where the kernel has ``cgroup.kill`` (5.14) one write kills everything, the
frozen and the forking too. Elsewhere: freeze, so that nobody forks away from the list; signal the list;
thaw, because a process frozen by the v1 freezer keeps its SIGKILL pending; again until nobody is left.
Either way the CPU quota is lifted as soon as no more user code can run, because a throttled process cannot
run its own exit either.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator

from garrison.supervisor.cgroups.base import KillPlan

ROUNDS = 20
"""Most passes over what is left. One is enough unless a process could not be frozen or was not listed."""

FREEZE_SECONDS = 0.25
"""Longest wait for the freezer in one pass; a task in uninterruptible sleep can delay it for ever."""

EXIT_SECONDS = 0.05
"""Longest wait for the exits in one pass. The caller does not need them, only the next pass does."""

_BATCH = 64
"""Most descriptors held at a time: the nursery and a worker live with a small ``nofile``."""

_GONE = frozenset({errno.ENOENT, errno.ENODEV})
"""What a node answers that was removed, before and after its directory was opened."""


def carry_out(plan: KillPlan) -> None:
    """Kill everything the plan names, then lift the CPU quotas so that the dying can exit.

    Does not wait for the exits. A node that is not there has nothing in it and is no error. Idempotent.

    Raises:
        OSError: Something could not be signalled or lifted after all else was tried. Its text names the
            file or the pids.
    """
    kill_all(plan)


def kill_all(plan: KillPlan) -> int:
    """Do what `carry_out` does and count.

    Returns:
        How many processes were signalled one by one: 0 where ``cgroup.kill`` did it all.

    Raises:
        OSError: As `carry_out`.
    """
    failures: list[OSError] = []
    killed_dirs: list[str] = []
    for path in plan.kill_files:
        try:
            write(path, "1")
        except OSError as error:
            # A node that cannot be killed at once is listed below and signalled one by one.
            if error.errno not in _GONE:
                continue
        killed_dirs.append(os.path.dirname(path))
    if plan.freezer and len(killed_dirs) < max(1, len(plan.kill_files)):
        seen = _kill_frozen(plan, failures)
    else:
        _lift(plan.quota_files, failures)
        seen = _kill_listed(plan.procs_dirs, killed_dirs, failures)
    if failures:
        raise failures[0]
    return seen


def below(directory: str) -> list[str]:
    """Return a node's directory and all below it, parents first; empty where it does not exist."""
    found: list[str] = []
    pending = [directory]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as entries:
                children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        found.append(current)
        pending += children
    return found


def listed(directories: Iterable[str]) -> list[int]:
    """Return the pids in the nodes and in all below them, sorted, each once. Zombies are not among them.

    Raises:
        OSError: A ``cgroup.procs`` cannot be read though its node is there.
    """
    pids: set[int] = set()
    for top in directories:
        for directory in below(top):
            pids.update(_procs(directory))
    return sorted(pids)


def thaw_all(directory: str) -> None:
    """Thaw a v1 freezer (or v2) node and all below it: a child that was frozen by itself stays so otherwise.

    Raises:
        OSError: A node is there and refuses.
    """
    for node in below(directory):
        _set_frozen(node, False)


def kill_processes(pids: Iterable[int], still_there: Iterable[str]) -> set[int]:
    """SIGKILL processes that were listed in nodes, never others that got their numbers since.

    Where the kernel has pidfd (5.3) each is held by one and looked for in the nodes again before the signal;
    older kernels get a plain kill.

    Args:
        pids: Processes that were in one of the nodes when it was listed.
        still_there: The nodes, with all below them.

    Returns:
        The pids that got the signal: the rest is gone.

    Raises:
        OSError: One may not be signalled; the others were.
    """
    directories = list(still_there)
    waiting = list(pids)
    signalled: set[int] = set()
    refused: OSError | None = None
    while waiting:
        batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
        held: dict[int, int | None] = {}
        try:
            for pid in batch:
                try:
                    held[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                except OSError:
                    # ENOSYS before 5.3, EPERM under an old seccomp filter, EINVAL for a dead leader.
                    held[pid] = None
            there = set(listed(directories)) if held else set()
            for pid, descriptor in held.items():
                try:
                    if pid in there and _signal(pid, descriptor):
                        signalled.add(pid)
                except OSError as error:
                    refused = error
        finally:
            for descriptor in held.values():
                if descriptor is not None:
                    os.close(descriptor)
    if refused is not None:
        raise refused
    return signalled


def write(path: str, value: str) -> None:
    """Write a value into a kernel file, unbuffered, in one call.

    Raises:
        OSError: The kernel refused; the error carries the path.
    """
    # O_TRUNC is what a shell's redirection does; cgroup files ignore it.
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    data = value.encode()
    try:
        written = os.write(descriptor, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)
    if written != len(data):
        raise OSError(errno.EIO, f"took {written} of {len(data)} bytes", path)


def read(path: str) -> str:
    """Return the whole text of a kernel file.

    Raises:
        OSError: The kernel refused; the error carries the path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    parts: list[bytes] = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "surrogateescape")


def _procs(directory: str) -> Iterator[int]:
    try:
        text = read(os.path.join(directory, "cgroup.procs"))
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    for line in text.split():
        # 0 stands for a process of another pid namespace: it cannot be named, and kill(0) is our own group.
        if (pid := int(line)) > 0:
            yield pid


def _signal(pid: int, descriptor: int | None = None) -> bool:
    try:
        if descriptor is None:
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise OSError(error.errno, f"SIGKILL to pid {pid}: {error.strerror}") from error
    return True


def _kill_listed(procs_dirs: Iterable[str], killed_dirs: list[str], failures: list[OSError]) -> int:
    """Signal who is listed until nobody new appears; leave out those that ``cgroup.kill`` has."""
    others = [directory for directory in procs_dirs if directory not in killed_dirs]
    signalled: set[int] = set()
    for _ in range(ROUNDS if others else 0):
        # An exit leaves all nodes at once. So the killed nodes are read after the others, and what is then in
        # the others only is either just gone, which `kill_processes` sees, or was never in a killed node.
        candidates = set(listed(others)) - signalled
        if candidates and killed_dirs:
            candidates -= set(listed(killed_dirs))
        try:
            fresh = kill_processes(sorted(candidates), others)
        except OSError as error:
            failures.append(error)
            break
        signalled |= fresh
        if not fresh:
            break
    else:
        if others:
            failures.append(OSError(errno.EBUSY, f"processes kept appearing in {', '.join(others)}"))
    return len(signalled)


def _kill_frozen(plan: KillPlan, failures: list[OSError]) -> int:
    """Freeze, signal, thaw, until nobody is left or all who are left have their signal."""
    signalled: set[int] = set()
    lifted = False
    remaining: list[int] = []
    for _ in range(ROUNDS):
        if not (remaining := listed(plan.procs_dirs)):
            break
        refused: OSError | None = None
        try:
            may_freeze = _may_freeze(plan.freezer)
            if not lifted:
                # From here on whoever gets the CPU goes into the freezer and not back to its own code, so
                # lifting the quota early costs the host nothing and lets throttled tasks freeze at once.
                _lift(plan.quota_files, failures)
                lifted = True
            whole = may_freeze and _wait_frozen(plan.freezer)
            try:
                signalled |= kill_processes(listed(plan.procs_dirs), plan.procs_dirs)
            except OSError as error:
                refused = error
        finally:
            try:
                thaw_all(plan.freezer)
            except OSError as error:
                refused = error
        if refused is not None:
            failures.append(refused)
            return len(signalled)
        remaining = _wait_empty(plan.procs_dirs)
        if not remaining or (whole and signalled.issuperset(remaining)):
            remaining = []
            break
    if not lifted:
        _lift(plan.quota_files, failures)
    if remaining:
        failures.append(OSError(errno.EBUSY, f"still running after {ROUNDS} rounds: pids {remaining}"))
    return len(signalled)


def _may_freeze(directory: str) -> bool:
    """Begin to freeze a node. False where that is refused: then the loop has to do without."""
    try:
        _set_frozen(directory, True)
    except OSError:
        return False
    return True


def _set_frozen(directory: str, frozen: bool) -> None:
    try:
        write(os.path.join(directory, "freezer.state"), "FROZEN" if frozen else "THAWED")
    except OSError as error:
        if error.errno not in _GONE:
            raise
    else:
        return
    # The v2 tree of a kernel with cgroup.freeze (5.2) and without cgroup.kill (5.14).
    try:
        write(os.path.join(directory, "cgroup.freeze"), "1" if frozen else "0")
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _wait_frozen(directory: str) -> bool:
    deadline = time.monotonic() + FREEZE_SECONDS
    pause = 0.0002
    while True:
        state = frozen_state(directory)
        if state is None:
            return False
        if state:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.01)


def frozen_state(directory: str) -> bool | None:
    """Return whether all tasks of a node are frozen; None where the node has no freezer or is gone.

    Raises:
        OSError: The file is there and cannot be read.
    """
    for name, word in (("freezer.state", "FROZEN"), ("cgroup.events", "frozen 1")):
        try:
            text = read(os.path.join(directory, name))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            continue
        return word in text.splitlines()
    return None


def _wait_empty(directories: Iterable[str]) -> list[int]:
    deadline = time.monotonic() + EXIT_SECONDS
    while (remaining := listed(directories)) and time.monotonic() < deadline:
        time.sleep(0.001)
    return remaining


def _lift(quota_files: Iterable[tuple[str, str]], failures: list[OSError]) -> None:
    """Write each value, then the same into the file of that name in every directory below, as they are now."""
    for path, value in quota_files:
        top, name = os.path.split(path)
        for directory in below(top):
            try:
                write(os.path.join(directory, name), value)
            except OSError as error:
                if error.errno not in _GONE:
                    failures.append(error)
