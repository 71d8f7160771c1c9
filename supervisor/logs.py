"""The agent's own log: ``log = logs.get("supervisor.nursery")``, then ``log.warning("…%s", thing)``.

No call ever blocks on standard error, the journal or a disk: lines wait in a bounded queue for one writer
thread; what does not fit is counted and reported. Each source has a rate of its own. Until `start` and after
`stop` lines go straight to standard error.

The standard library's `logging` is not used: a queue of it has no bound in bytes, it knows half of the syslog
levels, and a process that does not load it anyway for asyncio pays 0.7 MB (measured with CPython 3.11).
Libraries that use it are listened to with `capture_stdlib`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from _queue import Empty, SimpleQueue  # what `queue` re-exports, without its pure Python classes
from collections.abc import Callable

import msgspec

from garrison.ipc.messages import LOG_LEVELS, LogLevel
from garrison.ipc.pacing import TokenBucket
from garrison.supervisor.logsinks import FileSink, Line, StderrSink, escape, for_journal, for_people, is_journal

MAX_QUEUED_LINES = 1000
MAX_QUEUED_BYTES = 1024 * 1024
LINES_PER_SECOND = 20.0
"""What one source may write on average; lines of the level ``crit`` and above are not limited."""

BURST_LINES = 200.0
MAX_SOURCES = 1024
MAX_TRACE_LINES = 40
NOTE_SECONDS = 5.0
"""How long suppressed lines may go unreported when their source falls silent."""

_RANKS = {level: rank for rank, level in enumerate(LOG_LEVELS)}
_DEBUG, _INFO, _NOTICE, _WARNING, _ERR, _CRIT = (
    _RANKS[name] for name in ("debug", "info", "notice", "warning", "err", "crit")
)
_LINE_OVERHEAD_BYTES = 200  # a Line, its string headers and its slot in the queue, roughly


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What became of lines since the program started.

    Attributes:
        suppressed: Lines over their source's rate.
        dropped: Lines for which the queue had no room.
        stderr_lost: Lines that standard error did not take, since `start`.
        file_lost: Lines that are not in the files, since `start`.
        file_error: Why the files cannot be written now; empty where they can.
    """

    suppressed: int = 0
    dropped: int = 0
    stderr_lost: int = 0
    file_lost: int = 0
    file_error: str = ""


class Logger:
    """One source of lines; get it from `get`. `args` are for ``%`` formatting, done only where needed."""

    __slots__ = ("_bucket", "_suppressed", "_threshold", "name")

    def __init__(self, name: str, threshold: int) -> None:
        self.name = name
        self._threshold = threshold
        self._bucket = TokenBucket(LINES_PER_SECOND, BURST_LINES)
        self._suppressed = 0

    def log(self, level: LogLevel, message: str, *args: object) -> None:
        """Log at any syslog level."""
        self._log(_RANKS[level], message, args)

    def debug(self, message: str, *args: object) -> None:
        """Log what helps to find a fault."""
        if self._threshold == _DEBUG:
            self._log(_DEBUG, message, args)

    def info(self, message: str, *args: object) -> None:
        """Log what happens in the normal course."""
        self._log(_INFO, message, args)

    def notice(self, message: str, *args: object) -> None:
        """Log what is normal and important."""
        self._log(_NOTICE, message, args)

    def warning(self, message: str, *args: object) -> None:
        """Log what may need attention."""
        self._log(_WARNING, message, args)

    def error(self, message: str, *args: object) -> None:
        """Log what failed."""
        self._log(_ERR, message, args)

    def critical(self, message: str, *args: object) -> None:
        """Log what keeps the agent from working."""
        self._log(_CRIT, message, args)

    def exception(self, message: str, *args: object) -> None:
        """Log an error with the traceback of the exception that is being handled, a line each."""
        self._log(_ERR, message, args)
        for text in _trace(sys.exception()):
            self._log(_ERR, "| %s", (text,))

    def enabled(self, level: LogLevel) -> bool:
        """Tell whether a line of a level would be written."""
        return _RANKS[level] >= self._threshold

    def _log(self, rank: int, message: str, args: tuple[object, ...]) -> None:
        if rank < self._threshold:
            return
        suppressed = 0
        with _core.lock:
            if rank < _CRIT and not self._bucket.admit(1, time.monotonic()):
                self._suppressed += 1
                _core.suppress(self)
                return
            suppressed, self._suppressed = self._suppressed, 0
        now = time.time()
        if suppressed:
            _core.submit(Line(now, _WARNING, self.name, _suppressed_text(suppressed)))
        _core.submit(Line(now, rank, self.name, escape(_text(message, args))))

    def take_suppressed(self) -> int:
        """Return how many lines were suppressed and not reported yet; from now on they count as reported."""
        with _core.lock:
            count, self._suppressed = self._suppressed, 0
            return count


def _suppressed_text(count: int) -> str:
    return f"{count} lines suppressed: more than {LINES_PER_SECOND:g} a second came from here"


def _text(message: str, args: tuple[object, ...]) -> str:
    if not args:
        return str(message)
    try:
        return message % args
    except Exception as error:  # noqa: BLE001  (an argument's own code may raise anything; a log line must not)
        return f"{message} (its {len(args)} arguments cannot be formatted: {type(error).__name__})"


def _trace(error: BaseException | None) -> list[str]:
    if error is None:
        return []
    import traceback  # only where something has gone wrong

    lines = [line for part in traceback.format_exception(error) for line in part.rstrip("\n").split("\n")]
    return lines if len(lines) <= MAX_TRACE_LINES else ["…", *lines[-MAX_TRACE_LINES:]]


class _Writer:
    """The thread, its queue and its sinks; made by `start`, ended by `stop`."""

    def __init__(self, stderr: StderrSink | None, file: FileSink | None) -> None:
        self.stderr, self.file = stderr, file
        self.lines = 0
        self.bytes = 0
        self.dropped = 0
        # SimpleQueue.put is reentrant: a destructor that logs may run in the middle of another put.
        self.queue: SimpleQueue[Line | Callable[[], object] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="log", daemon=True)

    def put(self, line: Line) -> bool:
        """Take a line, or count it as dropped. Called with the core's lock held."""
        size = len(line.text) + _LINE_OVERHEAD_BYTES
        if self.lines >= MAX_QUEUED_LINES or self.bytes + size > MAX_QUEUED_BYTES:
            self.dropped += 1
            return False
        self.lines += 1
        self.bytes += size
        self.queue.put(line)
        return True

    def _run(self) -> None:
        while True:
            try:
                item = self.queue.get(timeout=NOTE_SECONDS if _core.silent else None)
            except Empty:
                _core.report_suppressed()
                continue
            if item is None:
                break
            if isinstance(item, Line):
                self._write(item)
                with _core.lock:
                    self.lines -= 1
                    self.bytes -= len(item.text) + _LINE_OVERHEAD_BYTES
            else:
                item()
            self._report_dropped()
        self._report_dropped()
        if self.file is not None:
            self.file.close()
        if self.stderr is not None:
            self.stderr.close()

    def change_files(self, folder: str | None, max_bytes: int) -> None:
        """Write to other files. Called in the writer's own thread."""
        if self.file is not None:
            self.file.close()
            with _core.lock:
                _core.file_lost += self.file.lost
        self.file = None if folder is None else FileSink(folder, max_bytes)

    def _report_dropped(self) -> None:
        with _core.lock:
            dropped, self.dropped = self.dropped, 0
        if dropped:
            text = f"{dropped} lines suppressed: they came faster than they could be written"
            self._write(Line(time.time(), _WARNING, "supervisor.logs", text))

    def _write(self, line: Line) -> None:
        if self.file is not None:
            message = self.file.write(line, time.monotonic())
            if message and self.stderr is not None:
                self.stderr.write(Line(time.time(), _ERR, "supervisor.logs", escape(message)))
        if self.stderr is not None:
            self.stderr.write(line)


class _Core:
    """What all loggers share."""

    def __init__(self) -> None:
        # Reentrant, because a destructor that runs while the lock is held may log.
        self.lock = threading.RLock()
        self.loggers: dict[str, Logger] = {}
        self.levels: dict[str, int] = {"": _INFO}
        self.floor = _DEBUG
        self.writer: _Writer | None = None
        self.silent: dict[str, Logger] = {}
        self.suppressed = 0
        self.dropped = 0
        self.stderr_lost = 0
        self.file_lost = 0
        self.listener: Callable[[Line], None] | None = None

    def threshold(self, source: str) -> int:
        """Return the level of a source: its own, else that of the nearest name above it; never below the floor."""
        while source:
            if source in self.levels:
                return max(self.floor, self.levels[source])
            source = source.rpartition(".")[0]
        return max(self.floor, self.levels[""])

    def submit(self, line: Line) -> None:
        """Hand a line to the writer, or write it where there is none; and to the listener."""
        listener = self.listener
        if listener is not None and line.rank >= _WARNING:
            listener(line)
        with self.lock:
            if self.writer is not None:
                if not self.writer.put(line):
                    self.dropped += 1
                return
        data = for_journal(line) if is_journal(2, os.environ) else for_people(line)
        try:
            os.write(2, data)
        except OSError:
            self.stderr_lost += 1  # no writer and no standard error: only the count is left

    def suppress(self, logger: Logger) -> None:
        """Note that a line of a source was over its rate. Called with the lock held."""
        self.suppressed += 1
        if logger.name not in self.silent:
            self.silent[logger.name] = logger
            if self.writer is not None:
                self.writer.queue.put(_nothing)  # wakes the writer, which waits with a timeout from now on

    def report_suppressed(self) -> None:
        """Report suppressed lines of sources that have said nothing since."""
        with self.lock:
            loggers, self.silent = list(self.silent.values()), {}
        for logger in loggers:
            count = logger.take_suppressed()
            if count:
                self.submit(Line(time.time(), _WARNING, logger.name, _suppressed_text(count)))


def _nothing() -> None:
    """Wake the writer."""


_core = _Core()


def get(name: str) -> Logger:
    """Return the logger of a source, such as ``supervisor.nursery`` or ``worker.process``; always the same one.

    There are at most `MAX_SOURCES`; further names share one logger called ``other``.
    """
    name = escape(name)[:128]
    with _core.lock:
        logger = _core.loggers.get(name)
        if logger is None:
            if len(_core.loggers) >= MAX_SOURCES and name != "other":
                return get("other")
            logger = _core.loggers[name] = Logger(name, _core.threshold(name))
        return logger


def set_level(level: LogLevel | None, source: str = "") -> None:
    """Change the level of everything, or of a source and all whose dotted names begin with it.

    Args:
        level: Least important level to be written. None: back to what applies above the source.
        source: ``worker.process`` for one worker; empty for everything that has no level of its own.

    Raises:
        ValueError: There is no such level.
    """
    if level is not None and level not in _RANKS:
        raise ValueError(f"{level!r} is no log level; there are: {', '.join(LOG_LEVELS)}")
    with _core.lock:
        if level is not None:
            _core.levels[source] = _RANKS[level]
        elif source:
            _core.levels.pop(source, None)
        else:
            _core.levels[""] = _INFO
        for logger in _core.loggers.values():
            logger._threshold = _core.threshold(logger.name)  # noqa: SLF001  (the same module)


def set_floor(level: LogLevel) -> None:
    """Write nothing less important than a level, whatever levels are set; ``debug`` ends that."""
    with _core.lock:
        _core.floor = _RANKS[level]
        for logger in _core.loggers.values():
            logger._threshold = _core.threshold(logger.name)  # noqa: SLF001  (the same module)


def start(level: LogLevel = "info", *, folder: str | None = None, max_bytes: int = 5 * 1024 * 1024) -> None:
    """Start the writer thread; before that nothing here has a thread. A second call replaces the first's sinks.

    Files that cannot be written now are no error: standard error says so and it is tried again.

    Args:
        level: Least important level to be written, as `set_level` takes it.
        folder: Where ``garrison.0.log`` and ``garrison.1.log`` are written. None: no files.
        max_bytes: Size of each of the two files.
    """
    set_level(level)
    stop()
    writer = _Writer(StderrSink(), None if folder is None else FileSink(folder, max_bytes))
    writer.thread.start()
    with _core.lock:
        _core.writer = writer


def stop(timeout: float = 2.0) -> bool:
    """Write what is queued and end the writer. False: it was not done in `timeout` seconds and is left behind."""
    with _core.lock:
        writer, _core.writer = _core.writer, None
        if writer is None:
            return True
        _core.silent = {}
        for logger in _core.loggers.values():
            count = logger.take_suppressed()
            if count:
                writer.put(Line(time.time(), _WARNING, logger.name, _suppressed_text(count)))
    writer.queue.put(None)
    writer.thread.join(timeout)
    return not writer.thread.is_alive()


def set_files(folder: str | None, max_bytes: int) -> None:
    """Write to files in a folder from now on, or to none. Returns at once; the writer does it in its turn.

    Args:
        folder: As for `start`.
        max_bytes: As for `start`; older lines that are more than that are cut off.
    """
    with _core.lock:
        writer = _core.writer
    if writer is not None:
        writer.queue.put(lambda: writer.change_files(folder, max_bytes))


def listen(listener: Callable[[Line], None] | None) -> None:
    """Have something see every line of the level ``warning`` and above that is within its source's rate.

    Args:
        listener: Called from whatever thread logs; it must return at once, must not raise, and must not log. None:
            nothing.
    """
    _core.listener = listener


def flush(timeout: float) -> bool:
    """Wait until every line so far has been written. False: not within `timeout` seconds."""
    with _core.lock:
        writer = _core.writer
    if writer is None:
        return True
    done = threading.Event()
    writer.queue.put(done.set)
    return done.wait(timeout)


def reopen() -> None:
    """Open the log files anew: what SIGUSR1 asks for. Returns at once; the writer does it in its turn."""
    with _core.lock:
        writer = _core.writer
    if writer is not None and writer.file is not None:
        writer.queue.put(writer.file.reopen)


def counters() -> Counters:
    """Return what became of lines, for the status."""
    with _core.lock:
        writer = _core.writer
        file = writer.file if writer is not None else None
        stderr = writer.stderr if writer is not None else None
        return Counters(
            suppressed=_core.suppressed,
            dropped=_core.dropped,
            stderr_lost=_core.stderr_lost + (stderr.lost if stderr is not None else 0),
            file_lost=_core.file_lost + (file.lost if file is not None else 0),
            file_error=file.error if file is not None else "",
        )


def capture_stdlib(level: LogLevel = "warning") -> None:
    """Take over what libraries log through `logging`, which the master has in memory because of asyncio.

    The source is ``python.`` and the library's logger name. Call it once, where `logging` is loaded anyway.
    """
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger = get(f"python.{record.name}")
            steps = ((50, _CRIT), (40, _ERR), (30, _WARNING), (20, _INFO))
            name = LOG_LEVELS[next((rank for least, rank in steps if record.levelno >= least), _DEBUG)]
            try:
                message = record.getMessage()
            except Exception as error:  # noqa: BLE001  (as in _text: arguments run code of their own)
                message = f"{record.msg} (its arguments cannot be formatted: {type(error).__name__})"
            for text in (message, *(f"| {line}" for line in _trace(record.exc_info[1] if record.exc_info else None))):
                logger.log(name, "%s", text)

    numbers = {"debug": logging.DEBUG, "info": logging.INFO, "notice": logging.INFO, "warning": logging.WARNING}
    logging.basicConfig(handlers=[Handler()], level=numbers.get(level, logging.ERROR), force=True)
