"""What follows from what was found: for each worker what is missing, and which of that is explained. Pure.

A number is missing where it lies between 1 (or the first that was read of this worker) and the last that arrived or
that a heartbeat or a drop range speaks of. It is explained where a heartbeat gives a reason. It is pending where no
heartbeat that came after it has been read yet, or where the newest one still counts it as in flight.
"""

from __future__ import annotations

from typing import Any

import msgspec

from garrison.fleet.reconcile.evidence import Evidence, Host, Said, Stream
from garrison.fleet.reconcile.intervals import Interval, Intervals, count, split

MAX_RANGES = 20
"""Most ranges that are listed of one kind and worker."""
OPEN_END = 2**53
"""The last number of a drop range of which nobody knows the end."""


class Ranges(msgspec.Struct, kw_only=True):
    """Numbers of one process and priority: how many, and the first ranges of them."""

    epoch: int
    priority: str
    count: int
    ranges: list[tuple[int, int]]


class WorkerVerdict(msgspec.Struct, kw_only=True):
    """One worker of one host.

    Attributes:
        arrived: Different events that were read.
        duplicates: Events that were read again.
        missing: Events that were not read; the next four add up to it.
        explained: Those of them that the agent gave up, by reason.
        before: Those from before the start of what was read.
        pending: Those of which nothing final is known yet.
        unexplained: The others.
        where: The unexplained ones, by process and priority.
        books: What the newest heartbeat says, if one was read.
        balanced: Whether that adds up.
    """

    host: str
    worker: str
    arrived: int = 0
    duplicates: int = 0
    missing: int = 0
    explained: dict[str, int] = {}
    before: int = 0
    pending: int = 0
    unexplained: int = 0
    where: list[Ranges] = []
    books: dict[str, Any] | None = None
    balanced: bool = True

    @property
    def good(self) -> bool:
        """Whether nothing is missing without a reason, and the books balance."""
        return not self.unexplained and self.balanced


def judge(evidence: Evidence, *, complete: bool = False) -> list[WorkerVerdict]:
    """Return the verdict on every worker, by host and name.

    Args:
        evidence: What was found.
        complete: What was read goes back to the first event of each worker: what is not there is missing. Otherwise
            what came before the first event read of a worker's oldest process is taken to be gone by age.
    """
    return [
        _worker(name, worker, evidence.hosts[name], complete=complete)
        for name in sorted(evidence.hosts)
        for worker in sorted(_workers(evidence.hosts[name]))
    ]


def _workers(host: Host) -> set[str]:
    return {*host.said, *(stream[0] for stream in host.seen), *(stream[0] for stream in host.drops)}


def _worker(name: str, worker: str, host: Host, *, complete: bool) -> WorkerVerdict:
    said = host.said.get(worker)
    streams = {stream for stream in (*host.seen, *host.drops) if stream[0] == worker}
    if said is not None:
        streams |= {(worker, entry.epoch, entry.priority) for entry in said.events.through}
    seen_epochs = [epoch for _worker, epoch, _priority in host.seen if _worker == worker]
    oldest = 0 if complete or not seen_epochs else min(seen_epochs)
    verdict = WorkerVerdict(host=name, worker=worker)
    for stream in sorted(streams):
        if complete or not seen_epochs or stream[1] >= oldest:
            _stream(verdict, stream, host, said, begun_before=stream[1] == oldest)
    if said is not None:
        _settle(verdict, said)
    return verdict


def _stream(verdict: WorkerVerdict, stream: Stream, host: Host, said: Said | None, *, begun_before: bool) -> None:
    _name, epoch, priority = stream
    seen = host.seen.get(stream, Intervals())
    drops = host.drops.get(stream, {})
    booked = _booked(stream, said)
    ends = [seen.last, *(intervals.last for intervals in drops.values() if intervals.last < OPEN_END)]
    if booked is not None:
        ends.append(booked)
    missing = seen.missing(1, max(ends))
    verdict.arrived += seen.count
    verdict.duplicates += host.twice.get(stream, 0)
    verdict.missing += count(missing)
    for reason in sorted(drops):
        told, missing = split(missing, drops[reason])
        if told:
            verdict.explained[reason] = verdict.explained.get(reason, 0) + count(told)
    if begun_before:
        head = [(first, last) for first, last in missing if not seen or last < seen.first]
        verdict.before += count(head)
        missing = missing[len(head) :]
    limit = _settled(epoch, booked, said)
    later = [(max(first, limit + 1), last) for first, last in missing if last > limit]
    missing = [(first, min(last, limit)) for first, last in missing if first <= limit]
    verdict.pending += count(later)
    if missing:
        verdict.unexplained += count(missing)
        verdict.where.append(_ranges(epoch, priority, missing))


def _booked(stream: Stream, said: Said | None) -> int | None:
    """Return up to which number the newest heartbeat had booked a process that lived then; None: it did not live."""
    if said is not None:
        for entry in said.events.through:
            if (entry.epoch, entry.priority) == stream[1:]:
                return entry.last
    return None


def _settled(epoch: int, booked: int | None, said: Said | None) -> int:
    """Return up to which number the newest heartbeat would have told of what was dropped."""
    if said is None or epoch > said.epoch:
        return 0
    if booked is not None:
        return booked
    living = {entry.epoch for entry in said.events.through}
    # Nothing had come of this priority from a process that lived; of one that was gone everything was told.
    return 0 if epoch in living else OPEN_END


def _settle(verdict: WorkerVerdict, said: Said) -> None:
    """Take off what the newest heartbeat itself says is not told yet."""
    events = said.events
    total = sum(events.dropped.values())
    verdict.books = {
        "emitted": events.emitted,
        "delivered": events.delivered,
        "in_flight": events.in_flight,
        "dropped": events.dropped,
    }
    verdict.balanced = events.emitted == events.delivered + events.in_flight + total and events.in_flight >= 0
    if verdict.unexplained and (events.drops_waiting or verdict.unexplained <= events.in_flight):
        verdict.pending += verdict.unexplained
        verdict.unexplained = 0
    forgotten = min(verdict.unexplained, events.drops_forgotten)
    if forgotten:
        verdict.explained["not told in detail"] = forgotten
        verdict.unexplained -= forgotten
    if not verdict.unexplained:
        verdict.where.clear()


def _ranges(epoch: int, priority: str, intervals: list[Interval]) -> Ranges:
    return Ranges(epoch=epoch, priority=priority, count=count(intervals), ranges=intervals[:MAX_RANGES])
