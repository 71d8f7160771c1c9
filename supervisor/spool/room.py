"""How the spool's bound is shared out between the database and its log, and what a row takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
PAGE_BYTES = 4096
MIN_BYTES = 1024 * KIB
"""Smallest spool that is of any use: ten of the largest batches, and the log."""
MIN_LOG_BYTES = 256 * KIB
MAX_LOG_BYTES = 4096 * KIB
ROW_BYTES = 96
"""What a row takes beside its data and its names: header, numbers, its place in the page."""


@dataclass(frozen=True, slots=True)
class Room:
    """The shares of one spool's bound.

    Attributes:
        log_bytes: Bound of the write-ahead log.
        transaction_bytes: Most bytes of rows in one transaction; one row alone may have more.
        checkpoint_pages: Length of the log at which it is written back into the database.
        pages: Bound of the database.
    """

    log_bytes: int
    transaction_bytes: int
    checkpoint_pages: int
    pages: int


def share(max_bytes: int) -> Room:
    """Share out a bound of at least `MIN_BYTES`.

    The log holds what was written since the last checkpoint plus one transaction with the pages of the tree that it
    touches: half of it for each.
    """
    log = min(max(max_bytes // 8, MIN_LOG_BYTES), MAX_LOG_BYTES)
    return Room(
        log_bytes=log,
        transaction_bytes=log // 4,
        checkpoint_pages=log // 2 // PAGE_BYTES,
        pages=(max_bytes - log) // PAGE_BYTES,
    )


def pages_for(size: int) -> int:
    """Return the pages that rows with so many bytes take at most, when they are appended.

    A leaf holds whole small rows, and a part of a large one whose rest stands in pages of its own: at worst half of a
    page is left unused.
    """
    return -(-size * 2 // PAGE_BYTES) if size < PAGE_BYTES else -(-size // (PAGE_BYTES - 64)) + 1
