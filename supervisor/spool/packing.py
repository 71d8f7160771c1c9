"""How the lines of a batch stand in the spool: compressed where that helps, with a checksum. Pure."""

from __future__ import annotations

import zlib

LEVEL = 1
"""The fastest: events repeat their names and their stamp; a ninth is left (`make bench ARGS=spooling`)."""
MIN_BYTES = 512
"""What is shorter is not worth the work."""
MAX_RAW_BYTES = 16 * 1024 * 1024
"""Longest data of one batch that is believed: a frame of the tiniest events has 4 MiB with their stamps."""


def pack(data: bytes) -> tuple[int, int, bytes]:
    """Return the length of the data, the checksum and the form to keep; a length of 0 means that it stands as it is."""
    if len(data) >= MIN_BYTES:
        packed = zlib.compress(data, LEVEL)
        if len(packed) < len(data):
            return len(data), zlib.crc32(packed), packed
    return 0, zlib.crc32(data), data


def unpack(raw: object, checksum: object, kept: object) -> bytes | None:
    """Return what `pack` was given; None where it is not that any more."""
    if not isinstance(kept, bytes) or not isinstance(raw, int) or zlib.crc32(kept) != checksum:
        return None
    if raw == 0:
        return kept
    if not 0 < raw <= MAX_RAW_BYTES:
        return None
    try:
        data = zlib.decompressobj().decompress(kept, raw + 1)
    except zlib.error:
        return None
    return data if len(data) == raw else None
