"""The killswitch: what engages it, what releases it, and the flag that the master looks at.

The first half is pure: `KillState` and the functions that take it from one state to the next. Engaged is the
safe side, so everything doubtful ends there; released is only what was *seen* to be released. The second half,
`KillSwitch`, holds one state for all threads. Whoever learns of an engagement sets the flag and kills, in its own
thread; only the master's loop releases.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

import msgspec

from garrison.ipc.pacing import spread
from garrison.supervisor.keys import (
    DEFAULT_PREFIX,
    KillswitchKey,
    Scope,
    UnknownKeyError,
    parse_key,
    shown,
)
from garrison.supervisor.stores.base import Entry, KillObservation
from garrison.supervisor.stores.values import KillValue, ValueRefusedError, killswitch_of

FILE: Literal["file"] = "file"
LOCAL: Literal["local"] = "local"

MAX_CAUSES = 256
"""Most engaged keys that are remembered: 64 groups, and those that the host has left meanwhile."""

Where: TypeAlias = Literal["present", "remembered", "orphaned"]


class Cause(msgspec.Struct, frozen=True):
    """One thing that says *engaged*.

    Attributes:
        source: The key in full, ``file`` or ``local``.
        scope: Whom it is for, as shown: ``@all``, ``@group/web``, a hostname, ``file``, ``local``.
        reason: Why, in the words of whoever engaged it, or what was wrong with an unreadable value.
        by: Who engaged it.
        at: When, as they wrote it.
        revision: Of the key.
        history: Of the store that held the key.
        where: ``present``: the key is there, in a store that this process reads. ``remembered``: it was there before
            this process started, and the store has not been read since. ``orphaned``: the store has been
            read and has no such key, but nobody saw it being deleted.
    """

    source: str
    scope: str
    reason: str = ""
    by: str = ""
    at: str = ""
    revision: int = 0
    history: str = ""
    where: Where = "present"


class KillState(msgspec.Struct, frozen=True):
    """All that says *engaged* now. Serialisable: the cache on disk is this."""

    store: dict[str, Cause] = {}
    file: Cause | None = None
    local: Cause | None = None

    @property
    def engaged(self) -> bool:
        """True while anything says so."""
        return bool(self.store) or self.file is not None or self.local is not None

    def causes(self) -> tuple[Cause, ...]:
        """Return everything that says so: what is at this host first, then the keys in their order."""
        here = tuple(cause for cause in (self.local, self.file) if cause is not None)
        return here + tuple(self.store[key] for key in sorted(self.store))


class FileReading(msgspec.Struct, frozen=True):
    """What the local killswitch file says, in words that `observe_file` takes."""

    engaged: bool
    reason: str = ""
    by: str = ""
    at: str = ""


def read_entry(key: str, entry: Entry) -> KillValue:
    """Return what a killswitch entry says. One that cannot be read says *engaged*, and why."""
    if entry.error:
        return KillValue(engaged=True, reason=f"unreadable value of {shown(key)}: {entry.error}")
    try:
        return killswitch_of(entry.value)
    except ValueRefusedError as error:
        return KillValue(engaged=True, reason=f"unreadable value of {shown(key)}: {error}")


def observe_store(state: KillState, seen: KillObservation, prefix: str = DEFAULT_PREFIX) -> KillState:
    """Return the state after a look at a store.

    A key that says *engaged* engages, always. *Off* releases, unless it is older than what is remembered within
    one history. An absent key releases only where this process saw it present in the same history before; else
    it is remembered as orphaned. A key that was not looked at stays as it was.
    """
    store = dict(state.store)
    for key in sorted(seen.covered | seen.entries.keys()):
        before = store.get(key)
        stale = before is not None and before.history == seen.history and seen.revision < before.revision
        entry = seen.entries.get(key)
        if entry is not None:
            said = read_entry(key, entry)
            if said.engaged:
                if before is None and len(store) >= MAX_CAUSES:
                    continue  # engaged already, 256 times over; it finds room when one of those goes
                store[key] = Cause(
                    source=key,
                    scope=_scope_text(key, prefix),
                    reason=said.reason,
                    by=said.by,
                    at=said.at,
                    revision=entry.revision,
                    history=seen.history,
                )
            elif before is not None and not stale:
                del store[key]
        elif before is not None and not stale:
            if before.where == "present" and before.history == seen.history:
                del store[key]
            elif before.where != "orphaned":
                store[key] = msgspec.structs.replace(before, where="orphaned")
    return msgspec.structs.replace(state, store=store)


def observe_file(state: KillState, reading: FileReading) -> KillState:
    """Return the state after a look at the local file: absent, it says nothing."""
    cause = None
    if reading.engaged:
        cause = Cause(source=FILE, scope=FILE, reason=reading.reason, by=reading.by, at=reading.at)
    return msgspec.structs.replace(state, file=cause)


def engage_locally(state: KillState, reason: str, by: str = "", at: str = "") -> KillState:
    """Return the state after ``garrison kill``."""
    cause = Cause(source=LOCAL, scope=LOCAL, reason=shown(reason), by=shown(by), at=shown(at))
    return msgspec.structs.replace(state, local=cause)


def release_locally(state: KillState) -> KillState:
    """Return the state after ``garrison release``: without ``garrison kill`` and without orphaned keys.

    A key that is present, or may be (the store has not been read since the start), is not for this host to
    release; nor is the file, which can be removed.
    """
    store = {key: cause for key, cause in state.store.items() if cause.where != "orphaned"}
    return msgspec.structs.replace(state, store=store, local=None)


def restored(state: KillState) -> KillState:
    """Return a state read from disk as a starting process may use it: no key has been seen by it."""
    store = {
        key: msgspec.structs.replace(cause, where="remembered") if cause.where == "present" else cause
        for key, cause in state.store.items()
    }
    return msgspec.structs.replace(state, store=store)


def removed_causes(before: KillState, after: KillState) -> tuple[Cause, ...]:
    """Return what said *engaged* before and does no more."""
    still = {cause.source for cause in after.causes()}
    return tuple(cause for cause in before.causes() if cause.source not in still)


def release_delay(scopes: Iterable[str], host: str, release_spread: float) -> float:
    """Return the seconds that a host waits before it starts workers again.

    Args:
        scopes: The scopes that have just been released, as text.
        host: The hostname.
        release_spread: Seconds over which a fleet spreads when a scope was that it shares (``@…``). Nothing else
            waits: a single host is in step with nobody.
    """
    if any(scope.startswith("@") for scope in scopes):
        return max(0.0, release_spread) * spread(host, "release")
    return 0.0


def kill_groups(state: KillState, prefix: str = DEFAULT_PREFIX) -> tuple[str, ...]:
    """Return the groups with a remembered killswitch: to be looked at even where the host has left them."""
    scopes = (_scope_of(key, prefix) for key in sorted(state.store))
    return tuple(scope.name for scope in scopes if scope is not None and scope.kind == "group")


def _scope_of(key: str, prefix: str) -> Scope | None:
    try:
        parsed = parse_key(key, prefix)
    except UnknownKeyError:
        return None
    return parsed.scope if isinstance(parsed, KillswitchKey) else None


def _scope_text(key: str, prefix: str) -> str:
    scope = _scope_of(key, prefix)
    return shown(key) if scope is None else str(scope)


class PendingRelease(msgspec.Struct, frozen=True):
    """A release that waits for the loop.

    Attributes:
        ticket: To be given back to `KillSwitch.confirm_release`; a later engagement makes it worthless.
        delay_seconds: How long the loop waits before it does.
        scopes: What was released.
    """

    ticket: int
    delay_seconds: float
    scopes: tuple[str, ...]


class KillSwitch:
    """One killswitch for all threads of the master.

    `engaged` is read by the loop after each placement, before the gate of a worker is opened. On the way to engaged
    the thread that brings the news sets the flag, then calls `on_engage`, then `on_change`, before its call
    returns. On the way to released it only leaves a `PendingRelease` and calls `on_change`; the flag falls in
    `confirm_release`, which only the loop calls.

    Args:
        host: The hostname: for the delay of a release.
        on_engage: Kills all workers. Called in the thread that brings the news, without any lock held, once for
            each time the flag is set. What it raises goes to that thread, after `on_change` was called.
        on_change: Tells the loop to look at `state` and `pending`, and to save the state. Called from any thread.
        state: What was saved; goes through `restored`.
        release_spread: Seconds, see `release_delay`; may be assigned later.
        prefix: What all keys start with.
    """

    def __init__(
        self,
        host: str,
        *,
        on_engage: Callable[[], None],
        on_change: Callable[[], None],
        state: KillState | None = None,
        release_spread: float = 60.0,
        prefix: str = DEFAULT_PREFIX,
    ) -> None:
        self._host = host
        self._on_engage = on_engage
        self._on_change = on_change
        self.release_spread = release_spread
        self._prefix = prefix
        self._lock = threading.Lock()
        self._state = KillState() if state is None else restored(state)
        self._engaged = self._state.engaged
        self._pending: PendingRelease | None = None
        self._ticket = 0
        self._killing = 0

    @property
    def engaged(self) -> bool:
        """True while no worker may run. One attribute read: no lock."""
        return self._engaged

    @property
    def state(self) -> KillState:
        """What says *engaged* now; immutable."""
        return self._state

    @property
    def pending(self) -> PendingRelease | None:
        """The release that waits for `confirm_release`, or None."""
        return self._pending

    def update_store(self, observation: KillObservation) -> None:
        """Take what a store has seen. Called by the store's thread."""
        self._apply(lambda state: observe_store(state, observation, self._prefix))

    def update_file(self, reading: FileReading) -> None:
        """Take what the local file says. Called by the thread that watches it."""
        self._apply(lambda state: observe_file(state, reading))

    def engage_local(self, reason: str, by: str = "", at: str = "") -> None:
        """Engage as ``garrison kill`` asks."""
        self._apply(lambda state: engage_locally(state, reason, by, at))

    def release_local(self) -> tuple[Cause, ...]:
        """Release as ``garrison release`` asks; return what still says *engaged* (see `release_locally`)."""
        return self._apply(release_locally).causes()

    def confirm_release(self, ticket: int) -> bool:
        """Drop the flag, if nothing has engaged since the ticket was given out.

        Returns:
            True where the flag has fallen. False where the ticket is no longer good, or a kill is still being
            carried out in another thread: `on_change` is called when that is over, and `pending` still stands.
        """
        with self._lock:
            pending = self._pending
            if pending is None or pending.ticket != ticket or self._state.engaged or self._killing:
                return False
            self._pending = None
            self._engaged = False
            return True

    def describe(self) -> dict[str, object]:
        """Return what ``garrison status`` shows: ``engaged``, ``scopes``, ``reason``, ``orphaned``."""
        with self._lock:
            state, engaged, pending = self._state, self._engaged, self._pending
        causes = state.causes()
        reasons = [_reason_text(cause) for cause in causes]
        scopes = [cause.scope for cause in causes]
        if engaged and pending is not None:
            scopes = list(pending.scopes)
            reasons = [f"released; workers start within {pending.delay_seconds:.0f} s of the release"]
        return {
            "engaged": engaged,
            "scopes": scopes,
            "reason": "; ".join(reason for reason in reasons if reason),
            "orphaned": [cause.source for cause in causes if cause.where == "orphaned"],
        }

    def _apply(self, change: Callable[[KillState], KillState]) -> KillState:
        with self._lock:
            before = self._state
            after = change(before)
            if after == before:
                return after
            self._state = after
            kill = after.engaged and not self._engaged
            if after.engaged:
                self._engaged = True
                self._pending = None
                self._killing += kill
            elif self._engaged:
                self._ticket += 1
                scopes = tuple(cause.scope for cause in removed_causes(before, after))
                delay = release_delay(scopes, self._host, self.release_spread)
                self._pending = PendingRelease(self._ticket, delay, scopes)
        try:
            if kill:
                self._on_engage()
        finally:
            if kill:
                with self._lock:
                    self._killing -= 1
            self._on_change()
        return after


def _reason_text(cause: Cause) -> str:
    text = cause.reason
    if cause.by:
        text = f"{text} (by {cause.by})" if text else f"by {cause.by}"
    if cause.where == "orphaned":
        note = (
            f"{shown(cause.source)} is gone from the store, but its deletion was not seen: write off there, or run "
            "garrison release here"
        )
    elif cause.where == "remembered":
        note = f"remembered from {shown(cause.source)}: the store has not been read since the start"
    else:
        return text
    return f"{text} [{note}]" if text else note
