"""Where log lines go: standard error, which must never hold anybody up, and two alternating files."""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from garrison.ipc.messages import LOG_LEVELS
from garrison.supervisor.alternating import AlternatingFile, AlternatingFileError
from garrison.supervisor.settings.places import FolderError, make_folder

if TYPE_CHECKING:
    import socket

MAX_TEXT_CHARACTERS = 8192
STDERR_PATIENCE_SECONDS = 1.0
"""How long the writer waits for a full standard error before it gives up on it until there is room again."""

FILE_RETRY_SECONDS = 10.0
"""How long files that could not be written are left alone."""

_WARNING = LOG_LEVELS.index("warning")

_PIPE_BUF = 4096
"""What a pipe that polls as writable takes without blocking, bytes (pipe(7))."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line: seconds since the epoch, rank in `LOG_LEVELS`, source and text, both already on one line."""

    at: float
    rank: int
    source: str
    text: str


def escape(text: str) -> str:
    r"""Return a text on one line, without anything that a terminal or a reader of the log could take for more.

    Control characters, line and paragraph separators, direction marks and lone surrogates become ``\x1b``,
    ``\n`` and the like; a text over `MAX_TEXT_CHARACTERS` is cut.
    """
    cut = len(text) - MAX_TEXT_CHARACTERS
    if cut > 0:
        text = text[:MAX_TEXT_CHARACTERS]
    if not text.isprintable():
        text = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
        )[:MAX_TEXT_CHARACTERS]
    return f"{text}… ({cut} characters cut)" if cut > 0 else text


def for_people(line: Line) -> bytes:
    """Return a line with its time in UTC and its level, for files and terminals."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(line.at))
    text = f"{when}.{int(line.at % 1 * 1000):03d}Z {LOG_LEVELS[line.rank]} {line.source}: {line.text}\n"
    return text.encode("utf-8", "backslashreplace")


def for_journal(line: Line) -> bytes:
    """Return a line with its syslog priority in front; the journal adds the time itself (sd-daemon(3))."""
    return f"<{len(LOG_LEVELS) - 1 - line.rank}>{line.source}: {line.text}\n".encode("utf-8", "backslashreplace")


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Tell whether a descriptor is the journal's, by ``JOURNAL_STREAM`` (systemd.exec(5)): device:inode."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


class StderrSink:
    """Writes to standard error without blocking the writer's thread for more than `STDERR_PATIENCE_SECONDS`.

    The descriptor is shared with other processes, so it cannot be made non-blocking. Instead the same pipe or
    terminal is opened once more, a socket is sent to with MSG_DONTWAIT, and where neither works each write
    is small enough for what poll() promises.

    Attributes:
        lost: Lines that could not be written.
    """

    def __init__(self, fd: int = 2, environ: Mapping[str, str] | None = None) -> None:
        self.lost = 0
        self._fd = fd
        self._own = -1
        self._socket: socket.socket | None = None
        self._rest = memoryview(b"")
        self._stuck = False
        self._reported = 0
        self._format = for_journal if is_journal(fd, os.environ if environ is None else environ) else for_people
        try:
            kind = os.fstat(fd).st_mode
            if stat.S_ISSOCK(kind):
                import socket

                self._socket = socket.socket(fileno=os.dup(fd))
            elif stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            self._own = -1  # no /proc, or another user's terminal: small writes after poll() it is

    def write(self, line: Line) -> None:
        """Write a line, or count it as lost."""
        if not self._push():
            self.lost += 1
            return
        data = self._format(line)
        if self.lost > self._reported:
            missing = self.lost - self._reported
            note = Line(
                line.at, _WARNING, "supervisor.logs", f"{missing} lines are missing here: standard error was stuck"
            )
            data = self._format(note) + data
            self._reported = self.lost
        self._rest = memoryview(data)
        self._push()

    def _push(self) -> bool:
        """Go on with what has begun. False: there is still something left of it."""
        while self._rest:
            try:
                self._rest = self._rest[self._send(self._rest) :]
            except BlockingIOError:
                patience = 0.0 if self._stuck else STDERR_PATIENCE_SECONDS
                if self._poll(patience):
                    continue
                self._stuck = True
                return False
            except OSError:
                # Closed, or its reader is gone: there is nobody to tell, only a count to keep.
                self._rest = memoryview(b"")
                self.lost += 1
        self._stuck = False
        return True

    def _send(self, data: memoryview) -> int:
        if self._socket is not None:
            import socket

            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._own >= 0:
            return os.write(self._own, data)
        if not self._poll(0.0):
            raise BlockingIOError
        return os.write(self._fd, data[:_PIPE_BUF])

    def _poll(self, seconds: float) -> bool:
        fd = self._socket.fileno() if self._socket is not None else self._own if self._own >= 0 else self._fd
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Close what was opened beside the descriptor, which stays open itself. Idempotent."""
        self._push()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._own >= 0:
            os.close(self._own)
            self._own = -1


class FileSink:
    """Writes to the alternating log files; while they cannot be written it waits and counts.

    Attributes:
        lost: Lines that are not in the files.
        error: Why they could not be written last; empty while they can.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.lost = 0
        self.error = ""
        self._folder = folder
        self._file = AlternatingFile(os.path.join(folder, "garrison.log"), max_bytes)
        self._retry_at = 0.0
        self._missing = 0

    def write(self, line: Line, now: float) -> str:
        """Write a line at the monotonic time `now`. Returns a message for the operator, empty mostly."""
        if self.error and now < self._retry_at:
            self._lose()
            return ""
        data = for_people(line)
        if self._missing:
            note = f"{self._missing} lines are missing here: {self.error}"
            data = for_people(Line(line.at, _WARNING, "supervisor.logs", escape(note))) + data
        try:
            if not os.path.isdir(self._folder):
                make_folder(self._folder, 0o750, "agent.log_dir")
            self._file.write(data)
        except (AlternatingFileError, FolderError) as error:
            self._retry_at = now + FILE_RETRY_SECONDS
            first, self.error = not self.error, str(error)
            self._lose()
            return f"the log files cannot be written: {error}" if first else ""
        if not self.error:
            return ""
        missing, self.error, self._missing = self._missing, "", 0
        return f"the log files can be written again; {missing} lines are missing there"

    def _lose(self) -> None:
        self.lost += 1
        self._missing += 1

    def reopen(self) -> None:
        """Open the files anew at the next line, and at once try again where they could not be written."""
        self._file.reopen()
        self._retry_at = 0.0

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._file.close()
