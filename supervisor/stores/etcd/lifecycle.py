"""The life of a session as one table, and the pace of the attempts. Pure: time comes in as an argument."""

from __future__ import annotations

from enum import Enum

from garrison.ipc.pacing import backoff

BASE_SECONDS = 1.0
CAP_SECONDS = 15.0
STABLE_SECONDS = 60.0
"""A session that has lasted this long was a good one: the pace starts again at the base."""


class State(Enum):
    """Where a session is. The value is for people."""

    WAITING = "waiting for the next attempt"
    DIALING = "connecting"
    OBEYING = "reading the killswitch"
    LISTING = "reading the keys"
    WATCHING = "beginning the watch"
    LIVE = "connected"
    STOPPED = "stopped"


class Event(Enum):
    """What can happen to it."""

    DUE = "the wait is over"
    OPENED = "the member answers and takes our login"
    OBEYED = "the killswitch keys are read and told"
    LISTED = "the keys are read and told"
    WATCHED = "the server has begun every watch"
    AGAIN = "groups changed, a refresh was asked for, or the watch fell behind a compaction"
    FAILED = "anything failed"
    STOP = "the agent stops"


_ALIVE = (State.DIALING, State.OBEYING, State.LISTING, State.WATCHING, State.LIVE)

TABLE: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.DUE): State.DIALING,
    (State.DIALING, Event.OPENED): State.OBEYING,
    (State.OBEYING, Event.OBEYED): State.LISTING,
    (State.LISTING, Event.LISTED): State.WATCHING,
    (State.WATCHING, Event.WATCHED): State.LIVE,
    # On the connection that is there: what changed meanwhile is in the keys that are read anew.
    (State.OBEYING, Event.AGAIN): State.OBEYING,
    (State.LISTING, Event.AGAIN): State.OBEYING,
    (State.WATCHING, Event.AGAIN): State.OBEYING,
    (State.LIVE, Event.AGAIN): State.OBEYING,
    # Every failure, wherever, ends in a new session; nothing is mended.
    **{(state, Event.FAILED): State.WAITING for state in (State.WAITING, *_ALIVE)},
    **{(state, Event.STOP): State.STOPPED for state in (State.WAITING, *_ALIVE)},
}


def advance(state: State, event: Event) -> State:
    """Return the next state.

    Raises:
        KeyError: The table has no such row: a programming error.
    """
    return TABLE[state, event]


class Pace:
    """Says which endpoint is next and how long to wait before it.

    Within a round the endpoints are tried one after the other without a wait; rounds begin at intervals that
    grow from `BASE_SECONDS` to `CAP_SECONDS`, shortened by jitter. The time that a round took counts: dead endpoints
    cost their dial limit, so that one that is well again is tried at most `CAP_SECONDS` later; and a session that was
    lost has had its life, so that members that fail one after the other, as in an upgrade, cost no growing wait.

    Args:
        host: For the jitter.
        endpoints: How many there are.
        first: Which of them is tried first.
    """

    def __init__(self, host: str, endpoints: int, first: int) -> None:
        self._host = host
        self._count = endpoints
        self.index = first % endpoints
        self._tried = 0  # in this round
        self._round = 0
        self._began = float("-inf")

    @property
    def rounds(self) -> int:
        """How many rounds have failed since the last good session."""
        return self._round

    def begin(self, now: float) -> None:
        """Note that an attempt begins."""
        if self._tried == 0:
            self._began = now
        self._tried += 1

    def failed(self, now: float, lived: float = 0.0) -> float:
        """Note the end of an attempt, or of a session that had been up for `lived` seconds; return the wait.

        The next endpoint is chosen. A session that was up ends its round: whoever lost a member with it waits at
        least the base, jittered, instead of running to the next member in step with all others.
        """
        self.index = (self.index + 1) % self._count
        if lived >= STABLE_SECONDS:
            self._round = 0
        if lived <= 0 and self._tried < self._count:
            return 0.0
        wait = backoff(self._round, base=BASE_SECONDS, cap=CAP_SECONDS, identity=(self._host, "etcd session"))
        least = backoff(0, base=BASE_SECONDS, cap=BASE_SECONDS, identity=(self._host, "etcd round", str(self._round)))
        self._round += 1
        self._tried = 0
        return max(least, wait - max(0.0, now - self._began))
