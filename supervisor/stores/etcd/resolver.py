"""Names to addresses, seldom and never for long: a DNS server that is away must not hold up a session.

Lookups run in a thread of their own, one at a time for a name, because the C library's cannot be given a time limit.
The last addresses of a name are kept, also on disk, and are used while there are no newer ones.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable

from garrison.supervisor import statefile
from garrison.supervisor.keys import shown

FRESH_SECONDS = 60.0
"""A name is looked up at most this often."""

UNKNOWN_SECONDS = 15.0
"""A name of which no address is known at all: at most this often."""

WAIT_SECONDS = 2.0
"""How long a session waits for a lookup before it takes the addresses that are known."""

MAX_ADDRESSES = 16

Lookup = Callable[[str], tuple[str, ...]]


def look_up(name: str) -> tuple[str, ...]:
    """Ask the system for the addresses of a name, in its order.

    Raises:
        OSError: There are none to be had.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    ips = (str(address[0]) for *_, address in found)
    return tuple(dict.fromkeys(ip for ip in ips if "%" not in ip))[:MAX_ADDRESSES]


class Resolver:
    """See the module. May be used from any thread.

    Args:
        path: Where addresses are kept across restarts; empty: nowhere.
        names: The names in use; others in the file are forgotten.
        lookup: Another one only in tests.
    """

    def __init__(self, path: str = "", names: Iterable[str] = (), lookup: Lookup = look_up) -> None:
        self._path = path
        self._lookup = lookup
        self._changed = threading.Condition()
        self._known: dict[str, tuple[str, ...]] = {}
        self._asked: dict[str, float] = {}
        self._running: set[str] = set()
        self._errors: dict[str, str] = {}
        self._closing = False
        self._kept: dict[str, tuple[str, ...]] = {}
        if path and names:
            try:
                kept = statefile.read(path, dict[str, tuple[str, ...]])
            except statefile.StateFileError:
                kept = {}  # a cache: whatever is wrong with it, the next lookup writes it anew
            self._known = {name: kept[name][:MAX_ADDRESSES] for name in names if kept.get(name)}
            self._kept = dict(self._known)

    def addresses(self, name: str, now: float) -> tuple[str, ...]:
        """Return the addresses of a name, newest knowledge first looked for and at most `WAIT_SECONDS` waited for.

        Empty: none is known; `error` says why.

        Args:
            name: The name.
            now: Monotonic seconds.
        """
        with self._changed:
            pause = FRESH_SECONDS if name in self._known else UNKNOWN_SECONDS
            if name not in self._running and now - self._asked.get(name, float("-inf")) >= pause:
                self._asked[name] = now
                self._begin(name)
            self._changed.wait_for(lambda: name not in self._running or self._closing, WAIT_SECONDS)
            return self._known.get(name, ())

    def error(self, name: str) -> str:
        """Return why the last lookup of a name brought nothing; empty where it did."""
        with self._changed:
            if name in self._running:
                return f"the name server has not answered within {WAIT_SECONDS:g} s"
            return self._errors.get(name, "")

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _begin(self, name: str) -> None:
        thread = threading.Thread(target=self._run, args=(name,), name="garrison-resolve", daemon=True)
        self._running.add(name)
        try:
            thread.start()
        except RuntimeError as error:
            self._running.discard(name)
            self._errors[name] = f"no thread can be started: {error}"

    def _run(self, name: str) -> None:
        error = ""
        found: tuple[str, ...] = ()
        try:
            found = self._lookup(name)
        except (OSError, UnicodeError) as failure:
            error = shown(getattr(failure, "strerror", None) or str(failure))
        with self._changed:
            if found:
                self._known[name] = found
            self._errors[name] = error or ("" if found else "it has no address")
            known, stale = dict(self._known), self._known != self._kept
            self._running.discard(name)
            self._changed.notify_all()
        if self._path and stale:
            self._save(known)

    def _save(self, known: dict[str, tuple[str, ...]]) -> None:
        try:
            # At the very first start this comes before anything else is kept.
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
            statefile.write(self._path, known)
        except (OSError, statefile.StateFileError):
            # A disk that is full or read-only is reported where what matters cannot be written; tried again
            # with the next lookup.
            return
        with self._changed:
            self._kept = known
