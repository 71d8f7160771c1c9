"""Lines in two files of fixed size, written alternately: no rotation job, no growth, no split line.

``events.ndjson`` becomes ``events.0.ndjson`` and ``events.1.ndjson``. When a write does not fit into the
current file, the other one is emptied and writing goes on there. Both together never take more than twice
`max_bytes`. The files may be removed, moved or emptied by anybody at any time.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import Self

from garrison.supervisor.settings.places import ReadableOSError, remedy

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_COPY_BYTES = 64 * 1024


class AlternatingFileError(ReadableOSError):
    """Lines could not be written; the text names the file and says what to do.

    Attributes:
        written: Bytes of the write that are in the file: whole lines only, possibly none. What comes after
            them may be written again later.
    """

    def __init__(self, number: int | None, text: str, written: int = 0) -> None:
        super().__init__(number, text)
        self.written = written


class AlternatingFile:
    """Two files used as one. Not thread-safe, and the only writer of its files.

    Args:
        path: Name from which those of the two files are made. Its folder must exist.
        max_bytes: Size of each file, at least 1.
        mode: Permission bits of new files, whatever the umask.
    """

    def __init__(self, path: str, max_bytes: int, mode: int = 0o640) -> None:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        stem, suffix = os.path.splitext(path)
        self.paths = (f"{stem}.0{suffix}", f"{stem}.1{suffix}")
        self.max_bytes = max_bytes
        self._mode = mode
        self._current: int | None = None
        self._fd = -1
        self._torn = False

    @property
    def current_path(self) -> str | None:
        """The file that is written now; None before the first write and after `close`."""
        return None if self._current is None else self.paths[self._current]

    def write(self, lines: bytes) -> None:
        """Append one or more whole lines, all of them to one file.

        Args:
            lines: Ends with a newline; at most `max_bytes` long. Empty is fine.

        Raises:
            ValueError: It does not end with a newline or is too long; nothing was written.
            AlternatingFileError: The system refused, a full disk for example.
        """
        if not lines:
            return
        if not lines.endswith(b"\n"):
            raise ValueError("only whole lines can be written: the last one has no newline")
        if len(lines) > self.max_bytes:
            raise ValueError(f"{len(lines)} bytes cannot be written to files of {self.max_bytes} bytes")
        size = self._ready()
        if size + self._torn + len(lines) > self.max_bytes:
            size = self._turn(size)
        self._append(lines, size)

    def sync(self) -> None:
        """Have the current file on disk.

        Raises:
            AlternatingFileError: The disk reports an error.
        """
        if self._fd < 0:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._error("cannot sync", error) from error

    def reopen(self) -> None:
        """Open the files anew at the next write, which chooses the current one again."""
        self.close()

    def close(self) -> None:
        """Close the current file. Idempotent; a later write opens it again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self) -> int:
        """Have the right file open and return its size, as it is now: others may have cut it."""
        if self._fd >= 0 and self._current is not None:
            try:
                there = os.stat(self.paths[self._current], follow_symlinks=False)
                mine = os.fstat(self._fd)
            except FileNotFoundError:
                pass  # removed or moved: what goes to the open descriptor would never be seen
            except OSError as error:
                raise self._error("cannot look at", error) from error
            else:
                if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                    self._torn = self._torn and mine.st_size > 0
                    return mine.st_size
            # Go on with the same one, so that the other keeps its older lines.
            current = self._current
            self.close()
            return self._open(current)
        for index in (0, 1):
            self._bound(index)
        return self._open(self._choose())

    def _choose(self) -> int:
        """Return the file to go on with after a start: the one that is not full, else the newer one.

        A clock that was set back, or a backup that was restored, makes modification times lie; a file that
        was left because it was full does not. Where both or none are full the time has to do: a wrong guess
        costs older lines and never the bound.
        """
        status = [self._stat(index) for index in (0, 1)]
        first, second = status
        if first is None or second is None:
            return 1 if first is None and second is not None else 0
        # Lines have some length, so a full file rarely ends exactly at its bound: an eighth below is full.
        full = [found.st_size > self.max_bytes - max(self.max_bytes // 8, 1) for found in (first, second)]
        if full[0] != full[1]:
            return 1 if full[0] else 0
        if first.st_mtime_ns != second.st_mtime_ns:
            return 1 if second.st_mtime_ns > first.st_mtime_ns else 0
        return 1 if second.st_size < first.st_size else 0

    def _stat(self, index: int) -> os.stat_result | None:
        try:
            return os.stat(self.paths[index], follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error("cannot look at", error, index) from error

    def _open(self, index: int, *, empty: bool = False) -> int:
        """Make a file the current one and return its size."""
        path = self.paths[index]
        fd = -1
        try:
            fd, made = self._open_or_make(path)
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise AlternatingFileError(errno.EINVAL, f"{path} is no regular file; remove it")
            if found.st_nlink > 1:
                # A hard link: a snapshot made by a backup, or a trap. Emptying or extending the file would
                # change what the other name stands for, so only our own name is given up.
                os.unlink(path)
                os.close(fd)
                fd = -1
                fd, made = self._open_or_make(path)
                found = os.fstat(fd)
            if made:
                os.fchmod(fd, self._mode)
            if empty:
                os.ftruncate(fd, 0)
                size = 0
            else:
                size = found.st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if isinstance(error, AlternatingFileError):
                raise
            if error.errno == errno.ELOOP:
                raise AlternatingFileError(
                    errno.ELOOP, f"{path} is a symbolic link, which is not followed; remove it"
                ) from error
            if error.errno in (errno.EISDIR, errno.ENXIO):
                raise AlternatingFileError(error.errno, f"{path} is no regular file; remove it") from error
            raise self._error("cannot open", error, index) from error
        self.close()
        self._fd, self._current, self._torn = fd, index, torn
        return size

    def _open_or_make(self, path: str) -> tuple[int, bool]:
        """Open a file; the flag tells that it is new, and so that its mode is ours to set."""
        try:
            return os.open(path, _FLAGS, self._mode), False
        except FileNotFoundError:
            return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, self._mode), True

    def _turn(self, size: int) -> int:
        """Empty the other file and go on there. The one that is left ends with a whole line."""
        current = self._current or 0
        if self._torn:
            # Its reader would otherwise join the torn line to the next file's first one. Where there is no
            # room for a newline it takes the place of the last byte of that line, which is lost anyway.
            try:
                if size >= self.max_bytes:
                    os.ftruncate(self._fd, self.max_bytes - 1)
                os.write(self._fd, b"\n")
            except OSError as error:
                raise self._error("cannot write to", error) from error
        return self._open(1 - current, empty=True)

    def _append(self, lines: bytes, size: int) -> None:
        prefix = b"\n" if self._torn else b""
        rest = memoryview(prefix + lines)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            # Keep the whole lines that made it; cut what is left of a line.
            done = len(prefix) + len(lines) - len(rest)
            whole = (prefix + lines).rfind(b"\n", 0, done) + 1
            try:
                os.ftruncate(self._fd, size + whole)
            except OSError:
                self._torn = done > whole or (self._torn and not whole)  # the next write closes the line instead
            else:
                self._torn = self._torn and not whole
            raise self._error("cannot write to", error, written=max(whole - len(prefix), 0)) from error
        self._torn = False

    def _bound(self, index: int) -> None:
        """Cut a file that is too large (its limit was lowered) to its newest whole lines.

        They are copied beside it and renamed over it: a crash in between leaves one or the other.
        """
        path = self.paths[index]
        copy = f"{path}.cut"
        try:
            if os.path.lexists(copy):
                os.unlink(copy)
            found = self._stat(index)
            if found is None or not stat.S_ISREG(found.st_mode) or found.st_size <= self.max_bytes:
                return
            try:
                self._copy_tail(path, copy, found.st_size)
                os.rename(copy, path)
            except OSError as error:
                if os.path.lexists(copy):
                    os.unlink(copy)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                os.truncate(path, 0)  # no room for a copy: the bound on the disk comes before old lines
        except AlternatingFileError:
            raise
        except OSError as error:
            raise self._error("cannot cut", error, index) from error

    def _copy_tail(self, path: str, copy: str, size: int) -> None:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, self._mode)
            try:
                # One byte ahead of the tail tells whether the tail begins with a whole line.
                offset, skipping = size - self.max_bytes - 1, True
                while offset < size and (chunk := os.pread(source, min(_COPY_BYTES, size - offset), offset)):
                    offset += len(chunk)
                    if skipping:
                        _, newline, chunk = chunk.partition(b"\n")
                        skipping = not newline
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[os.write(target, rest) :]
                os.fchmod(target, self._mode)
                os.fsync(target)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _error(self, what: str, error: OSError, index: int | None = None, written: int = 0) -> AlternatingFileError:
        index = index if index is not None else (self._current or 0)
        text = f"{what} {self.paths[index]}: {error.strerror}; {remedy(error)}"
        return AlternatingFileError(error.errno, text, written)
