"""Acknowledgements: telling a worker's process up to which number others answer for its events."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from garrison.ipc.messages import PRIORITIES, Priority


class Acknowledger:
    """Follows the batches of one process until each is in the spool, delivered or dropped. Made in the master's loop.

    They come in order and may settle out of it, because a drop overtakes what waits; a number is told when everything
    before it is settled too.

    Args:
        send: Tells the worker, from the loop: priority, last number.
    """

    def __init__(self, send: Callable[[Priority, int], None]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: dict[Priority, deque[int]] = {priority: deque() for priority in PRIORITIES}
        self._settled: dict[Priority, set[int]] = {priority: set() for priority in PRIORITIES}
        self._news: dict[Priority, int] = {}

    def expect(self, priority: Priority, last: int) -> None:
        """Note a batch that came in, by its last number."""
        with self._lock:
            self._waiting[priority].append(last)

    def settle(self, priority: Priority, last: int) -> None:
        """Note that a batch that was expected is settled. From any thread."""
        with self._lock:
            waiting, settled = self._waiting[priority], self._settled[priority]
            settled.add(last)
            through = 0
            while waiting and waiting[0] in settled:
                through = waiting.popleft()
                settled.remove(through)
            if not through:
                return
            scheduled = bool(self._news)
            self._news[priority] = through
        if not scheduled:
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:
                return  # the loop has ended, and the worker before it

    def _tell(self) -> None:
        with self._lock:
            news, self._news = self._news, {}
        for priority, through in news.items():
            self._send(priority, through)
