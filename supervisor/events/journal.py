"""The journal of a ledger: a small file that is written through at each change, and outlives a killed master.

It lies on a file system in memory (``run_dir``), so that a write is a copy in the kernel, which no slow disk can hold
up. What must outlive the host's own end goes to the state files instead. Two slots are written in turn, each with a
checksum: whatever interrupts a write, the record before it is there.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from typing import Final

import msgspec

from garrison.supervisor.events.ledger import Record

SLOT_BYTES: Final = 32 * 1024
"""Room for one record: the most windows, ranges and reasons that a ledger keeps need less than 24 KiB."""

_HEADER = struct.Struct(">QII")  # serial number, length, CRC-32
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class Journal:
    """Writes the records of one ledger. Its owner locks.

    Args:
        path: The file; made where there is none, its folder exists.

    Attributes:
        error: Why the last record was not written; empty where it was.
    """

    __slots__ = ("_fd", "_path", "_serial", "error")

    def __init__(self, path: str) -> None:
        self.error = ""
        self._path = path
        self._serial = 0
        self._fd = -1

    def write(self, record: Record) -> None:
        """Write a record. Never raises for what the system refuses: the error is kept, and nothing is tried again.

        The ledger counts on in memory; `reset` begins anew.
        """
        if self.error:
            return
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                self._serial = max((found[0] for found in _slots(self._fd)), default=0)
            payload = _encoder.encode(record)
            if len(payload) > SLOT_BYTES - _HEADER.size:
                raise OSError(f"a record of {len(payload)} bytes does not fit")
            serial = self._serial + 1
            data = _HEADER.pack(serial, len(payload), zlib.crc32(payload)) + payload
            if os.pwrite(self._fd, data, serial % 2 * SLOT_BYTES) != len(data):
                raise OSError("it was written only in part")
            self._serial = serial
        except OSError as error:
            self.error = f"{self._path} cannot be written: {error.strerror or error}"
            self.close()

    def reset(self) -> None:
        """Try again with the next record."""
        self.error = ""

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str) -> Record | None:
    """Return the newest whole record of a file; None where there is none.

    Raises:
        OSError: The file cannot be read, or is none of ours.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no regular file")
        for _serial, payload in sorted(_slots(fd), reverse=True):
            try:
                return _decoder.decode(payload)
            except (msgspec.MsgspecError, RecursionError, ValueError):
                continue
        return None
    finally:
        os.close(fd)


def _slots(fd: int) -> list[tuple[int, bytes]]:
    found = []
    for start in (0, SLOT_BYTES):
        data = os.pread(fd, SLOT_BYTES, start)
        if len(data) < _HEADER.size:
            continue
        serial, length, checksum = _HEADER.unpack_from(data)
        payload = data[_HEADER.size : _HEADER.size + length]
        if len(payload) == length and zlib.crc32(payload) == checksum:
            found.append((serial, payload))
    return found
