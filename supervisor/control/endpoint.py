"""Making and removing the listening socket file."""

from __future__ import annotations

import os
import socket
import stat
from typing import Final

from garrison.supervisor.control.protocol import ControlError

_BACKLOG: Final = 16
_MAX_PATH_BYTES: Final = 107
"""The kernel's ``sun_path`` is 108 bytes with its end."""


class ControlSocketError(ControlError):
    """The control socket cannot be made. Without it the agent still works, but takes no local orders."""


def listen(
    path: str, *, what: str = "control socket", setting: str = "`run_dir`"
) -> tuple[socket.socket, tuple[int, int]]:
    """Return a listening socket at a path, mode 0600, and its (device, inode).

    The directory is made (0755) where it is missing. A socket on which nobody listens is replaced.

    Args:
        path: Where it is to be.
        what: What it is, for messages.
        setting: The setting that says where it is, for messages.

    Raises:
        ControlSocketError: Another agent listens there, something else than a socket is there, the directory is
            writable by others, or the system refuses.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ControlSocketError(
            f"the {what}'s path {path} is longer than {_MAX_PATH_BYTES} bytes",
            f"choose a shorter {setting}",
        )
    directory = os.path.dirname(path) or "."
    # Bound and restricted under another name first: under its own name it is never there with a wide mode, and
    # the rename replaces a stale one without a moment of absence. A name this short never exceeds the real one.
    passing = os.path.join(directory, f".c{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        _check_directory(directory)
        _check_replaceable(path, setting)
        if os.path.lexists(passing):
            os.unlink(passing)
        sock.bind(passing)
        os.chmod(passing, 0o600)
        sock.listen(_BACKLOG)
        os.rename(passing, path)
        found = os.stat(path, follow_symlinks=False)
    except OSError as error:
        sock.close()
        raise ControlSocketError(
            f"cannot make the {what} {path}: {error.strerror or error}",
            f"check that the folder of {setting} exists, can be written and has space left",
        ) from error
    except ControlSocketError:
        sock.close()
        raise
    return sock, (found.st_dev, found.st_ino)


def unlink_if_ours(path: str, inode: tuple[int, int]) -> None:
    """Remove the socket, unless it is gone or somebody else's by now."""
    try:
        found = os.stat(path, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == inode:
            os.unlink(path)
    except FileNotFoundError:
        return


def _check_directory(directory: str) -> None:
    found = os.stat(directory)
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise ControlSocketError(
            f"{directory} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}), who could"
            " put a socket of their own there",
            f"chmod 0755 {directory}",
        )


def _check_replaceable(path: str, setting: str) -> None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ControlSocketError(f"{path} is there and is no socket", f"move it away, or choose another {setting}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        # Non-blocking: a listener that is hung, with its backlog full, is still a listener (EAGAIN).
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass
    raise ControlSocketError(
        f"another agent listens on {path}", f"stop it (`systemctl stop garrison`), or choose another {setting}"
    )
