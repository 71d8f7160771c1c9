"""System calls by number, for the two machines that Garrison is built for.

From ``asm/unistd_64.h`` and ``asm-generic/unistd.h`` of Linux 6.x; numbers never change, and from 424 on they are the
same on both. None: that machine does not have the call.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple


class Machine(NamedTuple):
    """A machine as seccomp knows it.

    Attributes:
        audit: ``AUDIT_ARCH_…`` of linux/audit.h.
        column: Its column in the tables below.
    """

    audit: int
    column: int


MACHINES: Final = MappingProxyType({"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)})
"""By what uname(2) says."""

NEWEST: Final = 469
"""The newest call that was weighed here, ``file_setattr`` (Linux 6.17)."""

Numbers = MappingProxyType[str, tuple[int | None, int | None]]

ADMINISTRATIVE: Final[Numbers] = MappingProxyType(
    {
        "_sysctl": (156, None),
        "acct": (163, 89),
        "add_key": (248, 217),
        "bpf": (321, 280),
        "chroot": (161, 51),
        "clock_adjtime": (305, 266),
        "clock_settime": (227, 112),
        "create_module": (174, None),
        "delete_module": (176, 106),
        "finit_module": (313, 273),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fsopen": (430, 430),
        "fspick": (433, 433),
        "init_module": (175, 105),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "io_uring_setup": (425, 425),
        "ioperm": (173, None),
        "iopl": (172, None),
        "kcmp": (312, 272),
        "kexec_file_load": (320, 294),
        "kexec_load": (246, 104),
        "keyctl": (250, 219),
        "lookup_dcookie": (212, 18),
        "migrate_pages": (256, 238),
        "modify_ldt": (154, None),
        "mount": (165, 40),
        "mount_setattr": (442, 442),
        "move_mount": (429, 429),
        "move_pages": (279, 239),
        "nfsservctl": (180, 42),
        "open_by_handle_at": (304, 265),
        "open_tree": (428, 428),
        "open_tree_attr": (467, 467),
        "perf_event_open": (298, 241),
        "pidfd_getfd": (438, 438),
        "pivot_root": (155, 41),
        "process_madvise": (440, 440),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "ptrace": (101, 117),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "reboot": (169, 142),
        "request_key": (249, 218),
        "setdomainname": (171, 162),
        "sethostname": (170, 161),
        "setns": (308, 268),
        "settimeofday": (164, 170),
        "swapoff": (168, 225),
        "swapon": (167, 224),
        "umount2": (166, 39),
        "unshare": (272, 97),
        "uselib": (134, None),
        "userfaultfd": (323, 282),
        "vhangup": (153, 58),
    }
)
"""What changes the kernel, the machine or its namespaces, looks into the memory of other processes, or goes around
the checks of the ordinary calls: no worker has any business with it."""

CHANGING: Final[Numbers] = MappingProxyType(
    {
        "accept": (43, 202),
        "accept4": (288, 242),
        "chmod": (90, None),
        "chown": (92, None),
        "connect": (42, 203),
        "execve": (59, 221),
        "execveat": (322, 281),
        "fanotify_init": (300, 262),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "fchown": (93, 55),
        "fchownat": (260, 54),
        "file_setattr": (469, 469),
        "fork": (57, None),
        "fremovexattr": (199, 16),
        "fsetxattr": (190, 7),
        "futimesat": (261, None),
        "ioprio_set": (251, 30),
        "kill": (62, 129),
        "lchown": (94, None),
        "link": (86, None),
        "linkat": (265, 37),
        "listen": (50, 201),
        "lremovexattr": (198, 15),
        "lsetxattr": (189, 6),
        "memfd_secret": (447, 447),
        "mknod": (133, None),
        "mknodat": (259, 33),
        "pidfd_send_signal": (424, 424),
        "removexattr": (197, 14),
        "removexattrat": (466, 466),
        "rt_sigqueueinfo": (129, 138),
        "rt_tgsigqueueinfo": (297, 240),
        "sched_setaffinity": (203, 122),
        "sched_setattr": (314, 274),
        "sched_setparam": (142, 118),
        "sched_setscheduler": (144, 119),
        "setpriority": (141, 140),
        "setxattr": (188, 5),
        "setxattrat": (463, 463),
        "symlink": (88, None),
        "symlinkat": (266, 36),
        "tgkill": (234, 131),
        "tkill": (200, 130),
        "utime": (132, None),
        "utimensat": (280, 88),
        "utimes": (235, None),
        "vfork": (58, None),
    }
)
"""What runs programs, reaches other processes or the network, or changes owner, mode, links and times of files."""

PARTLY: Final[Numbers] = MappingProxyType(
    {
        "clone": (56, 220),
        "clone3": (435, 435),
        "ioctl": (16, 29),
        "prlimit64": (302, 261),
        "socket": (41, 198),
        "socketpair": (53, 199),
    }
)
"""What depends on the arguments: see `seccomp`."""
