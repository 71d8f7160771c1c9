"""Notices: frames that go ahead of events (ready, applied, result, log), bounded like everything else."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from garrison.ipc.frames import MAX_UP_BYTES, encode
from garrison.ipc.messages import Applied, Log, Ready, Result, kind_of

LOG_BYTES = 64 * 1024
"""Most bytes of log lines that wait for the pipe."""
OTHER_BYTES = 512 * 1024
"""Most bytes of everything else; enough for the results of a full task queue."""


class Notices:
    """A queue of encoded frames between the module threads and the one writer.

    Args:
        wake: Wakes the writer; called without the lock.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._frames: deque[tuple[bool, bytes]] = deque()
        self._log_bytes = 0
        self._other_bytes = 0
        self.lost = 0
        """Notices other than log lines that found no room since the start."""

    def offer(self, message: Ready | Applied | Result | Log) -> bool:
        """Queue a message. False: there is no room; it is not sent.

        Raises:
            FrameTooLargeError: It does not fit a frame.
        """
        frame = encode(kind_of(message), message, limit=MAX_UP_BYTES)
        is_log = isinstance(message, Log)
        with self._lock:
            if is_log:
                if self._log_bytes + len(frame) > LOG_BYTES:
                    return False
                self._log_bytes += len(frame)
            else:
                if self._other_bytes + len(frame) > OTHER_BYTES:
                    self.lost += 1
                    return False
                self._other_bytes += len(frame)
            self._frames.append((is_log, frame))
        self._wake()
        return True

    def take(self) -> bytes | None:
        """Remove and return the oldest frame, or None."""
        with self._lock:
            if not self._frames:
                return None
            is_log, frame = self._frames.popleft()
            if is_log:
                self._log_bytes -= len(frame)
            else:
                self._other_bytes -= len(frame)
            return frame

    @property
    def empty(self) -> bool:
        """True when nothing waits."""
        return not self._frames
