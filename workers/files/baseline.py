"""The baseline: what every tracked file was like when it was last judged. SQLite, with a bounded cache.

On disk it survives a kill (write-ahead log) and loses at most the last two seconds, which are then judged
again. Where the disk is full, read-only or missing the baseline goes on in memory, and returns to the disk
when that works again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any, Final

from garrison.workers.files.entry import Entry

FILE_NAME: Final = "baseline.db"
VERSION: Final = 1
COMMIT_SECONDS: Final = 2.0
COMMIT_OPERATIONS: Final = 500
"""Most changes that wait for a commit; they are kept in memory until then, for a disk that turns out to be full."""
CACHE_KIB: Final = 2048
PAGE: Final = 256
"""Rows that are read at a time."""

_CORRUPT: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MAX: Final = 2**63 - 1

_SCHEMA: Final = (
    """CREATE TABLE dirs (
        id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, scan INTEGER NOT NULL, watched INTEGER NOT NULL)""",
    """CREATE TABLE entries (
        dir INTEGER NOT NULL, name BLOB NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL, uid INTEGER NOT NULL,
        gid INTEGER NOT NULL, mode INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
        inode INTEGER NOT NULL, sha256 BLOB, link BLOB, flags INTEGER NOT NULL,
        PRIMARY KEY (dir, name)) WITHOUT ROWID""",
    "CREATE TABLE learnt (key TEXT PRIMARY KEY) WITHOUT ROWID",
    f"PRAGMA user_version = {VERSION}",
)
_COLUMNS: Final = "kind, size, uid, gid, mode, mtime, ctime, inode, sha256, link, flags"
_GET: Final = f"SELECT {_COLUMNS} FROM entries WHERE dir = ? AND name = ?"  # noqa: S608 - constants only
_AFTER: Final = f"SELECT name, {_COLUMNS} FROM entries WHERE dir = ? AND name > ? ORDER BY name LIMIT {PAGE}"  # noqa: S608
_PUT: Final = f"INSERT OR REPLACE INTO entries (dir, name, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_UNVISITED: Final = f"SELECT path FROM dirs WHERE scan != ? LIMIT {PAGE}"  # noqa: S608
_UNWATCHED: Final = f"SELECT path FROM dirs WHERE watched = 0 AND path > ? ORDER BY path LIMIT {PAGE}"  # noqa: S608


class BaselineLostError(Exception):
    """The file is damaged and was set aside; the baseline is empty now. The text says what happened."""


class Baseline:
    """Rows by directory and name.

    Args:
        folder: Where the file is kept; empty: in memory.

    Attributes:
        trouble: Why nothing is kept on disk, or an empty text.
        set_aside: Why an earlier file could not be used and where it is now, or an empty text.
        count: Entries.
        persistent: Whether the disk is in use.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = os.path.join(folder, FILE_NAME)
        self._db: sqlite3.Connection
        self._undone: list[tuple[str, tuple[Any, ...]]] = []
        self._committed_at = 0.0
        self._last_dir: tuple[bytes, int | None] = (b"", None)
        self.trouble = ""
        self.set_aside = ""
        self.persistent = False
        self.count = 0
        self._start()

    # Entries

    def get(self, folder: str, name: str) -> Entry | None:
        """Return an entry."""
        number = self._dir(os.fsencode(folder))
        if number is None:
            return None
        row = self._one(_GET, (number, os.fsencode(name)))
        return None if row is None else _entry(row)

    def put(self, folder: str, name: str, entry: Entry) -> None:
        """Add or replace an entry."""
        path = os.fsencode(folder)
        number = self._dir(path)
        if number is None:
            self._run("INSERT INTO dirs (path, scan, watched) VALUES (?, 0, 0)", (path,))
            self._last_dir = (b"", None)
            number = self._dir(path)
        raw = os.fsencode(name)
        known = self._one("SELECT 1 FROM entries WHERE dir = ? AND name = ?", (number, raw))
        self.count += known is None
        self._run(_PUT, (number, raw, *_row(entry)))

    def delete(self, folder: str, name: str) -> None:
        """Remove an entry; none there is fine."""
        number = self._dir(os.fsencode(folder))
        raw = os.fsencode(name)
        if number is None or self._one("SELECT 1 FROM entries WHERE dir = ? AND name = ?", (number, raw)) is None:
            return
        self.count -= 1
        self._run("DELETE FROM entries WHERE dir = ? AND name = ?", (number, raw))

    def after(self, folder: str, name: bytes) -> list[tuple[bytes, Entry]]:
        """Return up to `PAGE` entries of a directory in the order of their names' bytes, from behind a name."""
        number = self._dir(os.fsencode(folder))
        if number is None:
            return []
        rows = self._all(_AFTER, (number, name))
        return [(row[0], _entry(row[1:])) for row in rows]

    # Directories

    def visit(self, folder: str, scan: int, *, watched: bool) -> None:
        """Note that a directory was looked at."""
        path = os.fsencode(folder)
        before = self._one("SELECT scan, watched FROM dirs WHERE path = ?", (path,))
        if before == (scan, int(watched)):
            return
        self._run(
            "INSERT INTO dirs (path, scan, watched) VALUES (?, ?, ?) "
            "ON CONFLICT (path) DO UPDATE SET scan = excluded.scan, watched = excluded.watched",
            (path, scan, int(watched)),
        )
        self._last_dir = (b"", None)

    def unvisited(self, scan: int) -> list[str]:
        """Return some directories that a scan has not come to."""
        rows = self._all(_UNVISITED, (scan,))
        return [os.fsdecode(row[0]) for row in rows]

    def unwatched(self, behind: str) -> list[str]:
        """Return up to `PAGE` directories without a watch, in order, from behind a path."""
        rows = self._all(_UNWATCHED, (os.fsencode(behind),))
        return [os.fsdecode(row[0]) for row in rows]

    def tree(self, folder: str) -> str | None:
        """Return one directory at or below a path, the deepest names first, or None."""
        low, high = _range(os.fsencode(folder))
        row = self._one(
            "SELECT path FROM dirs WHERE path >= ? AND path < ? ORDER BY path DESC LIMIT 1", (low, high)
        ) or self._one("SELECT path FROM dirs WHERE path = ?", (os.fsencode(folder),))
        return None if row is None else os.fsdecode(row[0])

    def drop(self, folder: str) -> None:
        """Forget a directory and its entries."""
        number = self._dir(os.fsencode(folder))
        if number is None:
            return
        lost = self._one("SELECT count(*) FROM entries WHERE dir = ?", (number,))
        self.count -= 0 if lost is None else lost[0]
        self._run("DELETE FROM entries WHERE dir = ?", (number,))
        self._run("DELETE FROM dirs WHERE id = ?", (number,))
        self._last_dir = (b"", None)

    def move(self, source: str, target: str) -> None:
        """Take a renamed directory along with all below it; nothing may be known below the target."""
        old, new = os.fsencode(source), os.fsencode(target)
        low, high = _range(old)
        self._run(
            "UPDATE OR REPLACE dirs SET path = CAST(? || substr(path, ?) AS BLOB) WHERE path >= ? AND path < ?",
            (new, len(old) + 1, low, high),
        )
        self._run("UPDATE OR REPLACE dirs SET path = ? WHERE path = ?", (new, old))
        self._last_dir = (b"", None)

    # What has been learnt

    def learnt(self) -> set[str]:
        """Return the keys of targets whose files were all looked at once."""
        return {row[0] for row in self._all("SELECT key FROM learnt", ())}

    def learn(self, keys: frozenset[str]) -> None:
        """Replace the learnt keys, and put that on disk."""
        self._run("DELETE FROM learnt", ())
        for key in sorted(keys):
            self._run("INSERT INTO learnt (key) VALUES (?)", (key,))
        self.commit()

    def last_scan(self) -> int:
        """Return the highest scan number in use."""
        row = self._one("SELECT max(scan) FROM dirs", ())
        return 0 if row is None or row[0] is None else int(row[0])

    # Life

    def commit_due(self, now: float) -> None:
        """Commit where it is time; `now` is monotonic seconds."""
        if self._undone and (len(self._undone) >= COMMIT_OPERATIONS or now - self._committed_at >= COMMIT_SECONDS):
            self._committed_at = now
            self.commit()

    def commit(self) -> None:
        """Put what has changed on disk."""
        if self._db.in_transaction:
            self._guarded("COMMIT", ())
        self._undone.clear()

    def close(self) -> None:
        """Commit and give the file back."""
        try:
            self.commit()
        except BaselineLostError:
            return  # told of at the next start, which finds it set aside and empty
        finally:
            self._db.close()

    def return_to_disk(self) -> bool:
        """Try to keep the baseline on disk again. True: it is there now."""
        if self.persistent or not self._folder:
            return False
        self.commit()
        fresh = f"{self._path}.new"
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            _remove(fresh)
            copy = sqlite3.connect(fresh, isolation_level=None)
            try:
                copy.execute("PRAGMA journal_mode = OFF")
                self._db.backup(copy)
            finally:
                copy.close()
            fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            # The old log would be replayed into the new file.
            _remove(f"{self._path}-wal")
            os.rename(fresh, self._path)
            disk = self._connect(self._path)
        except (OSError, sqlite3.Error) as error:
            self.trouble = f"{self._path}: {error}"
            with contextlib.suppress(OSError):
                _remove(fresh)
            return False
        self._db.close()
        self._db = disk
        self.persistent, self.trouble = True, ""
        self._last_dir = (b"", None)
        return True

    # Inside

    def _start(self) -> None:
        if not self._folder:
            self.trouble = "no state directory is configured"
        else:
            try:
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                self._db = self._open_disk()
                self.persistent = True
            except (OSError, sqlite3.Error) as error:
                self.trouble = f"{self._path}: {error}"
        if not self.persistent:
            self._db = self._memory()
        self._recount()

    def _open_disk(self) -> sqlite3.Connection:
        try:
            return self._connect(self._path)
        except sqlite3.DatabaseError as error:
            if not _damaged(error):
                raise
            self._put_aside(str(error))
        return self._connect(self._path)

    def _connect(self, path: str) -> sqlite3.Connection:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        db = sqlite3.connect(path, isolation_level=None, timeout=1.0, cached_statements=64)
        try:
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            db.execute("PRAGMA temp_store = MEMORY")
            # One process has it: without a shared index file beside it, and another one is told so.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA journal_size_limit = 4194304")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                _create(db)
            elif version != VERSION:
                raise _Unusable(f"it has format {version}, this is {VERSION}")
            # Also asks for the lock and for room to write.
            db.execute("BEGIN IMMEDIATE")
            db.execute("COMMIT")
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise _Unusable(str(verdict))
        except BaseException:
            db.close()
            raise
        return db

    def _memory(self) -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", isolation_level=None)
        _create(db)
        return db

    def _put_aside(self, why: str) -> None:
        aside = f"{self._path}.corrupt"
        self.set_aside = f"{self._path} is damaged ({why}); it is now {aside}"
        os.replace(self._path, aside)
        for suffix in ("-wal", "-shm", "-journal"):
            _remove(self._path + suffix)

    def _recount(self) -> None:
        row = self._one("SELECT count(*) FROM entries", ())
        self.count = 0 if row is None else row[0]

    def _dir(self, path: bytes) -> int | None:
        if self._last_dir[1] is None or self._last_dir[0] != path:
            row = self._one("SELECT id FROM dirs WHERE path = ?", (path,))
            self._last_dir = (path, None if row is None else row[0])
        return self._last_dir[1]

    def _one(self, statement: str, values: tuple[Any, ...]) -> Any:
        return self._guarded(statement, values).fetchone()

    def _all(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        return self._guarded(statement, values).fetchall()

    def _run(self, statement: str, values: tuple[Any, ...]) -> None:
        if not self._db.in_transaction:
            self._guarded("BEGIN", ())
        self._undone.append((statement, values))
        self._guarded(statement, values, replayed=True)

    def _guarded(self, statement: str, values: tuple[Any, ...], *, replayed: bool = False) -> sqlite3.Cursor:
        """Run a statement; on a disk that refuses, go on in memory.

        Raises:
            BaselineLostError: The file is damaged.
        """
        try:
            return self._db.execute(statement, values)
        except sqlite3.DatabaseError as error:
            if not self.persistent:
                raise
            if _damaged(error):
                self._lost(error)
            self._leave_disk(error)
        # What was to be run is part of what was replayed, or of a transaction that is over.
        if replayed or statement in ("BEGIN", "COMMIT"):
            return self._db.execute("SELECT 1")
        return self._db.execute(statement, values)

    def _leave_disk(self, error: sqlite3.DatabaseError) -> None:
        self.trouble = f"{self._path}: {error}"
        self.persistent = False
        disk = self._db
        memory = sqlite3.connect(":memory:", isolation_level=None)
        try:
            if disk.in_transaction:
                disk.execute("ROLLBACK")
            disk.backup(memory)
        except sqlite3.DatabaseError as second:
            memory.close()
            if _damaged(second):
                self._lost(second)
            memory = self._memory()
            self.set_aside = f"{self._path} can be neither written nor read ({second})"
        disk.close()
        self._db = memory
        self._last_dir = (b"", None)
        for statement, values in self._undone:
            memory.execute(statement, values)
        self._undone.clear()

    def _lost(self, error: sqlite3.DatabaseError) -> None:
        self._db.close()
        self._undone.clear()
        self._last_dir = (b"", None)
        self.persistent = False
        try:
            self._put_aside(str(error))
            self._db = self._connect(self._path)
            self.persistent = True
        except (OSError, sqlite3.Error) as second:
            self.trouble = f"{self._path}: {second}"
            self._db = self._memory()
        self._recount()
        raise BaselineLostError(self.set_aside or self.trouble) from error


class _Unusable(sqlite3.DatabaseError):
    """The file is whole for SQLite, and yet nothing for us."""


def _damaged(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, _Unusable) or (code is not None and code & 0xFF in _CORRUPT)


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute("COMMIT")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _range(path: bytes) -> tuple[bytes, bytes]:
    """Return bounds of all paths below a directory."""
    prefix = b"/" if path == b"/" else path + b"/"
    return prefix, prefix[:-1] + b"0"  # "0" follows "/"


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(*row)


def _row(entry: Entry) -> Iterator[Any]:
    for value in entry:
        # Inodes have 64 bits without a sign, and times can be anything that somebody has set.
        yield max(-_MAX, min(_MAX, value)) if isinstance(value, int) else value
