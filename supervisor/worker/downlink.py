"""The down pipe of a worker: what the master has to say, without ever waiting for the worker to listen."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from garrison.ipc import frames
from garrison.ipc.channel import ChannelClosedError, FrameSender
from garrison.ipc.messages import Ack, Config, Control, Down, Priority, Stop, Task, kind_of

MAX_TASKS = 16
"""Tasks that may wait for a worker; one more is refused."""


class Downlink:
    """Queues messages by importance and writes them as the pipe takes them.

    One pending config (the latest wins), a bounded number of tasks; ``stop`` and ``control`` go next, of which a reset
    and the latest request for less or normal work may wait. A worker that has closed its end, or never reads, costs
    the master what is pending and nothing else.

    Args:
        fd: Write end of the pipe, non-blocking; closed by `close`.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sender = FrameSender(fd)
        self._stop: Stop | None = None
        self._reset: Control | None = None
        self._load: Control | None = None
        self._config: bytes | None = None
        self._tasks: deque[bytes] = deque()
        self._acks: dict[Priority, int] = {}
        self._watching = False
        self.closed = False

    def configure(self, config: Config) -> None:
        """Send a configuration; one that is still waiting is replaced.

        Raises:
            FrameTooLargeError: It does not fit a frame.
        """
        self._config = _frame(config)
        self._pump()

    def control(self, control: Control) -> None:
        """Ask for less work or for normal work, where the latest wins; or for a reset, which replaces neither."""
        if control.action == "reset":
            self._reset = control
        else:
            self._load = control
        self._pump()

    def task(self, task: Task) -> bool:
        """Send a task. False: too many are waiting.

        Raises:
            FrameTooLargeError: It does not fit a frame.
        """
        if len(self._tasks) >= MAX_TASKS:
            return False
        self._tasks.append(_frame(task))
        self._pump()
        return True

    def ack(self, priority: Priority, through: int) -> None:
        """Tell what the master has taken responsibility for; later numbers cover earlier ones."""
        self._acks[priority] = through
        self._pump()

    def stop(self, reason: str) -> None:
        """Ask the worker to flush and exit."""
        self._stop = Stop(reason)
        self._pump()

    def close(self) -> None:
        """Close the pipe. Idempotent."""
        if not self.closed:
            self._unwatch()
            self.closed = True
            os.close(self._fd)

    def _pump(self) -> None:
        if self.closed:
            return
        try:
            done = self._sender.flush()
            while done and (frame := self._next()) is not None:
                done = self._sender.send(frame)
        except ChannelClosedError:
            # Its right: a program may not care for configuration. Its exit is noticed elsewhere.
            self.close()
            return
        if done:
            self._unwatch()
        elif not self._watching:
            asyncio.get_running_loop().add_writer(self._fd, self._pump)
            self._watching = True

    def _next(self) -> bytes | None:
        frame: bytes | None = None
        if self._stop is not None:
            frame, self._stop = _frame(self._stop), None
        elif self._reset is not None:
            frame, self._reset = _frame(self._reset), None
        elif self._load is not None:
            frame, self._load = _frame(self._load), None
        elif self._config is not None:
            frame, self._config = self._config, None
        elif self._tasks:
            frame = self._tasks.popleft()
        elif self._acks:
            frame = _frame(Ack(*self._acks.popitem()))
        return frame

    def _unwatch(self) -> None:
        if self._watching:
            asyncio.get_running_loop().remove_writer(self._fd)
            self._watching = False


def _frame(message: Down) -> bytes:
    return frames.encode(kind_of(message), message, limit=frames.MAX_DOWN_BYTES)
