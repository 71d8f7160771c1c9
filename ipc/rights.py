"""What a worker can ask for: the words that modules, settings and the agent share."""

from __future__ import annotations

from typing import Final, Literal, get_args

SystemCalls = Literal["any", "usual", "observe"]
"""A filter of system calls, from the loosest to the tightest. ``any``: none. ``usual``: nothing that changes the
kernel, the machine or its namespaces, or looks into other processes' memory. ``observe``: also no programs, no
connections, no signals to others, and of files only the content changes."""

SYSTEM_CALLS: Final[tuple[SystemCalls, ...]] = get_args(SystemCalls)

CAPABILITIES: Final = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    "checkpoint_restore",
)
"""All of Linux 6.x, each at its number; without the ``CAP_`` and in lower case."""
