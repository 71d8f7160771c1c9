"""The directory store: the keys as files below a directory, watched with inotify.

The file of a key is the directory followed by the key. One thread reads; it sleeps until the kernel reports a
change. On each change the killswitch files are read and delivered first; everything else follows once per burst.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterable, Sequence

from garrison.ipc.pacing import backoff, spread
from garrison.supervisor.keys import (
    DEFAULT_PREFIX,
    BodyKey,
    check_prefix,
    format_key,
    killswitch_keys,
    scopes_of,
    shown,
    watch_prefixes,
)
from garrison.supervisor.stores.base import (
    KillObservation,
    Refusal,
    Snapshot,
    Store,
    StoreListener,
    StoreStatus,
)
from garrison.supervisor.stores.ledger import Ledger, Value
from garrison.supervisor.stores.reading import UnreadableError, read_file, read_value
from garrison.supervisor.stores.settling import SETTLE_SECONDS, Settling, unfinished
from garrison.supervisor.stores.tree import Found, Interest, interest_of, look
from garrison.supervisor.stores.values import MAX_BODY_BYTES, MAX_VALUE_BYTES
from garrison.supervisor.stores.watching import ExhaustedError, Waker, Watches

DEBOUNCE_SECONDS = 0.03
"""From the first change of a burst to the look at the keys."""

REREAD_SECONDS = 600.0
"""Between two looks that nothing asked for: the net below inotify (network file systems report nothing)."""

POLL_SECONDS = 2.0
"""Between two looks where inotify is not to be had."""

_LOOK_SHARE = 0.1
"""Most of its own time that the thread spends on looks while changes never end."""

_MAX_PAUSE_SECONDS = 5.0
_RETRY_BASE_SECONDS = 1.0
_RETRY_CAP_SECONDS = 15.0
_MAX_BODIES = 256
_MAX_LINKS = 64


class DirectoryStore(Store):
    """See the module.

    Args:
        path: The directory; made (mode 0700) at the start where it is not there, and never later: somebody who
            replaces it must not find another one in the way.
        prefix: What all keys start with.
        host: The hostname.
        groups: Its groups.
        kill_groups: Groups of which only the killswitch is looked at.
        seed: The last snapshot of the process before: revisions go on from there.
        watches: The watches to use; others only in tests.

    Raises:
        KeyGrammarError: Prefix, hostname or groups cannot stand in a key.
    """

    def __init__(
        self,
        path: str,
        prefix: str = DEFAULT_PREFIX,
        *,
        host: str,
        groups: Sequence[str] = (),
        kill_groups: Iterable[str] = (),
        seed: Snapshot | None = None,
        watches: Watches | None = None,
    ) -> None:
        self._root = os.path.abspath(path)
        self._prefix = check_prefix(prefix)
        self._host = host
        self._watches = watches or Watches()
        self._waker = Waker()
        self._ledger = Ledger(seed)
        self._settling = Settling(prefix)
        self._lock = threading.Lock()
        # Guarded by the lock: what other threads ask for, and the status they see.
        self._groups: tuple[str, ...] = ()
        self._kill_keys: tuple[str, ...] = ()
        self._wanted: dict[str, bool] = {}  # a body that is waited for: whether its absence was reported
        self._refreshes = 0
        self._asked = True
        self._stopping = False
        self._connected = False
        self._error = "not read yet"
        self._fresh_at = time.monotonic()
        self._connected_at = 0.0
        self._aim(groups, kill_groups)
        # The thread's own.
        self._listener: StoreListener | None = None
        self._thread: threading.Thread | None = None
        self._told_kills: KillObservation | None = None
        self._told_snapshot: Snapshot | None = None
        self._told_status: StoreStatus | None = None
        self._refreshed = 0
        self._look_at = 0.0
        self._pause_until = 0.0
        self._attempt = 0
        self._looks = 0
        self._replaced = False

    # -- what other threads call --------------------------------------------------------------------------

    def start(self, listener: StoreListener) -> None:
        """Begin to deliver. Call once.

        Raises:
            RuntimeError: It was started before.
        """
        if self._thread is not None:
            raise RuntimeError("the store was started before")
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="garrison-store", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the thread. False: it was not over within `timeout` seconds (a file system that hangs)."""
        with self._lock:
            self._stopping = True
        self._waker.wake()
        if self._thread is None:
            self._waker.close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def status(self) -> StoreStatus:
        """Return how the store is doing now."""
        with self._lock:
            stale = 0.0 if self._connected else max(0.0, time.monotonic() - self._fresh_at)
            return StoreStatus(
                backend="directory",
                connected=self._connected,
                endpoint=self._root,
                revision=self._ledger.revision,
                stale_seconds=stale,
                connected_seconds=max(0.0, time.monotonic() - self._connected_at) if self._connected else 0.0,
                error=self._error,
            )

    def request_refresh(self) -> None:
        """Read everything again and deliver it, changed or not."""
        with self._lock:
            self._refreshes += 1
            self._asked = True
        self._waker.wake()

    def set_groups(self, groups: Sequence[str], kill_groups: Iterable[str] = ()) -> None:
        """Look at other groups from now on; a snapshot that covers them follows.

        Raises:
            KeyGrammarError: A name cannot stand in a key; nothing changes.
        """
        with self._lock:
            self._aim(groups, kill_groups)
            self._asked = True
        self._waker.wake()

    def fetch_bodies(self, ids: Iterable[str]) -> None:
        """Ask for bodies by SHA-256 (at most 256); replaces what was asked for before."""
        wanted = sorted(set(ids))[:_MAX_BODIES]
        with self._lock:
            self._wanted = dict.fromkeys(wanted, False)
            self._asked = True
        self._waker.wake()

    def _aim(self, groups: Sequence[str], kill_groups: Iterable[str]) -> None:
        self._kill_keys = killswitch_keys(self._prefix, self._host, groups, kill_groups)
        self._groups = tuple(dict.fromkeys(groups))

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._make_root()
            while not self._stopping:
                try:
                    self._tell_status()
                    self._turn()
                except Exception as error:  # noqa: BLE001 - whatever it is, the killswitch must go on being read
                    self._fail(f"what the store holds could not be read or acted on: {shown(repr(error))}")
        finally:
            self._watches.close()
            self._waker.close()

    def _make_root(self) -> None:
        try:
            os.makedirs(self._root, mode=0o700, exist_ok=True)
        except OSError as error:
            self._fail(f"cannot make the directory {self._root}: {error.strerror}")

    def _turn(self) -> None:
        self._waker.sleep(self._watches, self._look_at - time.monotonic())
        seen = self._watches.read()
        with self._lock:
            asked, self._asked = self._asked, False
            if self._stopping:
                return
        if self._root in seen.gone:
            self._replaced = True
        due = time.monotonic() >= self._look_at
        if seen.relevant or asked or due:
            kills = self._read_kills()
            self._tell_engaged(kills)
            if not due:
                soon = max(time.monotonic() + (0.0 if asked else DEBOUNCE_SECONDS), self._pause_until)
                self._look_at = min(self._look_at, soon)
        if time.monotonic() >= self._look_at:
            self._look()

    # -- the killswitch -----------------------------------------------------------------------------------

    def _read_kills(self, *, strict: bool = False) -> dict[str, Value | None]:
        """Read the killswitch files. None: absent. A key of which nothing can be known is left out.

        Raises:
            OSError: Where `strict`, instead of leaving a key out.
        """
        values: dict[str, Value | None] = {}
        for key in self._kill_keys:
            try:
                values[key] = Value(read_value(self._root + key, MAX_VALUE_BYTES))
            except FileNotFoundError:
                values[key] = None
            except UnreadableError as error:
                values[key] = Value(b"", str(error))
            except OSError:
                # A directory above it is denied or broken: a failure and no absence. Here it must not keep the other
                # scopes from being read; the look that follows reports it.
                if strict:
                    raise
        return values

    def _tell_engaged(self, kills: dict[str, Value | None]) -> None:
        """Deliver at once what is there and readable; what is absent or looks half written waits for the look."""
        try:
            self._ledger.start(_identity(self._root))
        except OSError:
            return  # nothing below it can be read either; the look that follows reports it
        certain = {
            key: self._ledger.put(key, value)
            for key, value in kills.items()
            if value is not None and not unfinished(key, value, self._prefix)
        }
        known = self._told_kills.entries if self._told_kills is not None else {}
        if any(known.get(key) != entry for key, entry in certain.items()):
            self._tell_kills(KillObservation(certain, frozenset(certain), self._ledger.revision, self._ledger.history))

    def _tell_kills(self, observation: KillObservation) -> None:
        assert self._listener is not None
        self._listener.on_killswitch(observation)
        self._told_kills = observation

    # -- everything ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        began = time.monotonic()
        with self._lock:
            groups, wanted, refreshes = self._groups, tuple(self._wanted), self._refreshes
        replaced = self._replaced
        note = ""
        try:
            identity = _identity(self._root)
            try:
                found = self._look_watching(groups, wanted)
            except ExhaustedError as error:
                self._watches.close()
                note = f"{error}. Until then the directory is read every {POLL_SECONDS:.0f} s"
                found = look(self._root, self._prefix, self._interest(groups, wanted), _is_directory)
            kills = self._read_kills(strict=True)
        except OSError as error:
            self._watch_parent()
            self._fail(_explain(self._root, error))
            return
        values = {key: _value(read) for key, read in found.values.items() if key not in kills}
        values |= {key: value for key, value in kills.items() if value is not None}
        prefixes = watch_prefixes(self._prefix, self._host, groups)
        self._ledger.forget(lambda key: key in kills or key.startswith(prefixes))
        before = {key: Value(entry.value, entry.error) for key, entry in self._ledger.entries.items()}
        if not self._settling.settled(before, values, kills.keys()):
            self._look_at = time.monotonic() + SETTLE_SECONDS
            return
        with self._lock:
            self._ledger.take(values, identity, found.directories, replaced=replaced)
        self._replaced = False
        self._deliver(groups, frozenset(kills), found.problems, refreshes)
        self._deliver_bodies()
        self._succeed(began, note)

    def _look_watching(self, groups: tuple[str, ...], wanted: tuple[str, ...]) -> Found:
        self._watches.begin()
        try:
            parent = os.path.dirname(self._root)
            if os.path.islink(self._root):
                self._watches.add(parent, frozenset({os.path.basename(self._root)}))
            else:
                self._watches.add(parent, only_self=True)
            found = look(self._root, self._prefix, self._interest(groups, wanted), self._watches.add)
            for directory, names in sorted(found.links.items())[:_MAX_LINKS]:
                self._watches.add(directory, frozenset(names))
        except OSError:
            self._watches.abandon()
            raise
        self._watches.commit()
        return found

    def _interest(self, groups: tuple[str, ...], wanted: tuple[str, ...]) -> dict[str, Interest]:
        return interest_of(self._prefix, scopes_of(self._host, groups), wanted)

    def _deliver(
        self, groups: tuple[str, ...], covered: frozenset[str], problems: Sequence[Refusal], refreshes: int
    ) -> None:
        ledger = self._ledger
        entries = {key: ledger.entries[key] for key in covered if key in ledger.entries}
        observation = KillObservation(entries, covered, ledger.revision, ledger.history)
        asked = refreshes != self._refreshed
        if asked or observation != self._told_kills:
            self._tell_kills(observation)
        snapshot = ledger.snapshot(groups, tuple(problems))
        if asked or snapshot != self._told_snapshot:
            assert self._listener is not None
            self._listener.on_snapshot(snapshot)
            self._told_snapshot = snapshot
            self._refreshed = refreshes

    def _deliver_bodies(self) -> None:
        with self._lock:
            wanted = dict(self._wanted)
        news: dict[str, bytes | None] = {}
        for sha256, reported in wanted.items():
            body = self._read_body(sha256)
            if body is not None or not reported:
                news[sha256] = body
        if not news:
            return
        assert self._listener is not None
        self._listener.on_bodies(news)
        with self._lock:
            for sha256, body in news.items():
                if body is not None:
                    self._wanted.pop(sha256, None)
                elif sha256 in self._wanted:
                    self._wanted[sha256] = True

    def _read_body(self, sha256: str) -> bytes | None:
        """Return a body that is whole. One that does not match its name yet may still be being written."""
        path = self._root + format_key(BodyKey(sha256), self._prefix)
        try:
            body = read_file(path, MAX_BODY_BYTES)
        except (UnreadableError, OSError):
            return None  # stays wanted; the resolution names it as not available
        return body if hashlib.sha256(body).hexdigest() == sha256 else None

    # -- how it went --------------------------------------------------------------------------------------

    def _succeed(self, began: float, note: str) -> None:
        now = time.monotonic()
        self._attempt = 0
        self._looks += 1
        period = REREAD_SECONDS * (0.75 + 0.5 * spread(self._host, "reread", str(self._looks)))
        self._look_at = now + (POLL_SECONDS if note else period)
        self._pause_until = now + min((now - began) / _LOOK_SHARE, _MAX_PAUSE_SECONDS)
        with self._lock:
            if not self._connected:
                self._connected_at = now
            self._connected, self._error, self._fresh_at = True, note, now

    def _fail(self, error: str) -> None:
        wait = backoff(
            self._attempt, base=_RETRY_BASE_SECONDS, cap=_RETRY_CAP_SECONDS, identity=(self._host, "directory store")
        )
        self._attempt += 1
        self._look_at = time.monotonic() + wait
        self._pause_until = min(self._look_at, time.monotonic() + _RETRY_BASE_SECONDS)
        with self._lock:
            if self._connected:
                self._fresh_at = time.monotonic()
            self._connected, self._error = False, error

    def _tell_status(self) -> None:
        status = self.status()
        told = self._told_status
        if told is not None and (told.connected, told.error, told.revision) == (
            status.connected,
            status.error,
            status.revision,
        ):
            return
        assert self._listener is not None
        self._told_status = status  # first: a listener that always raises must not be told for ever
        self._listener.on_status(status)

    def _watch_parent(self) -> None:
        """Learn at once when the root directory comes (back)."""
        try:
            self._watches.begin()
            self._watches.add(os.path.dirname(self._root), frozenset({os.path.basename(self._root)}))
            self._watches.abandon()
        except (ExhaustedError, OSError):
            # Only a shortcut: the retries go on without it.
            self._watches.abandon()


def _identity(root: str) -> str:
    """Return what tells the root directory from another one, also after a reboot (device numbers change then).

    Raises:
        OSError: There is none, it is denied, or it is something else than a directory.
    """
    status = os.stat(root)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
    return f"{os.statvfs(root).f_fsid:x}.{status.st_ino:x}"


def _is_directory(path: str, names: frozenset[str] | None) -> bool:
    del names  # nothing is watched
    return os.path.isdir(path)


def _value(read: bytes | UnreadableError) -> Value:
    return Value(read) if isinstance(read, bytes) else Value(b"", str(read))


def _explain(root: str, error: OSError) -> str:
    path = error.filename if isinstance(error.filename, str) else root
    remedy = {
        FileNotFoundError: "create it, or correct [store.directory] path",
        NotADirectoryError: "make it a directory, or correct [store.directory] path",
        PermissionError: "let the agent read it",
    }.get(type(error), "look at the file system")
    return f"cannot read {shown(path)}: {error.strerror}; {remedy}. The last configuration stays in force"
