"""What the agent's own processes may do: the master what it uses at any time, the nursery what it hands on.

The unit gives both the same (CapabilityBoundingSet=, which a test compares with this). What is not effective in the
master stays permitted, because the nursery, which it starts anew now and then, can have no more than that.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from garrison.ipc.rights import CAPABILITIES
from garrison.supervisor.rights import capabilities

MASTER: Final = MappingProxyType(
    {
        "chown": "give the metrics socket to its group",
        "dac_read_search": "read keys, certificates and passwords of whoever they belong to",
        "kill": "end the workers, which run as another user",
        "sys_resource": "be told of memory pressure (PSI triggers, before Linux 6.5), change limits of running workers",
    }
)
"""What the master uses, and for what."""

BORROWED: Final = MappingProxyType({"dac_override": "make its node at the top of a cgroup hierarchy"})
"""What the master makes effective for a moment (`capabilities.borrowed`)."""

NURSERY: Final = MappingProxyType(
    {
        "chown": "hand pipes and folder over to a worker's user",
        "setgid": "start workers as another user",
        "setuid": "start workers as another user",
        "setpcap": "take capabilities from workers for good",
        "kill": "end the workers where the master is gone",
    }
)
"""What the nursery uses between the fork and the first instruction of a worker."""

WORKERS: Final = MappingProxyType(
    {
        "dac_read_search": "read files and descriptors of all users",
        "fowner": "leave access times and page cache of others' files as they were",
        "net_admin": "have the kernel report processes (proc connector)",
        "sys_ptrace": "see the programs of all users' processes",
    }
)
"""What the workers that come with the agent declare; a test compares."""


def lower() -> None:
    """Make effective in this thread and in those that it starts only what the master uses.

    Raises:
        OSError: The kernel refused.
    """
    held = capabilities.held()
    effective = held.effective & capabilities.bits(MASTER)
    if effective != held.effective:
        capabilities.hold(held._replace(effective=effective))


def needed() -> dict[str, tuple[int, str]]:
    """Return number and purpose of every capability that agent and workers use, by ``CAP_…`` name."""
    return {
        f"CAP_{name.upper()}": (CAPABILITIES.index(name), purpose)
        for table in (WORKERS, NURSERY, BORROWED, MASTER)
        for name, purpose in table.items()
    }
