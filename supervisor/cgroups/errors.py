"""What can go wrong with cgroups, by name."""

from __future__ import annotations


class CgroupError(Exception):
    """A cgroup could not be made, limited, filled or emptied. The text names the file and the remedy."""


class UnsupportedError(CgroupError):
    """This host cannot do what the mode needs: no hierarchy, no controller, no right to write.

    The agent ends with exit code 71, unless ``cgroup_mode = "unprivileged"`` was asked for.
    """


class LimitError(CgroupError):
    """A limit was refused by the kernel, or reads back as another value. The worker must not start."""


class PlacementError(CgroupError):
    """A process is not in the node where it was put. It must not run."""


class KillError(CgroupError):
    """Processes are left in a node after everything was tried; the text names their pids."""
