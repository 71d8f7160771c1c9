"""Frames: a 4-byte big-endian length and a msgpack array ``[kind, payload]``.

Both directions of a worker's pipes carry them. The length counts the body only. A body longer than its
direction's limit, of another shape, or that is not msgpack is a `ProtocolError`: the reader of the pipe
ends the relation, because after one bad frame nothing behind it can be trusted to be a frame boundary.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

MAX_DOWN_BYTES = 2 * 1024 * 1024
"""Largest body from the master to a worker, bytes."""

MAX_UP_BYTES = 64 * 1024
"""Largest body from a worker to the master, bytes."""

HEADER = struct.Struct(">I")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


class ProtocolError(Exception):
    """The peer broke the frame or message contract; the pipe cannot be used any more.

    The text says what was wrong. On the master's side the worker is tripped with the cause ``protocol``;
    on the worker's side the process ends, because a master that cannot be understood cannot be obeyed.
    """


class FrameTooLargeError(ValueError):
    """What should be sent does not fit a frame. Nothing was sent; the caller drops or splits it."""


def encode(kind: str, payload: object, *, limit: int) -> bytes:
    """Return one whole frame, header included.

    Args:
        kind: The message kind, one of those in `garrison.ipc.messages`.
        payload: A message struct or anything msgpack can carry as a map.
        limit: The direction's body limit in bytes, `MAX_DOWN_BYTES` or `MAX_UP_BYTES`.

    Raises:
        FrameTooLargeError: The body is longer than `limit`.
    """
    body = _encoder.encode((kind, payload))
    if len(body) > limit:
        raise FrameTooLargeError(f"a {kind!r} frame of {len(body)} bytes is over the limit of {limit}")
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames without ever holding more than one frame and one read.

    Args:
        limit: Body limit in bytes. A header that announces more is refused before any of it is read, so a
            peer that claims 4 GiB costs four bytes.
    """

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self._limit = limit

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has begun but not ended."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[str, msgspec.Raw]]:
        """Take what was read and yield each frame that is now complete, as kind and undecoded payload.

        Raises:
            ProtocolError: An announced length is zero or over the limit, or a body is no ``[kind, payload]``.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER.size:
                (length,) = HEADER.unpack_from(buffer, start)
                if not 0 < length <= self._limit:
                    raise ProtocolError(f"a frame of {length} bytes was announced; 1 to {self._limit} are allowed")
                end = start + HEADER.size + length
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[start + HEADER.size : end])
                start = end
                yield _split(body)
        finally:
            del buffer[:start]


def _split(body: bytes) -> tuple[str, msgspec.Raw]:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProtocolError(f"a frame is not [kind, payload]: {error}") from error
