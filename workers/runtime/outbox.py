"""The outbox: encoded events on their way to the pipe, bounded in bytes, with every drop in its place.

Each priority has its own sequence of numbers and its own queue. A number is either a waiting line or part of
a drop range, so that what leaves, data and ranges together, has no gap. Time comes in as an argument.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable

from garrison.ipc.messages import MAX_DROPPED_RANGES, PRIORITIES, DroppedRange, Events, Priority

BATCH_BYTES = 60_000
"""Bytes of data and drop ranges in one batch: with the rest of the frame they stay below 64 KiB."""
EVENT_BYTES = 48 * 1024
"""Longest encoded event, newline included."""
FLUSH_BYTES = 56 * 1024
"""Bytes waiting that make a batch go at once: nearly a whole one, because each costs both sides the same again."""
FLUSH_SECONDS = 0.5
"""How long an event may wait for company. Alerts and states do not wait. Where few come it is the wakeups that cost:
each flush is one of the worker and one of the master, of 0.3 ms of CPU with cold caches, whatever is in it."""
WINDOW_BYTES = 512 * 1024
"""Bytes that may be handed over and not acknowledged, where the master acknowledges: what a crash of it can lose.
Alerts and states may pass it once more. The master commits some times a second; this is more than it reads from one
worker in that time."""
ENTRY_BYTES = 256
"""What one waiting event costs beside its line: its objects (120 bytes in CPython 3.11) and the drop marker
that may come to stand next to it."""
MARKERS_BEFORE_MIXING = MAX_DROPPED_RANGES
"""Drop markers in a queue above which neighbours with different reasons are merged into one."""
MIXED = "mixed"
QUEUE_FULL = "queue_full"

_RANGE_BYTES = 32  # two numbers of up to 9 bytes and a reason of up to 12, with their msgpack headers
_BATCH_EVENTS = 65_536
_URGENT: frozenset[Priority] = frozenset(("alert", "state"))


class _Gap:
    """Numbers that were dropped, both ends inclusive."""

    __slots__ = ("first", "last", "reason")

    def __init__(self, first: int, last: int, reason: str) -> None:
        self.first = first
        self.last = last
        self.reason = reason


class _Queue:
    """One priority: waiting lines and gaps, each in sequence order, together without a hole."""

    __slots__ = ("bytes", "gaps", "lines", "next_in", "next_out", "sent", "since")

    def __init__(self) -> None:
        self.sent: deque[tuple[int, int, int]] = deque()
        self.lines: deque[tuple[int, bytes]] = deque()
        self.gaps: list[_Gap] = []
        self.next_in = 1
        self.next_out = 1
        self.bytes = 0
        self.since = 0.0

    def cost(self) -> int:
        """Bytes of memory that the waiting lines are counted with."""
        return self.bytes + ENTRY_BYTES * len(self.lines)

    def drop(self, number: int, reason: str) -> None:
        """Record a number as dropped, joined with its neighbours where that loses nothing."""
        gaps = self.gaps
        at = bisect_right(gaps, number, key=lambda gap: gap.first)
        before = gaps[at - 1] if at and gaps[at - 1].last == number - 1 else None
        after = gaps[at] if at < len(gaps) and gaps[at].first == number + 1 else None
        gap = _Gap(number, number, reason)
        mixing = len(gaps) >= MARKERS_BEFORE_MIXING
        if before is not None and (before.reason == reason or mixing):
            at -= 1
            gap = _join(before, gap)
            del gaps[at]
        if after is not None and (after.reason == gap.reason or mixing):
            gap = _join(gap, after)
            del gaps[at]
        gaps.insert(at, gap)

    def take(self) -> tuple[list[DroppedRange], int, list[bytes]]:
        """Remove and return the leading gaps, the number after them, and the lines that follow."""
        ranges: list[DroppedRange] = []
        for gap in self.gaps:
            if gap.first != self.next_out or len(ranges) == MAX_DROPPED_RANGES:
                break
            ranges.append((gap.first, gap.last, gap.reason))
            self.next_out = gap.last + 1
        del self.gaps[: len(ranges)]
        first = self.next_out
        room = BATCH_BYTES - _RANGE_BYTES * len(ranges)
        if not self.gaps and self.bytes <= room and len(self.lines) <= _BATCH_EVENTS:
            # The usual case, and what an event costs is mostly this: all that waits goes together.
            lines = [line for _number, line in self.lines]
            self.lines.clear()
            self.bytes = 0
            self.next_out = self.next_in
            return ranges, first, lines
        lines = []
        while self.lines and self.lines[0][0] == self.next_out and len(lines) < _BATCH_EVENTS:
            line = self.lines[0][1]
            room -= len(line)
            if room < 0:
                break
            self.lines.popleft()
            lines.append(line)
            self.bytes -= len(line)
            self.next_out += 1
        return ranges, first, lines


def _join(left: _Gap, right: _Gap) -> _Gap:
    return _Gap(left.first, right.last, left.reason if left.reason == right.reason else MIXED)


class Outbox:
    """Queues by priority between the module threads and the one writer.

    Emitters take turns (the caller's lock) from `number` to `put` or `refuse`; the writer may come in between.

    Args:
        limit: Most bytes of memory for waiting events.
        wake: Wakes the writer; called without the outbox's lock, only when the writer would come too late.

    Attributes:
        relieve: Called without the outbox's lock by whoever has just made a batch full: may write it at once, and
            says whether the pipe took it. The writer need not be waited for then, which in a process with one
            interpreter lock takes longer than the writing.
    """

    def __init__(self, limit: int, wake: Callable[[], None]) -> None:
        self.limit = limit
        self.wake = wake
        self.relieve: Callable[[], bool] = lambda: False
        self._lock = threading.Lock()
        self._queues: dict[Priority, _Queue] = {priority: _Queue() for priority in PRIORITIES}
        self._acks = False
        self._unacknowledged_bytes = 0
        self._used = 0  # kept in step with the queues, because every event asks for it
        self._dropped: Counter[str] = Counter()
        self._flushed_at = float("-inf")
        self._writer_comes_at = float("inf")

    def number(self, priority: Priority) -> int:
        """Return the number that the next event of a priority gets."""
        return self._queues[priority].next_in

    def put(self, priority: Priority, line: bytes, now: float) -> bool:
        """Queue one encoded event under the next number; never blocks on the pipe.

        A full outbox gives up events of lower priorities, the lowest first and in it the newest first; where
        that is not enough the new event itself is dropped.

        Args:
            priority: Its queue.
            line: One JSON document with its newline, at most `EVENT_BYTES`.
            now: Monotonic seconds.

        Returns:
            False when the event was dropped and counted.

        Raises:
            ValueError: The line is longer than `EVENT_BYTES`; no number was used.
        """
        size = len(line)
        if size > EVENT_BYTES:
            raise ValueError(f"an event of {size} bytes is over the limit of {EVENT_BYTES}")
        with self._lock:
            queue = self._queues[priority]
            number = queue.next_in
            queue.next_in = number + 1
            first = queue.next_out == number
            if first:
                queue.since = now
            used = self._used + size + ENTRY_BYTES
            fits = used <= self.limit or self._make_room(priority, used - self.limit)
            if fits:
                queue.lines.append((number, line))
                before = queue.bytes
                queue.bytes = after = before + size
                self._used += size + ENTRY_BYTES
                full = before // FLUSH_BYTES != after // FLUSH_BYTES
                late = first and self._writer_is_late()
            else:
                queue.drop(number, QUEUE_FULL)
                self._dropped[QUEUE_FULL] += 1
                full = late = self._writer_is_late()
        if full and not self.relieve():
            with self._lock:
                late = self._writer_is_late()
        if late:
            self.wake()
        return fits

    def refuse(self, priority: Priority, reason: str, now: float) -> None:
        """Give the next number to an event that cannot be sent: it is dropped for `reason` (12 characters)."""
        with self._lock:
            queue = self._queues[priority]
            if queue.next_out == queue.next_in:
                queue.since = now
            queue.drop(queue.next_in, reason)
            queue.next_in += 1
            self._dropped[reason] += 1
            late = self._writer_is_late()
        if late:
            self.wake()

    def take(self, now: float, *, force: bool = False) -> Events | None:
        """Return the next batch that should leave now, the most important priority first.

        Args:
            now: Monotonic seconds.
            force: Take what is there without waiting for more to come.
        """
        with self._lock:
            for priority, queue in self._queues.items():
                if queue.next_out == queue.next_in or not (force or now >= self._due(priority, queue)):
                    continue
                before = queue.cost()
                ranges, first, lines = queue.take()
                if self._acks and lines:
                    size = before - queue.cost()
                    queue.sent.append((first + len(lines) - 1, len(lines), size))
                    self._unacknowledged_bytes += size
                self._used -= before - queue.cost()
                if priority not in _URGENT and queue.next_out == queue.next_in:
                    self._flushed_at = now
                return Events(priority=priority, first=first, count=len(lines), data=b"".join(lines), dropped=ranges)
            return None

    def next_flush(self, now: float) -> float | None:
        """Return when the writer should come again (monotonic seconds), and rely on it coming by then.

        After a flush that is one flush interval later even with nothing queued, because a stream of events
        then needs one wakeup per interval instead of two. None: it need not come before it is woken.
        """
        with self._lock:
            at = min(
                (self._due(name, queue) for name, queue in self._queues.items() if queue.next_out < queue.next_in),
                default=None,
            )
            if at is None and now < self._flushed_at + FLUSH_SECONDS:
                at = self._flushed_at + FLUSH_SECONDS
            self._writer_comes_at = float("inf") if at is None else at
            return at

    def writer_waits_for_pipe(self) -> None:
        """Say that the writer comes back when the pipe has room, so that nobody needs to wake it."""
        with self._lock:
            self._writer_comes_at = float("-inf")

    def expect_acks(self, expected: bool) -> None:
        """Say whether the master acknowledges what it has stored. Then only so much is handed over ahead of that."""
        with self._lock:
            if self._acks and not expected:
                self._unacknowledged_bytes = 0
                for queue in self._queues.values():
                    queue.sent.clear()
            self._acks = expected

    def acknowledge(self, priority: Priority, through: int) -> None:
        """Note that the master answers for the events of a priority up to a number."""
        with self._lock:
            sent = self._queues[priority].sent
            while sent and sent[0][0] <= through:
                self._unacknowledged_bytes -= sent.popleft()[2]

    def unacknowledged(self) -> int:
        """Return how many events were handed over that nobody else answers for yet."""
        with self._lock:
            return sum(count for queue in self._queues.values() for _last, count, _size in queue.sent)

    def emitted(self) -> dict[Priority, int]:
        """Return how many numbers were given out, by priority; priorities never used are left out."""
        with self._lock:
            return {name: queue.next_in - 1 for name, queue in self._queues.items() if queue.next_in > 1}

    def queued(self) -> tuple[int, int]:
        """Return the events that wait and the bytes of their lines."""
        with self._lock:
            queues = self._queues.values()
            return sum(len(queue.lines) for queue in queues), sum(queue.bytes for queue in queues)

    def memory_bytes(self) -> int:
        """Return the bytes that count against the limit."""
        with self._lock:
            return self._used

    def dropped(self) -> dict[str, int]:
        """Return how many events were dropped here, by reason."""
        with self._lock:
            return dict(self._dropped)

    @property
    def empty(self) -> bool:
        """True when neither an event nor news of a drop waits."""
        with self._lock:
            return all(queue.next_out == queue.next_in for queue in self._queues.values())

    def _due(self, priority: Priority, queue: _Queue) -> float:
        if self._unacknowledged_bytes >= WINDOW_BYTES * (2 if priority in _URGENT else 1):
            return float("inf")  # the next acknowledgement wakes the writer
        if priority in _URGENT or queue.bytes >= FLUSH_BYTES:
            return float("-inf")
        # The first event after a quiet time goes at once; those after it share the next flush.
        return min(queue.since + FLUSH_SECONDS, max(queue.since, self._flushed_at + FLUSH_SECONDS))

    def _writer_is_late(self) -> bool:
        # Nothing may be left: another thread may have taken it meanwhile.
        due = min(
            (self._due(name, queue) for name, queue in self._queues.items() if queue.next_out < queue.next_in),
            default=float("inf"),
        )
        if due >= self._writer_comes_at:
            return False
        self._writer_comes_at = due
        return True

    def _make_room(self, priority: Priority, missing: int) -> bool:
        """Give up lines of lower priorities for `missing` bytes. False: that would not be enough, none was given up."""
        lower = [self._queues[name] for name in reversed(PRIORITIES[PRIORITIES.index(priority) + 1 :])]
        if sum(queue.cost() for queue in lower) < missing:
            return False  # giving up the others would not save this one
        for queue in lower:
            while missing > 0 and queue.lines:
                number, line = queue.lines.pop()
                queue.bytes -= len(line)
                queue.drop(number, QUEUE_FULL)
                self._dropped[QUEUE_FULL] += 1
                self._used -= len(line) + ENTRY_BYTES
                missing -= len(line) + ENTRY_BYTES
        return True
