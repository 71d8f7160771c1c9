"""Channels: frames over one non-blocking file descriptor.

A write to a pipe takes what fits and answers EAGAIN; a frame once begun must be finished before another
one starts. `FrameSender` keeps the rest of a begun frame, and nothing more: queues belong to its caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from garrison.ipc.frames import FrameReader


class ChannelClosedError(Exception):
    """The other end of the pipe is gone. There is nobody left to tell; the caller winds up."""


class FrameSender:
    """Writes frames to a non-blocking descriptor, one at a time.

    The descriptor stays the caller's to close.
    """

    __slots__ = ("_fd", "_rest")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = memoryview(b"")

    @property
    def busy(self) -> bool:
        """True while the last frame has not left completely: `send` refuses, `flush` goes on with it."""
        return bool(self._rest)

    def send(self, frame: bytes) -> bool:
        """Begin a frame. True when it left completely.

        Raises:
            BlockingIOError: The frame before it is not finished; nothing was taken.
            ChannelClosedError: The peer has closed its end.
        """
        if self._rest:
            raise BlockingIOError("the frame before this one is not finished")
        self._rest = memoryview(frame)
        return self.flush()

    def flush(self) -> bool:
        """Go on with a begun frame. True when nothing of it is left.

        Raises:
            ChannelClosedError: The peer has closed its end.
        """
        while self._rest:
            try:
                written = os.write(self._fd, self._rest)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError) as error:
                self._rest = memoryview(b"")
                raise ChannelClosedError("the reader of the pipe is gone") from error
            self._rest = self._rest[written:]
        return True


class FrameReceiver:
    """Reads frames from a non-blocking descriptor, a bounded amount at a time.

    Args:
        fd: The descriptor; it stays the caller's to close.
        limit: Body limit in bytes of the direction that is read.
        read_bytes: Most bytes taken in one call, so that one busy peer cannot keep the caller.
    """

    __slots__ = ("_fd", "_read_bytes", "_reader", "bytes_received")

    def __init__(self, fd: int, limit: int, read_bytes: int = 256 * 1024) -> None:
        self._fd = fd
        self._reader = FrameReader(limit)
        self._read_bytes = read_bytes
        self.bytes_received = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has begun but not ended."""
        return self._reader.pending_bytes

    def receive(self) -> Iterator[tuple[str, msgspec.Raw]]:
        """Yield the frames that are complete now; none where there is nothing to read.

        Run the iterator to its end: the good frames ahead of a bad one come first, then the error.

        Raises:
            ChannelClosedError: End of file. Frames that were complete came with earlier calls.
            ProtocolError: The peer sent something that is no frame.
        """
        try:
            data = os.read(self._fd, self._read_bytes)
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            raise ChannelClosedError("the pipe was reset") from error
        if not data:
            raise ChannelClosedError("end of file")
        self.bytes_received += len(data)
        yield from self._reader.feed(data)
