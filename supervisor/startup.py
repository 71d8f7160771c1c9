"""What must be had before the agent's loop can begin: open files, the instance lock, the cgroups."""

from __future__ import annotations

import os
import resource

from garrison.supervisor import logs
from garrison.supervisor.cgroups.base import Cgroups
from garrison.supervisor.cgroups.detect import open_cgroups
from garrison.supervisor.cgroups.errors import CgroupError, UnsupportedError
from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.lock import AlreadyRunningError, InstanceLock, LockError
from garrison.supervisor.rights import own
from garrison.supervisor.settings import Settings
from garrison.supervisor.settings.places import FolderError
from garrison.supervisor.worker.aggregate import aggregate_limits

MIN_NOFILE = 64
NOFILE = 1024
"""Open files that the agent needs at least, and that are enough for the most workers there may be (five each)."""

_log = logs.get("agent")


class StartError(Exception):
    """The agent cannot start; `code` is the exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def raise_nofile() -> None:
    """Have room for the descriptors of every worker.

    Raises:
        StartError: The hard limit does not even allow for the agent alone.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NOFILE if hard == resource.RLIM_INFINITY else min(NOFILE, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < MIN_NOFILE:
        raise StartError(
            ExitCode.OS_REFUSED,
            f"the limit of open files is {hard}, and the agent needs at least {MIN_NOFILE}: raise it "
            "(LimitNOFILE= in the unit, ulimit -n in a shell)",
        )


def lower_rights() -> None:
    """Keep in force what the master uses.

    Raises:
        StartError: The kernel refused.
    """
    try:
        own.lower()
    except OSError as error:
        raise StartError(ExitCode.OS_REFUSED, f"the agent cannot give up capabilities: {error}") from error


def acquire_lock(settings: Settings) -> InstanceLock:
    """Return the held lock of the run directory.

    Raises:
        StartError: Another agent holds it, or it cannot be had.
    """
    try:
        return InstanceLock.acquire(os.path.join(settings.agent.run_dir, "garrisond.lock"))
    except AlreadyRunningError as error:
        raise StartError(ExitCode.ALREADY_RUNNING, str(error)) from error
    except (LockError, FolderError) as error:
        raise StartError(ExitCode.OS_REFUSED, str(error)) from error


def prepare_cgroups(settings: Settings) -> Cgroups:
    """Return the agent's cgroups: locked, freed of what an earlier agent left, with this process in its own node.

    Raises:
        StartError: Another agent uses them, or this host cannot do it.
    """
    agent = settings.agent
    try:
        cgroups = open_cgroups(agent.cgroup_mode, agent.cgroup_root or None)
        if not cgroups.lock():
            raise StartError(
                ExitCode.ALREADY_RUNNING,
                f"another agent uses the cgroup {agent.cgroup_root or 'of this one'}; stop it first, or give this "
                "one a node of its own (agent.cgroup_root)",
            )
        left = cgroups.prepare(aggregate_limits(agent.budget))
    except CgroupError as error:
        hint = "" if isinstance(error, UnsupportedError) else "; `garrison doctor` says what this host can do"
        raise StartError(ExitCode.OS_REFUSED, f"{error}{hint}") from error
    if left.pids or left.nodes:
        _log.warning(
            "an earlier agent left %d processes and %d cgroups; they were killed and removed",
            len(left.pids),
            len(left.nodes),
        )
    return cgroups
