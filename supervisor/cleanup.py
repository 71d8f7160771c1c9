"""``garrisond --cleanup``: what no agent can do for itself, since nobody can remove the node he sits in."""

from __future__ import annotations

import sys

from garrison.supervisor.cgroups.detect import open_cgroups
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.settings import Settings


def cleanup(settings: Settings) -> int:
    """Kill and remove everything in the agent's cgroups; refuses while an agent holds them. Returns the exit code."""
    try:
        cgroups = open_cgroups(settings.agent.cgroup_mode, settings.agent.cgroup_root or None)
        if not cgroups.lock():
            sys.stderr.write("garrisond: an agent is running in these cgroups; stop it first\n")
            return ExitCode.ALREADY_RUNNING
        left = cgroups.cleanup()
    except CgroupError as error:
        sys.stderr.write(f"garrisond: {error}\n")
        return ExitCode.OS_REFUSED
    sys.stdout.write(f"{len(left.pids)} processes killed, {len(left.nodes)} cgroups removed\n")
    return ExitCode.OK
