"""What a worker prints: read slowly, by line, into the agent's log."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

from garrison.ipc.pacing import TokenBucket

READ_BYTES = 4096
LINE_BYTES = 1024
"""A longer line is cut into lines of this length, bytes."""
LINES_PER_SECOND = 10.0
BURST_LINES = 50.0
LAST_LINES = 40
"""What is still there at the end is taken whole, and its last lines are logged: they tell why."""
LAST_READS = 256
"""Most reads for that: a pipe of 1 MiB."""
PAUSE_SECONDS = 1.0
"""How long reading stands still once the rate is used up: a chatty worker waits for its own pipe."""


class OutputReader:
    """Reads a worker's standard output and error.

    Args:
        fd: Read end of the pipe, non-blocking; closed by `close`.
        on_line: Called with each line, without its end.
    """

    def __init__(self, fd: int, on_line: Callable[[str], None]) -> None:
        self._fd = fd
        self._on_line = on_line
        self._rest = b""
        self._bucket = TokenBucket(LINES_PER_SECOND, BURST_LINES)
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def close(self) -> None:
        """Take what is still there, then close the pipe. Idempotent."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        lines: deque[bytes] = deque(maxlen=LAST_LINES + 1)
        for _ in range(LAST_READS):
            more = self._read()
            if not more:
                break
            lines.extend(line for line in more if line.strip())
        if self._rest:
            lines.append(self._rest)
            self._rest = b""
        if len(lines) > LAST_LINES:
            lines.popleft()
            self._on_line("(earlier lines are left out)")
        for line in lines:
            self._emit(line)
        self._closed = True
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._take():
            loop.remove_reader(self._fd)
        elif not self._bucket.admit(0, loop.time()):
            loop.remove_reader(self._fd)
            self._timer = loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._timer = None
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _take(self) -> bool:
        """Read once and pass the lines on. False: the end of the pipe."""
        lines = self._read()
        for line in lines or ():
            self._emit(line)
        return lines is not None

    def _read(self) -> list[bytes] | None:
        """Read once. Returns the lines that are whole now, none where there is nothing; None at the end."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            return None
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [line[at : at + LINE_BYTES] for line in whole for at in range(0, len(line), LINE_BYTES)]
        while len(self._rest) > LINE_BYTES:
            lines.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        return lines

    def _emit(self, line: bytes) -> None:
        self._bucket.admit(1, asyncio.get_running_loop().time())
        if line.strip():
            self._on_line(line.decode("utf-8", "replace"))
