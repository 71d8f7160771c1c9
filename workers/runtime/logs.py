"""Log lines: by syslog level, rate-limited, one line each, sent to the master's log."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from garrison.ipc.messages import LOG_LEVELS, Log, LogLevel
from garrison.ipc.pacing import TokenBucket
from garrison.workers.runtime.encoding import printable
from garrison.workers.runtime.notices import Notices

MESSAGE_BYTES = 4096
LINES_PER_SECOND = 20.0
LINES_BURST = 50.0
TRACEBACK_FRAMES = 8

_SEVERITY = {level: severity for severity, level in enumerate(LOG_LEVELS)}


class LevelFilter:
    """The least important level that is sent, shared by all loggers of a process."""

    __slots__ = ("_least",)

    def __init__(self, level: LogLevel = "info") -> None:
        self._least = _SEVERITY[level]

    def set(self, level: LogLevel) -> None:
        """Change the level; takes effect with the next line."""
        self._least = _SEVERITY[level]

    def passes(self, level: LogLevel) -> bool:
        """Return whether a line of this level is to be sent."""
        return _SEVERITY[level] >= self._least


class PipeLogger:
    """The logger of one module, or of the runtime itself (``module=""``).

    At most 20 lines a second leave, 50 in a burst; the count of those left out goes with the next one.
    """

    def __init__(self, notices: Notices, levels: LevelFilter, module: str = "") -> None:
        self._notices = notices
        self._levels = levels
        self._module = printable(module, 128)
        self._bucket = TokenBucket(LINES_PER_SECOND, LINES_BURST)
        self._lock = threading.Lock()
        self._suppressed = 0

    def debug(self, message: str, *args: object) -> None:
        """Log what only a developer wants to know."""
        self.log("debug", message, *args)

    def info(self, message: str, *args: object) -> None:
        """Log what is normal."""
        self.log("info", message, *args)

    def notice(self, message: str, *args: object) -> None:
        """Log what is normal and worth knowing."""
        self.log("notice", message, *args)

    def warning(self, message: str, *args: object) -> None:
        """Log what may become a problem."""
        self.log("warning", message, *args)

    def error(self, message: str, *args: object) -> None:
        """Log a failure."""
        self.log("err", message, *args)

    def critical(self, message: str, *args: object) -> None:
        """Log a failure that needs somebody now."""
        self.log("crit", message, *args)

    def log(self, level: LogLevel, message: str, *args: object) -> None:
        """Log at a syslog level; `args` are for ``%`` formatting. Never raises for what is in the line."""
        if self._levels.passes(level):
            self._send(level, _format(message, args))

    def report_suppressed(self) -> None:
        """Send the count of lines that were left out, where no line came since to carry it."""
        if self._suppressed:
            self._send("warning", "log lines of this module were left out, it logs too much", counted=False)

    def _send(self, level: LogLevel, text: str, *, counted: bool = True) -> None:
        with self._lock:
            if self._bucket.admit(1, time.monotonic()):
                line = Log(level=level, message=text, module=self._module, suppressed=self._suppressed)
                if self._notices.offer(line):
                    self._suppressed = 0
                    return
            self._suppressed += counted


def _format(message: object, args: tuple[object, ...]) -> str:
    try:
        text = str(message) % args if args else str(message)
    # A wrong format must not end a detection; nor may the __str__ of what is to be logged.
    except Exception as error:  # noqa: BLE001
        text = f"{message!r} (cannot be formatted: {type(error).__name__})"
    return printable(text, MESSAGE_BYTES)


def describe(error: BaseException, limit: int = 512) -> str:
    """Return type and text of an exception as one line of at most `limit` bytes."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001  # its own __str__ fails: then the type has to do
        text = f"(no text: {type(second).__name__})"
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__, limit)


def trace(error: BaseException) -> str:
    """Return an exception with its last 8 frames, innermost first, as one line; a cause is added."""
    line = f"{describe(error, 1024)}{_frames(error.__traceback__)}"
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        line += f"; caused by {describe(cause, 512)}{_frames(cause.__traceback__)}"
    return line


def _frames(traceback: TracebackType | None) -> str:
    # Walked by hand: the traceback module would read source files and cost memory in every worker.
    places: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}")
        if len(places) > TRACEBACK_FRAMES:
            del places[0]
        traceback = traceback.tb_next
    return f" at {' < '.join(reversed(places))}" if places else ""
