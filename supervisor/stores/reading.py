"""Reading one small file that anybody may have put there: never hangs, never reads much, says what is wrong."""

from __future__ import annotations

import errno
import os
import stat

from garrison.supervisor.keys import VALUE_FILE

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class UnreadableError(Exception):
    """Something has this name, and its content cannot be had. The text says what it is."""


class DirectoryInPlaceError(UnreadableError):
    """A directory has this name."""


def read_file(path: str, limit: int) -> bytes:
    """Return the content of a regular file; symbolic links are followed.

    Args:
        path: The file.
        limit: Most bytes it may hold.

    Raises:
        FileNotFoundError: Nothing has this name.
        UnreadableError: Something has, but it is no regular file, too large, a dangling link, or denied.
        OSError: It is not known whether anything has this name: a directory above it is denied or broken.
    """
    try:
        found = os.stat(path)
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, path) from error
    except OSError as error:
        # ENOENT and ELOOP may speak of what a link points to: then the name itself is taken.
        if error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(path):
            what = "a dangling symbolic link" if error.errno == errno.ENOENT else "a loop of symbolic links"
            raise UnreadableError(f"it is {what}") from error
        raise
    # Looked at before it is opened: opening a device can already do something.
    _check_kind(found.st_mode)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(f"it cannot be opened: {error.strerror}") from error
    try:
        _check_kind(os.fstat(fd).st_mode)  # it may have been replaced meanwhile
        return _read(fd, limit)
    except OSError as error:
        raise UnreadableError(f"it cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def read_value(path: str, limit: int) -> bytes:
    """Return the value of a key from its file, or from `VALUE_FILE` in the directory of that name.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableError: As `read_file`, or it is a directory without a value of its own.
        OSError: As `read_file`.
    """
    try:
        return read_file(path, limit)
    except DirectoryInPlaceError as error:
        try:
            return read_file(os.path.join(path, VALUE_FILE), limit)
        except FileNotFoundError:
            raise DirectoryInPlaceError(f"it is a directory without a file {VALUE_FILE}") from error


def _check_kind(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    what = next((name for test, name in _KINDS if test(mode)), "of an unknown kind")
    error = DirectoryInPlaceError if stat.S_ISDIR(mode) else UnreadableError
    raise error(f"it is {what}, not a regular file")


def _read(fd: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) <= limit:
        chunk = os.read(fd, limit + 1 - len(data))
        if not chunk:
            return bytes(data)
        data += chunk
    raise UnreadableError(f"it holds more than {limit} bytes")
