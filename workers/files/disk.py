"""Looking at the disk: directories opened without following a link, entries described, file systems told apart."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from garrison.workers.files.entry import DIRECTORY, FILE, LINK, OTHER, Entry
from garrison.workers.files.targets import parts

GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What opening a directory fails with when there is none of this name, or a link in its place."""

NETWORK: Final = frozenset(
    (
        *(
            "9p",
            "afs",
            "autofs",
            "beegfs",
            "ceph",
            "cifs",
            "coda",
            "fuse",
            "gfs",
            "gfs2",
            "glusterfs",
            "gpfs",
            "lustre",
        ),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "virtiofs", "vboxsf", "prl_fs"),
    )
)
MAX_MOUNTINFO: Final = 4 * 1024 * 1024

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WALK_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS: Final = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: LINK}


def open_directory(path: str) -> int:
    """Open a directory by its path, none of whose parts may be a symbolic link.

    Who may write somewhere on the way could otherwise make us read any place of the host.

    Raises:
        OSError: One of `GONE` where there is no such directory.
    """
    names = parts(path)
    fd = os.open("/", _WALK_FLAGS if names else _DIRECTORY_FLAGS)
    for index, name in enumerate(names, 1):
        try:
            following = os.open(name, _DIRECTORY_FLAGS if index == len(names) else _WALK_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = following
    return fd


def look(directory: int, name: str) -> Entry | None:
    """Describe an entry of an open directory without its digest, or return None where there is none.

    Raises:
        OSError: The file system fails.
    """
    try:
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), OTHER)
        link = os.fsencode(os.readlink(name, dir_fd=directory)) if kind == LINK else None
    except OSError as error:
        if error.errno in (*GONE, errno.EINVAL):  # EINVAL: a link that has just become something else
            return None
        raise
    return describe(facts, kind, link)


def describe(facts: os.stat_result, kind: str, link: bytes | None = None) -> Entry:
    """Return an entry for what stat tells. Pure."""
    directory = kind == DIRECTORY
    return Entry(
        kind=kind,
        size=0 if directory else facts.st_size,
        uid=facts.st_uid,
        gid=facts.st_gid,
        mode=stat.S_IMODE(facts.st_mode),
        mtime_ns=0 if directory else facts.st_mtime_ns,
        ctime_ns=0 if directory else facts.st_ctime_ns,
        inode=facts.st_ino & (2**63 - 1),
        link=link,
    )


def open_file(directory: int, name: str) -> int:
    """Open a regular file for reading, leaving its access time alone where we may.

    Raises:
        OSError: It cannot be opened, is a link, or is no regular file (EINVAL).
    """
    try:
        fd = os.open(name, _FILE_FLAGS | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        fd = os.open(name, _FILE_FLAGS, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file any more", name)
    return fd


def parse_mounts(data: bytes) -> dict[str, str]:
    """Return file system types by mount point, the topmost where several are stacked, from mountinfo. Pure."""
    mounts: dict[str, str] = {}
    for line in data.split(b"\n"):
        front, _, back = line.partition(b" - ")
        fields, kinds = front.split(b" "), back.split(b" ")
        if len(fields) >= 6 and kinds[0]:
            mounts[os.fsdecode(_unescaped(fields[4]))] = kinds[0].decode("ascii", "replace")
    return mounts


def read_mounts() -> dict[str, str]:
    """Return the mounts of this process's namespace.

    Raises:
        OSError: There is no /proc.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mounts(file.read(MAX_MOUNTINFO))


def is_network(kind: str) -> bool:
    """Tell whether a file system of this type may wait for another host or for a process."""
    return kind in NETWORK or kind.startswith(("fuse.", "nfs"))


def _unescaped(raw: bytes) -> bytes:
    if b"\\" not in raw:
        return raw
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        raw = raw.replace(code, char)
    return raw
