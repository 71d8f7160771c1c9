"""What was found: which numbers of which sequence arrived, and what the heartbeats say of the rest. Bounded. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from garrison.fleet.reconcile.intervals import Intervals

MAX_STREAMS = 1_000_000
MAX_INTERVALS = 4_000_000

Stream = tuple[str, int, str]
"""Worker, epoch and priority: what has a sequence of its own on a host."""


class TooMuchError(Exception):
    """There is more than fits the bounds; the text says what to do."""


class Drop(msgspec.Struct):
    """A range of events that was given up, as a heartbeat tells it."""

    epoch: int
    priority: str
    first: int
    last: int
    reason: str


class Through(msgspec.Struct):
    """How far a process that lives had come in one priority."""

    epoch: int
    priority: str
    last: int = 0
    claimed: int = 0


class Accounting(msgspec.Struct):
    """What a heartbeat says became of a worker's events."""

    emitted: int = 0
    delivered: int = 0
    in_flight: int = 0
    dropped: dict[str, int] = {}
    drops: list[Drop] = []
    drops_waiting: int = 0
    drops_forgotten: int = 0
    through: list[Through] = []


class Said(NamedTuple):
    """The newest heartbeat about a worker.

    Attributes:
        at: Epoch of the agent and number of the heartbeat: their order.
        epoch: The newest process of the worker that it knows of.
        events: What it says.
    """

    at: tuple[int, int]
    epoch: int
    events: Accounting


class Host:
    """What was found of one host."""

    __slots__ = ("drops", "said", "seen", "twice")

    def __init__(self) -> None:
        self.seen: dict[Stream, Intervals] = {}
        self.twice: dict[Stream, int] = {}
        self.drops: dict[Stream, dict[str, Intervals]] = {}
        self.said: dict[str, Said] = {}


class Evidence:
    """Takes what is read, in any order.

    Args:
        max_streams: Most sequences that are kept apart; each takes about 0.5 kB.
        max_intervals: Most intervals over all of them; each takes about 80 bytes.

    Attributes:
        hosts: What was found, by host.
        events: Numbered events that were taken.
    """

    def __init__(self, max_streams: int = MAX_STREAMS, max_intervals: int = MAX_INTERVALS) -> None:
        self.hosts: dict[str, Host] = {}
        self.events = 0
        self._max_streams = max_streams
        self._max_intervals = max_intervals
        self._streams = 0
        self._intervals = 0

    def arrived(self, host: str, stream: Stream, first: int, last: int) -> None:
        """Take events that arrived, by their sequence numbers.

        Raises:
            TooMuchError: See the class.
        """
        found = self._host(host)
        seen = found.seen.get(stream)
        if seen is None:
            self._more_streams()
            seen = found.seen[stream] = Intervals()
        self.events += last - first + 1
        if known := self._add(seen, first, last):
            found.twice[stream] = found.twice.get(stream, 0) + known

    def told(self, host: str, worker: str, at: tuple[int, int], epoch: int, events: Accounting) -> None:
        """Take what a heartbeat says of a worker's events.

        Args:
            host: Who says it.
            worker: Of whom.
            at: Epoch of the agent and number of the heartbeat.
            epoch: The worker's process; 0 where none runs.
            events: What it says.

        Raises:
            TooMuchError: See the class.
        """
        found = self._host(host)
        for drop in events.drops:
            if drop.last < drop.first:
                continue
            stream = worker, drop.epoch, drop.priority
            reasons = found.drops.get(stream)
            if reasons is None:
                self._more_streams()
                reasons = found.drops[stream] = {}
            if drop.reason not in reasons:
                reasons[drop.reason] = Intervals()
            self._add(reasons[drop.reason], drop.first, drop.last)
        said = found.said.get(worker)
        newest = max([epoch, *(entry.epoch for entry in events.through), *(drop.epoch for drop in events.drops)])
        if said is not None:
            newest = max(newest, said.epoch)
        if said is None or at > said.at:
            # The ranges are kept above, added up over all heartbeats.
            found.said[worker] = Said(at, newest, msgspec.structs.replace(events, drops=[]))
        elif newest > said.epoch:
            found.said[worker] = said._replace(epoch=newest)

    def _host(self, name: str) -> Host:
        host = self.hosts.get(name)
        if host is None:
            self._more_streams()
            host = self.hosts[name] = Host()
        return host

    def _add(self, intervals: Intervals, first: int, last: int) -> int:
        before = len(intervals)
        known = intervals.add(first, last)
        self._intervals += len(intervals) - before
        if self._intervals > self._max_intervals:
            raise TooMuchError(f"more than {self._max_intervals} gaps")
        return known

    def _more_streams(self) -> None:
        self._streams += 1
        if self._streams > self._max_streams:
            raise TooMuchError(f"more than {self._max_streams} sequences of hosts, workers and processes")
