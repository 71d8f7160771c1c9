"""Hashing a file without a trace in the host's page cache: only pages that this read brought in are dropped.

Linux 6.14 does that by itself (``RWF_DONTCACHE``). Elsewhere mincore(2) tells before a read which pages are
resident, and the others are dropped after it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from typing import Any, Final

CHUNK: Final = 128 * 1024
"""Bytes read between two pauses."""

RWF_DONTCACHE: Final = 0x80
_PAGE: Final = mmap.PAGESIZE
_REFUSED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_PROT_READ: Final = 1
_MAP_SHARED: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap: Final = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mincore: Final = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def resident(fd: int, offset: int, length: int) -> bytes | None:
    """Return a byte for each page of a range of a file, odd where the page is in the cache.

    Args:
        fd: The file.
        offset: A multiple of the page size.
        length: Bytes, above 0; not beyond the last page of the file.

    Returns:
        None where the kernel does not tell; then nothing may be dropped.
    """
    address = _mmap(None, length, _PROT_READ, _MAP_SHARED, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        return None
    try:
        pages = ctypes.create_string_buffer((length + _PAGE - 1) // _PAGE)
        if _mincore(address, length, pages) != 0:
            return None
        return pages.raw
    finally:
        _munmap(address, length)


class Hasher:
    """Hashes files.

    Args:
        dontcache: Try RWF_DONTCACHE first; False only to test what older kernels get.
    """

    def __init__(self, *, dontcache: bool = True) -> None:
        # Here, because OpenSSL costs megabytes in a process that does not hash.
        import hashlib

        self._new = hashlib.sha256
        self._buffer = bytearray(CHUNK)
        self._view = memoryview(self._buffer)
        self._dontcache = dontcache

    def hash(self, fd: int, size: int) -> Iterator[int | bytes]:
        """Yield the bytes of each read, and at last the digest of the file's first `size` bytes.

        Raises:
            OSError: The file cannot be read.
        """
        digest: Any = self._new(usedforsecurity=False)
        dontcache = self._dontcache
        # Reading ahead would bring in pages behind the back of mincore.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        offset = 0
        while offset < size:
            wanted = self._view[: min(CHUNK, size - offset)]
            count = -1
            if dontcache:
                try:
                    count = os.preadv(fd, [wanted], offset, RWF_DONTCACHE)
                except OSError as error:
                    if error.errno not in _REFUSED:
                        raise
                    dontcache = False  # of this file system; another one may have it
            if count < 0:
                count = self._read_and_drop(fd, wanted, offset)
            if count == 0:
                break
            digest.update(self._view[:count])
            offset += count
            yield count
        yield digest.digest()

    def _read_and_drop(self, fd: int, into: memoryview, offset: int) -> int:
        start = offset - offset % _PAGE
        pages = resident(fd, start, offset - start + len(into))
        count = os.preadv(fd, [into], offset)
        if pages is not None:
            for first, last in _runs(pages):
                os.posix_fadvise(fd, start + first * _PAGE, (last - first) * _PAGE, os.POSIX_FADV_DONTNEED)
        return count


def _runs(pages: bytes) -> Iterator[tuple[int, int]]:
    """Yield the runs of pages that were not resident: first, and the one behind the last."""
    first: int | None = None
    for index, page in enumerate(pages):
        if not page & 1:
            first = index if first is None else first
        elif first is not None:
            yield first, index
            first = None
    if first is not None:
        yield first, len(pages)
