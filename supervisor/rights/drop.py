"""Giving up rights in a worker's process, before the first instruction of its own.

The order matters: the bounding set while CAP_SETPCAP is there, the user while CAP_SETUID is, the capabilities last. A
change of user clears the parent-death signal and makes the process one that only root can look into; an exec clears
what is not in the ambient set.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from garrison.ipc.rights import CAPABILITIES
from garrison.supervisor.linux import prctl
from garrison.supervisor.rights import capabilities
from garrison.supervisor.rights.accounts import Account
from garrison.supervisor.rights.grant import RightsError

_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_MAX_ENTRIES: Final = 1024
_SEARCHABLE: Final = 0o711


def drop(account: Account | None, keep: int, *, for_exec: bool) -> None:
    """Become `account` (None: stay who we are) with these capabilities and no others, for good.

    Args:
        account: The user.
        keep: Capabilities as bits.
        for_exec: A program follows, which is to have them too.

    Raises:
        RightsError: It did not work; the process must not go on. The text says what to do.
    """
    try:
        had = capabilities.held()
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if had.effective >> CAPABILITIES.index("setpcap") & 1:
            capabilities.bound(keep)
        if account is not None:
            _become(account)
        capabilities.hold(capabilities.Held(keep, keep, keep if for_exec else 0))
        capabilities.hand_on(keep if for_exec and os.geteuid() != 0 else 0)
    except OSError as error:
        who = f"user {account.name} (uid {account.uid})" if account is not None else "the agent's own user"
        raise RightsError(
            f"it cannot become {who} with the capabilities {_listed(keep)}: {error}; "
            "the agent needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP for that, and programs with capabilities Linux 4.3"
        ) from error
    now = capabilities.held()
    if now.effective != keep or now.permitted != keep or (account is not None and os.getresuid() != (account.uid,) * 3):
        raise RightsError(f"it has other rights than it was given: {now}")


def _become(account: Account) -> None:
    # What is so already needs no right to be made so: root in a container that may not change users.
    # The group itself may be listed among the others or not: it makes no difference.
    if {*os.getgroups(), os.getegid()} != {*account.groups, account.gid}:
        os.setgroups(account.groups)
    if os.getresgid() != (account.gid,) * 3:
        os.setresgid(account.gid, account.gid, account.gid)
    if os.getresuid() != (account.uid,) * 3:
        prctl(_PR_SET_KEEPCAPS, 1)
        os.setresuid(account.uid, account.uid, account.uid)
        prctl(_PR_SET_KEEPCAPS, 0)


def hand_over(account: Account, folder: str, fds: tuple[int, ...]) -> str:
    """Give a worker what it has to reach as another user: its pipes, and its own folder.

    What is in the folder is handed over only as long as the folder is not the worker's yet: from then on it may hold
    links that somebody else has put there.

    Returns:
        Why the folder cannot be used, or an empty string: a worker can do without it.

    Raises:
        RightsError: The pipes cannot be handed over.
    """
    try:
        for fd in fds:
            os.fchown(fd, account.uid, account.gid)
    except OSError as error:
        raise RightsError(f"its pipes cannot be handed over to user {account.name}: {error}") from error
    if not os.path.isabs(folder):
        return ""
    try:
        if account.uid != 0:
            workers = os.path.dirname(folder)
            _searchable(os.path.dirname(workers))
            _searchable(workers)
            _own_folder(account, folder)
        elif os.path.isdir(folder):
            _own_folder(account, folder)
    except OSError as error:
        return f"its folder {folder} cannot be handed over to user {account.name}: {error}"
    return ""


def _searchable(path: str) -> None:
    try:
        os.mkdir(path, _SEARCHABLE)
    except FileExistsError:
        found = os.stat(path)
        if found.st_uid == os.geteuid() and not found.st_mode & 0o001:
            os.chmod(path, stat.S_IMODE(found.st_mode) | (_SEARCHABLE & 0o111))
        return
    os.chmod(path, _SEARCHABLE)


def _own_folder(account: Account, folder: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid == account.uid:
            return
        _contents(account, fd, _MAX_ENTRIES)
        os.fchmod(fd, 0o700)
        os.fchown(fd, account.uid, account.gid)
    finally:
        os.close(fd)


def _contents(account: Account, directory: int, left: int) -> int:
    """Hand over regular files with one name and folders, at most `left` of them; return how many more may follow."""
    for name in os.listdir(directory):
        if left <= 0:
            raise OSError(0, f"it has more than {_MAX_ENTRIES} entries: chown it by hand")
        left -= 1
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not (stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)):
            continue
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            opened = os.fstat(fd)
            if stat.S_ISDIR(opened.st_mode):
                left = _contents(account, fd, left)
            elif not stat.S_ISREG(opened.st_mode) or opened.st_nlink != 1:
                continue
            os.fchown(fd, account.uid, account.gid)
        finally:
            os.close(fd)
    return left


def _listed(bits: int) -> str:
    return ", ".join(capabilities.names(bits)) or "none"
