"""The etcd store: a thread that always has a session, or is on its way to the next one.

The order within a session is the contract: killswitch, keys, watch, and only then `on_session`, where registration
hangs, in a thread of its own. The thread of the watch tells of killswitch keys itself; this one does everything else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from garrison.ipc.pacing import TokenBucket, spread
from garrison.supervisor import logs
from garrison.supervisor.keys import DEFAULT_PREFIX, check_prefix, shown
from garrison.supervisor.stores.base import (
    KillObservation,
    Snapshot,
    Store,
    StoreListener,
    StoreStatus,
)
from garrison.supervisor.stores.etcd.aim import aim_at
from garrison.supervisor.stores.etcd.bodies import SPREAD_SECONDS, Wanted
from garrison.supervisor.stores.etcd.connection import Access, Connection
from garrison.supervisor.stores.etcd.endpoints import Address, Endpoint, choose_ip, first_index
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.health import Health
from garrison.supervisor.stores.etcd.history import History, remembered
from garrison.supervisor.stores.etcd.lifecycle import Event, Pace, State, advance
from garrison.supervisor.stores.etcd.resolver import Resolver
from garrison.supervisor.stores.etcd.session import Session

REREAD_SECONDS = 3600.0
"""Between two cheap looks behind the watch, give or take a quarter by host hash."""

DOUBT_SECONDS = 5.0
"""From a look that found a difference to the second one: what was on its way has arrived by then."""

GAP_SECONDS = 0.02
"""Least time between two snapshots; a burst of `_BURST` goes at this pace, then one in `_SLOW_SECONDS`."""

_BURST = 10.0
_SLOW_SECONDS = 0.5
_RELIST_SECONDS = 60.0
"""Between two listings because keys were left out."""

_MAX_COMPACTIONS = 5
"""Most new beginnings within one session because the watch fell behind a compaction."""

_log = logs.get("store")


class Timing(NamedTuple):
    """Times that tests shorten, in seconds; see the constants."""

    reread: float = REREAD_SECONDS
    doubt: float = DOUBT_SECONDS
    body_spread: float = SPREAD_SECONDS


class EtcdStore(Store):
    """See the module.

    Args:
        endpoints: At least one.
        access: How to connect to each of them.
        prefix: What all keys start with.
        host: The hostname.
        groups: Its groups.
        kill_groups: Groups of which only the killswitch is looked at.
        seed: The last snapshot of the process before; tells a restored cluster from the one before.
        seed_age: Seconds since the seed was known to be true.
        addresses: The file where addresses of names are kept; empty: nowhere.
        timing: Others only in tests.

    Attributes:
        on_session: Called with the connection when the watch has begun; returns at once. It is good until
            `on_session_end`, which is called once for each, when the session is over.
        on_session_end: See `on_session`.

    Raises:
        KeyGrammarError: Prefix, hostname or groups cannot stand in a key.
        ValueError: There is no endpoint.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        access: Access,
        prefix: str = DEFAULT_PREFIX,
        *,
        host: str,
        groups: Sequence[str] = (),
        kill_groups: Iterable[str] = (),
        seed: Snapshot | None = None,
        seed_age: float = 0.0,
        addresses: str = "",
        timing: Timing | None = None,
    ) -> None:
        if not endpoints:
            raise ValueError("no endpoint is given")
        self.on_session: Callable[[Connection], None] = _ignore
        self.on_session_end: Callable[[], None] = _nothing
        self._timing = timing or Timing()
        self._endpoints = tuple(endpoints)
        self._access = access
        self._prefix = check_prefix(prefix)
        self._host = host
        self._resolver = Resolver(addresses, [one.host for one in endpoints if not one.is_ip])
        self._pace = Pace(host, len(endpoints), first_index(host, len(endpoints)))
        self._changed = threading.Condition()
        # Guarded by the condition: what other threads ask for.
        self._aim = aim_at(self._prefix, host, groups, kill_groups)
        self._again = False
        self._stopping = False
        self._asked_bodies: tuple[str, ...] | None = None
        self._connection: Connection | None = None
        self._awake = False
        self.health = Health(seed, seed_age)
        self.health.trying(str(self._endpoints[self._pace.index]))
        # The thread's own.
        self._listener: StoreListener | None = None
        self._thread: threading.Thread | None = None
        self._state = State.WAITING
        self._session: Session | None = None
        self._announced = False
        self._history: History = remembered(seed.history, seed.revision) if seed is not None else History()
        if seed is not None:
            self._history = self._history._replace(term=seed.term)
        self._snapshot = seed  # the last one that was told
        self._told = False
        self._told_kills: KillObservation | None = None
        self._told_status: StoreStatus | None = None
        self._refresh = False
        self._wanted = Wanted(host, self._prefix, self._timing.body_spread)
        self._due_at = 0.0
        self._live_at = 0.0
        self._snapshot_at = 0.0
        self._reread_at = 0.0
        self._relist_at = 0.0
        self._rereads = 0
        self._doubt: tuple[tuple[int, int], ...] = ()
        self._compactions = 0
        self._paces = TokenBucket(1 / _SLOW_SECONDS, _BURST)

    # -- what other threads call --------------------------------------------------------------------------

    def start(self, listener: StoreListener) -> None:
        """Begin to deliver. Call once.

        Raises:
            RuntimeError: It was started before, or no thread can be started.
        """
        if self._thread is not None:
            raise RuntimeError("the store was started before")
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="garrison-store", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the session and the threads. False: it was not over within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            connection = self._connection
            self._changed.notify_all()
        self._resolver.close()
        if connection is not None:
            connection.close()  # whatever waits for an answer in the thread fails now
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def status(self) -> StoreStatus:
        """Return how the store is doing now."""
        return self.health.status(time.monotonic())

    def request_refresh(self) -> None:
        """Read everything again and deliver it, changed or not."""
        with self._changed:
            self._again = self._refresh = True
            self._changed.notify_all()

    def set_groups(self, groups: Sequence[str], kill_groups: Iterable[str] = ()) -> None:
        """Look at other groups from now on; a snapshot that covers them follows.

        Raises:
            KeyGrammarError: A name cannot stand in a key; nothing changes.
        """
        aim = aim_at(self._prefix, self._host, groups, kill_groups)
        with self._changed:
            if aim == self._aim:
                return
            self._aim = aim
            self._again = True
            self._changed.notify_all()

    def fetch_bodies(self, ids: Iterable[str]) -> None:
        """Ask for bodies by SHA-256 (at most 256); replaces what was asked for before."""
        with self._changed:
            self._asked_bodies = tuple(ids)
            self._changed.notify_all()

    # -- what a session calls -----------------------------------------------------------------------------

    def tell_kills(self, observation: KillObservation) -> None:
        """Deliver what is known of the killswitch; never twice the same."""
        if observation == self._told_kills and not self._refresh:
            return
        assert self._listener is not None
        self._listener.on_killswitch(observation)
        self._told_kills = observation

    def wake(self) -> None:
        """Have the thread look at its session."""
        with self._changed:
            self._awake = True
            self._changed.notify_all()

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        steps = {
            State.WAITING: self._wait,
            State.DIALING: self._dial,
            State.OBEYING: self._obey,
            State.LISTING: self._list,
            State.WATCHING: self._watch,
            State.LIVE: self._live,
        }
        while self._state is not State.STOPPED:
            try:
                self._tell_status()
                event = Event.STOP if self._stopping else steps[self._state]()
            except EtcdError as error:
                event = self._failed(error)
            except Exception as error:  # noqa: BLE001  whatever it is, the killswitch must go on being obeyed
                event = self._failed(EtcdError("other", f"what etcd holds could not be acted on: {shown(repr(error))}"))
            if event is not None:
                self._state = advance(self._state, event)
        self._end_session()

    def _wait(self) -> Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, max(0.0, self._due_at - time.monotonic()))
        return None if self._stopping else Event.DUE

    def _dial(self) -> Event:
        now = time.monotonic()
        endpoint = self._endpoints[self._pace.index]
        self._pace.begin(now)
        self.health.trying(str(endpoint))
        connection = Connection(self._address(endpoint, now), self._access)
        with self._changed:
            self._connection = connection
            if self._stopping:
                return Event.OPENED  # the next turn stops
        connection.open()
        self._session = Session(connection, self._prefix, self, self._history)
        self._compactions = 0
        return Event.OPENED

    def _address(self, endpoint: Endpoint, now: float) -> Address:
        if endpoint.is_ip:
            return Address(endpoint.host, endpoint.port, endpoint.host)
        ips = self._resolver.addresses(endpoint.host, now)
        if not ips:
            reason = self._resolver.error(endpoint.host)
            raise EtcdError("unavailable", f"the name {endpoint.host} does not resolve: {reason}", str(endpoint))
        return Address(endpoint.host, endpoint.port, choose_ip(ips, self._host, self._pace.rounds))

    def _obey(self) -> Event:
        session = self._current()
        with self._changed:
            aim, self._again = self._aim, False
        session.obey(aim, self._snapshot.entries if self._snapshot is not None else {})
        return Event.OBEYED

    def _list(self) -> Event:
        session = self._current()
        try:
            snapshot = session.list_keys(self._snapshot.entries if self._snapshot is not None else {})
        except EtcdError as error:
            if error.kind != "compacted":
                raise
            return self._compacted()
        if session.new_history:
            self.health.new_history(session.new_history)
            _log.warning("%s", self.health.notice)
        self._tell_snapshot(snapshot)
        return Event.LISTED

    def _watch(self) -> Event:
        session = self._current()
        session.watch()
        if session.compacted:
            return self._compacted()
        now = time.monotonic()
        self._live_at = now
        self._relist_at = now + _RELIST_SECONDS
        self._schedule_reread(now)
        self._wanted.again(now)
        self.health.connected(session.revision)
        if not self._announced:
            self._announced = True
            _log.notice("etcd: connected to %s at revision %d", session.connection.endpoint, session.revision)
            self.on_session(session.connection)
        return Event.WATCHED

    def _live(self) -> Event | None:
        session = self._current()
        if session.failure is not None:
            raise session.failure
        if session.compacted:
            return self._compacted()
        with self._changed:
            again, asked, self._asked_bodies = self._again, self._asked_bodies, None
            self._awake = False
        if again:
            return Event.AGAIN
        now = time.monotonic()
        if asked is not None:
            self._wanted.ask(asked, self._snapshot.entries if self._snapshot is not None else {}, now)
        if now >= self._snapshot_at and (snapshot := session.take_changes()) is not None:
            self._snapshot_at = now + (GAP_SECONDS if self._paces.admit(1, now) else _SLOW_SECONDS)
            self._tell_snapshot(snapshot)
        self.health.seen(session.revision)
        self._serve_bodies(session, now)
        if session.incomplete and now >= self._relist_at:
            return Event.AGAIN
        if now >= self._reread_at:
            self._look_behind(session)
        self._tell_status()
        self._sleep(session)
        return None

    def _sleep(self, session: Session) -> None:
        wake_at = min(
            self._reread_at,
            self._wanted.next_at(),
            self._snapshot_at if session.changed else float("inf"),
            self._relist_at if session.incomplete else float("inf"),
        )
        with self._changed:
            self._changed.wait_for(
                lambda: self._awake or self._stopping or self._again or self._asked_bodies is not None,
                max(0.0, wake_at - time.monotonic()),
            )

    # -- parts of a turn ----------------------------------------------------------------------------------

    def _tell_snapshot(self, snapshot: Snapshot) -> None:
        before = self._snapshot if self._told else None
        if before is None or self._refresh or _content(before) != _content(snapshot):
            assert self._listener is not None
            self._listener.on_snapshot(snapshot)
        self._snapshot, self._told, self._refresh = snapshot, True, False

    def _serve_bodies(self, session: Session, now: float) -> None:
        news = {sha256: body for sha256, body in session.take_bodies().items() if body is not None}
        news = {sha256: body for sha256, body in news.items() if self._wanted.done(sha256)}
        found: dict[str, bytes | None] = dict(news)
        sha256 = self._wanted.due(now)  # one in a turn: what else happens is not kept waiting
        if sha256 is not None and sha256 not in found:
            try:
                found[sha256] = session.fetch_body(sha256)
            except EtcdError as error:
                if error.kind not in ("permission", "too_large"):
                    raise
                found[sha256] = None
                self.health.lesser(f"body {sha256} cannot be read: {error}")
            if found[sha256] is None:
                self._wanted.absent(sha256)
            else:
                self._wanted.done(sha256)
        if found:
            assert self._listener is not None
            self._listener.on_bodies(found)

    def _look_behind(self, session: Session) -> None:
        """Compare the counts; a difference that is still there at the second look is something the watch has lost."""
        theirs = session.differs()
        if theirs and theirs == self._doubt and not session.incomplete:
            raise EtcdError("other", "the watch has lost changes", session.connection.endpoint)
        now = time.monotonic()
        self._doubt = theirs
        self.health.fresh(now)
        if theirs and not session.incomplete:
            self._reread_at = now + self._timing.doubt
        else:
            self._schedule_reread(now)

    def _schedule_reread(self, now: float) -> None:
        self._rereads += 1
        self._doubt = ()
        share = spread(self._host, "reread", str(self._rereads))
        self._reread_at = now + self._timing.reread * (0.75 + 0.5 * share)

    def _compacted(self) -> Event:
        self._compactions += 1
        if self._compactions > _MAX_COMPACTIONS:
            raise EtcdError("compacted", "the history is compacted faster than it can be read", "")
        return Event.AGAIN

    def _failed(self, error: EtcdError) -> Event:
        if self._stopping:
            return Event.STOP
        now = time.monotonic()
        lived = max(0.0, now - self._live_at) if self._live_at else 0.0
        announced = self._announced
        self._end_session()
        wait = self._pace.failed(now, lived)
        self._due_at = now + wait
        self.health.lost(str(error))
        if announced:
            _log.warning("etcd: the session is over: %s", error)
        else:
            _log.info("etcd: %s; the next attempt follows in %.1f s", error, wait)
        return Event.FAILED

    def _end_session(self) -> None:
        session, self._session = self._session, None
        with self._changed:
            connection, self._connection = self._connection, None
        if self._announced:
            self._announced = False
            try:
                self.on_session_end()
            except Exception:  # noqa: BLE001  the next session must come, whatever hangs on the end of this one
                _log.exception("etcd: the end of the session could not be told")
        self._live_at = 0.0
        if session is not None:
            self._history = session.close()
        elif connection is not None:
            connection.close()

    def _current(self) -> Session:
        assert self._session is not None
        return self._session

    def _tell_status(self) -> None:
        status = self.status()
        told = self._told_status
        if told is not None and _shown(told) == _shown(status):
            return
        assert self._listener is not None
        self._told_status = status  # first: a listener that always raises must not be told for ever
        self._listener.on_status(status)


def _content(snapshot: Snapshot) -> tuple[object, ...]:
    return snapshot.entries, snapshot.history, snapshot.groups, snapshot.problems


def _shown(status: StoreStatus) -> tuple[object, ...]:
    return status.connected, status.endpoint, status.error, status.revision


def _ignore(_: Connection) -> None:
    return


def _nothing() -> None:
    return
