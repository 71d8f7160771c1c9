"""The connection to the spool's file: how SQLite is set up, and what its errors mean here."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator

from garrison.supervisor.spool import room
from garrison.supervisor.spool import statements as sql
from garrison.supervisor.spool.aside import remove_side_files
from garrison.supervisor.spool.errors import Kind, SpoolError

APPLICATION_ID = 0x47415252
CACHE_KIB = 256
"""SQLite's page cache; a transaction that changes more spills into the log."""
BUSY_SECONDS = 0.2

CORRUPT = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
CORRUPT_READING = CORRUPT | {sqlite3.SQLITE_IOERR}
"""What cannot be read is as good as corrupt: waiting for it would hold up all that comes after it."""


def connect(path: str, shares: room.Room, *, sync: bool) -> sqlite3.Connection:
    """Open the file, made where it is missing, and check that it is a spool of this format.

    The lock is exclusive: nobody else can hold up a checkpoint, and there is no shared-memory file. The connection may
    be handed from one thread to another, and is used by one at a time.

    Raises:
        SpoolError: It cannot be opened.
    """
    _create(path)
    with explained(path, CORRUPT_READING):
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _set_up(db, path, shares, sync)
        except BaseException:
            db.close()
            raise
    return db


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: str, corrupt: frozenset[int] = CORRUPT) -> Iterator[None]:
    """Turn what SQLite raises into a `SpoolError`; `corrupt` are the codes that mean it."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error, corrupt) from error
    except (OverflowError, ValueError, TypeError) as error:
        raise SpoolError("corrupt", f"{path} holds values that the agent has not written: {error}") from error


def one(db: sqlite3.Connection, query: str, *arguments: int) -> int:
    """Return the one number that a query answers."""
    (value,) = db.execute(query, arguments).fetchone()
    return int(value)


def _create(path: str) -> None:
    """Make the file for our eyes only, and refuse what is no file of ours."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            remove_side_files(path)
    except OSError as error:
        kind: Kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "unusable"
        raise SpoolError(
            kind, f"the spool {path} cannot be opened: {error.strerror}; set [spool] path to where the agent may write"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise SpoolError("unusable", f"the spool {path} is no regular file; remove it")


def _set_up(db: sqlite3.Connection, path: str, shares: room.Room, sync: bool) -> None:
    for pragma in (
        "locking_mode = EXCLUSIVE",
        f"page_size = {room.PAGE_BYTES}",
        "auto_vacuum = INCREMENTAL",
        "journal_mode = WAL",
        f"synchronous = {'FULL' if sync else 'NORMAL'}",
        f"cache_size = -{CACHE_KIB}",
        "temp_store = MEMORY",
        "secure_delete = OFF",
        "mmap_size = 0",
        "trusted_schema = OFF",
        "cell_size_check = ON",
        f"wal_autocheckpoint = {shares.checkpoint_pages}",
        f"journal_size_limit = {shares.log_bytes}",
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()
    found = dict(db.execute("SELECT name, sql FROM sqlite_master").fetchall())
    if not found:
        with transaction(db):
            for statement in sql.SCHEMA.values():
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {sql.FORMAT}")
    elif found != sql.SCHEMA or one(db, "PRAGMA user_version") != sql.FORMAT:
        raise SpoolError("corrupt", f"{path} is no spool of this version of the agent")
    if one(db, "PRAGMA page_size") != room.PAGE_BYTES:
        raise SpoolError("corrupt", f"{path} is no spool of this version of the agent: it has another page size")


def _explain(path: str, error: sqlite3.Error, corrupt: frozenset[int]) -> SpoolError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the low byte is the primary code
    kind: Kind = "unusable"
    advice = "look at the file system and at the file's rights"
    if code in corrupt:
        kind, advice = "corrupt", "it is set aside and begun anew"
    elif code == sqlite3.SQLITE_FULL:
        kind, advice = "full", "free space there or set [spool] path to another disk"
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        kind, advice = "locked", "another process has it open; end that"
    return SpoolError(kind, f"the spool {path} cannot be used: {error}; {advice}")
