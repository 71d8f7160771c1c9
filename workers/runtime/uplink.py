"""The uplink: the one writer of the pipe to the master. Whoever writes holds its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from garrison.ipc.channel import ChannelClosedError, FrameSender
from garrison.ipc.frames import MAX_UP_BYTES, encode
from garrison.ipc.messages import Beat
from garrison.workers.runtime.notices import Notices
from garrison.workers.runtime.outbox import Outbox

FRAMES_A_TURN: Final = 16
"""Frames written before the main thread looks at what the master says: 1 MiB at most."""


class Uplink:
    """Writes frames as far as the pipe takes them: notices first, then the beat, then events.

    Args:
        fd: Write end of the pipe, non-blocking.
        notices: What goes first.
        outbox: Events.
        beat: Makes the beat at the moment when it is written, so that it is never an old one.
    """

    def __init__(self, fd: int, notices: Notices, outbox: Outbox, beat: Callable[[], Beat]) -> None:
        self._sender = FrameSender(fd)
        self._turn = threading.Lock()
        self._notices = notices
        self._outbox = outbox
        self._beat = beat
        self.beat_due = False
        """Set when a beat should go; cleared when it has begun to."""
        outbox.relieve = self.relieve

    @property
    def blocked(self) -> bool:
        """True while a begun frame waits for the pipe to have room."""
        return self._sender.busy

    @property
    def empty(self) -> bool:
        """True when nothing is left to write."""
        return not (self._sender.busy or self.beat_due) and self._notices.empty and self._outbox.empty

    def pump(self, *, force: bool = False) -> bool:
        """Write what should leave now. True: stopped after `FRAMES_A_TURN`, call again soon.

        Args:
            force: Send events without waiting for more to come.

        Raises:
            ChannelClosedError: The master is gone.
        """
        with self._turn:
            if not self._sender.flush():
                return False
            for _ in range(FRAMES_A_TURN):
                frame = self._next_frame(force)
                if frame is None or not self._sender.send(frame):
                    return False
            return True

    def relieve(self) -> bool:
        """Write a batch of events from the thread that has filled it. False: the main thread has to see to the pipe.

        Never waits: neither for the pipe nor for the main thread's turn.
        """
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if self.beat_due or not self._notices.empty or not self._sender.flush():
                return False
            batch = self._outbox.take(time.monotonic())
            written = batch is None or self._sender.send(encode("events", batch, limit=MAX_UP_BYTES))
        except ChannelClosedError:
            written = False  # the main thread sees for itself that the reader is gone
        finally:
            self._turn.release()
        if not written:
            # Nobody else may come by: the frame's rest is the main thread's to finish.
            self._outbox.wake()
        return True

    def _next_frame(self, force: bool) -> bytes | None:
        frame = self._notices.take()
        if frame is not None:
            return frame
        if self.beat_due:
            self.beat_due = False
            return encode("beat", self._beat(), limit=MAX_UP_BYTES)
        batch = self._outbox.take(time.monotonic(), force=force)
        return None if batch is None else encode("events", batch, limit=MAX_UP_BYTES)
