"""The spool's tables and what is asked of them, one table for each priority."""
# ruff: noqa: S608  the only thing that is put into a statement is the name of one of our own tables

from __future__ import annotations

from typing import Final

from garrison.ipc.messages import PRIORITIES

FORMAT: Final = 1
"""Goes into ``user_version``: another format is another agent's spool."""

SCHEMA: Final = {
    name: f"CREATE TABLE {name} (number INTEGER PRIMARY KEY, worker TEXT, about TEXT, epoch INTEGER, first INTEGER, "
    "count INTEGER, raw INTEGER, checksum INTEGER, data BLOB)"
    for name in PRIORITIES
}
INSERT: Final = {name: f"INSERT OR IGNORE INTO {name} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)" for name in PRIORITIES}
FETCH: Final = {name: f"SELECT * FROM {name} WHERE number > ? ORDER BY number LIMIT ?" for name in PRIORITIES}
DELETE_THROUGH: Final = {name: f"DELETE FROM {name} WHERE number <= ?" for name in PRIORITIES}
DELETE: Final = {name: f"DELETE FROM {name} WHERE number = ?" for name in PRIORITIES}
# These do not touch the pages that hold the data.
OLDEST: Final = {
    name: f"SELECT number, worker, epoch, first, count FROM {name} WHERE number > ? ORDER BY number LIMIT ?"
    for name in PRIORITIES
}
HELD: Final = {
    name: f"SELECT worker, epoch, count(*), sum(count), min(first), max(first + count - 1) FROM {name} "
    "GROUP BY worker, epoch"
    for name in PRIORITIES
}
ROWS_AFTER: Final = {name: f"SELECT count(*) FROM {name} WHERE number > ?" for name in PRIORITIES}
LAST: Final = {name: f"SELECT coalesce(max(number), 0) FROM {name}" for name in PRIORITIES}
