"""The bounded queue between a handler's stream and the client that reads it."""

from __future__ import annotations

import asyncio
from collections import deque

from garrison.supervisor.control.protocol import dropped_line


class Outbox:
    """Lines that wait for one client; for one writer and one reader on one loop.

    When it is full new lines are dropped and counted. The count goes out as a line of its own, at the place
    where the dropped ones would have stood.

    Args:
        max_items: Most lines that wait.
        max_bytes: Most bytes that wait; one line longer than that is still taken by an empty outbox.
    """

    __slots__ = ("_bytes", "_changed", "_dropped", "_ended", "_lines", "_max_bytes", "_max_items", "dropped")

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._ended = False
        self._changed = asyncio.Event()
        self.dropped = 0
        """Lines dropped so far."""

    def offer(self, line: bytes) -> bool:
        """Take a line where there is room. False: dropped and counted. Never waits."""
        if self._ended:
            return False
        if not self._room(len(line)):
            self._dropped += 1
            self.dropped += 1
            return False
        self._append(line)
        return True

    async def put(self, line: bytes) -> None:
        """Take a line, waiting for room as long as it takes."""
        while not self._ended and not self._room(len(line)):
            self._changed.clear()
            await self._changed.wait()
        if not self._ended:
            self._append(line)

    def end(self, last: bytes) -> None:
        """Take the last line, whatever the room; after it `get` returns None. Only the first call counts."""
        if not self._ended:
            self._append(last)
            self._ended = True

    async def get(self) -> bytes | None:
        """Return the next line; None at the end."""
        while not self._lines:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        line = self._lines.popleft()
        self._bytes -= len(line)
        self._changed.set()
        return line

    def _room(self, size: int) -> bool:
        return not self._lines or (len(self._lines) < self._max_items and self._bytes + size <= self._max_bytes)

    def _append(self, line: bytes) -> None:
        if self._dropped:
            marker = dropped_line(self._dropped)
            self._dropped = 0
            self._lines.append(marker)
            self._bytes += len(marker)
        self._lines.append(line)
        self._bytes += len(line)
        self._changed.set()
