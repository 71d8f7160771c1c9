"""Small JSON documents that survive a crash at any moment: the old one or the new one is there, never half.

A file is one object, ``{"format": 1, "sha256": "…", "document": …}``. The checksum is over the document's
bytes as they stand. It tells an accident or a careless edit; it is no signature: who may write the file may
write the checksum too.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import stat
from typing import Literal, TypeVar

import msgspec

from garrison.supervisor.settings.places import remedy

FORMAT = 1
MAX_BYTES = 1024 * 1024
"""Largest file that is written or read unless the caller says otherwise, bytes."""

T = TypeVar("T")

Reason = Literal["missing", "unreadable", "torn", "tampered", "format", "type", "too large", "unwritable"]

_numbers = itertools.count()
_OURS = f"{os.getpid()}-{os.urandom(4).hex()}"
"""Marks this process's temporary files. In a container the agent has the same pid after each start."""


class StateFileError(Exception):
    """A document cannot be read or written; the text names the file and says what follows.

    Attributes:
        path: The file.
        reason: ``missing``: there is none, as at the first start. ``unreadable``: the system refused.
            ``torn``: it is no whole document. ``tampered``: the checksum is another one. ``format``: another
            version of the agent wrote it. ``type``: whole, and not what was expected. ``too large``.
            ``unwritable``: the old document is still there (the new one, where only the folder's sync failed).
    """

    def __init__(self, path: str, reason: Reason, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.path = path
        self.reason = reason


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    sha256: str
    document: msgspec.Raw


class _Version(msgspec.Struct):
    format: int


_envelope_decoder = msgspec.json.Decoder(_Envelope)


def write(path: str, document: object, *, max_bytes: int = MAX_BYTES) -> None:
    """Replace the document in a file, atomically, and have it on disk before returning.

    Threads may write different documents at the same time; for one path the last rename wins.

    Args:
        path: The file; its folder must exist. A symbolic link is replaced and not followed.
        document: Anything that msgspec can encode as JSON.
        max_bytes: Largest file, bytes.

    Raises:
        StateFileError: ``too large`` or ``unwritable``.
        TypeError: The document cannot be encoded.
    """
    data = encode(document)
    if len(data) > max_bytes:
        raise StateFileError(path, "too large", f"{len(data)} bytes are more than the {max_bytes} allowed")
    folder, name = os.path.split(path)
    folder = folder or "."
    # A name of its own for every write: two threads can never rename each other's half.
    temporary = os.path.join(folder, f".{name}.{_OURS}-{next(_numbers)}.tmp")
    try:
        _remove_leftovers(folder, name)
        try:
            _write_new(temporary, data)
            os.rename(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        text = f"cannot be written: {error.strerror}; {remedy(error)}"
        raise StateFileError(path, "unwritable", text) from error


def read(path: str, type: type[T], *, max_bytes: int = MAX_BYTES) -> T:  # noqa: A002  (as msgspec calls it)
    """Return the document of a file, checked against its checksum and a type.

    Raises:
        StateFileError: There is none, or it must not be used; `StateFileError.reason` tells which.
    """
    data = _read(path, max_bytes)
    try:
        envelope = _envelope_decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _explain_bad_envelope(path, data, error) from error
    if envelope.format != FORMAT:
        raise _other_format(path, envelope.format)
    if hashlib.sha256(bytes(envelope.document)).hexdigest() != envelope.sha256:
        raise StateFileError(
            path, "tampered", "the checksum does not match: it was changed by hand or by a broken disk; remove it"
        )
    try:
        return msgspec.json.decode(envelope.document, type=type)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise StateFileError(path, "type", f"the document is whole and not what is expected: {error}") from error


def encode(document: object) -> bytes:
    """Return the bytes of a file that holds the document.

    Raises:
        TypeError: The document cannot be encoded.
    """
    body = msgspec.json.encode(document)
    digest = hashlib.sha256(body).hexdigest().encode()
    return b'{"format":%d,"sha256":"%s","document":%s}\n' % (FORMAT, digest, body)


def _explain_bad_envelope(path: str, data: bytes, error: Exception) -> StateFileError:
    try:
        version = msgspec.json.decode(data, type=_Version).format
    except (msgspec.MsgspecError, RecursionError, ValueError):
        version = FORMAT
    if version != FORMAT:
        return _other_format(path, version)
    return StateFileError(path, "torn", f"it is no whole document ({error}); remove it")


def _other_format(path: str, found: int) -> StateFileError:
    text = f"it has format {found}, and this version of the agent knows {FORMAT}; another version wrote it"
    return StateFileError(path, "format", text)


def _read(path: str, max_bytes: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise StateFileError(path, "missing", "there is no such file") from None
    except OSError as error:
        what = "is a symbolic link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        raise StateFileError(path, "unreadable", f"cannot be read: {what}; {remedy(error)}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StateFileError(path, "unreadable", "it is no regular file; remove it")
        data = bytearray()
        while len(data) <= max_bytes and (chunk := os.read(fd, max_bytes + 1 - len(data))):
            data += chunk
    except OSError as error:
        raise StateFileError(path, "unreadable", f"cannot be read: {error.strerror}; {remedy(error)}") from error
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise StateFileError(path, "too large", f"it has more than the {max_bytes} bytes allowed; remove it")
    return bytes(data)


def _write_new(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: str) -> None:
    """Have the rename on disk. Some network file systems cannot do it, and say EINVAL."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def _remove_leftovers(folder: str, name: str) -> None:
    """Remove what a writer that died has left. A living process's file may be its write in progress."""
    pattern = re.compile(rf"\.{re.escape(name)}\.(([0-9]{{1,10}})-[0-9a-f]{{8}})-[0-9]+\.tmp", re.ASCII)
    for entry in os.listdir(folder):
        match = pattern.fullmatch(entry)
        if match is None or match.group(1) == _OURS:
            continue
        pid = int(match.group(2))
        if pid == os.getpid() or not _alive(pid):
            _remove(os.path.join(folder, entry))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EROFS:  # then it was never made
            raise
