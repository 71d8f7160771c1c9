"""What the kernel tells: read quickly, so that its queue does not overflow, and sorted for later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from inotify_simple import flags

from garrison.workers.files.pending import Change, Pending
from garrison.workers.files.targets import Map
from garrison.workers.files.watches import Watches
from garrison.workers.runtime.module import Clock

READS: Final = 64
"""Reads of 64 KiB at a time: four times what the kernel queues by default with names of usual length."""
MAX_MOVES: Final = 256
MAX_APPEARED: Final = 16_384
MAX_COOKIES: Final = 1024
COOKIE_SECONDS: Final = 0.5
"""How long the first half of a rename waits for the second, which the kernel queues right behind it."""

_OVERFLOW: Final = int(flags.Q_OVERFLOW)
_IGNORED: Final = int(flags.IGNORED)
_UNMOUNT: Final = int(flags.UNMOUNT)
_ISDIR: Final = int(flags.ISDIR)
_FROM: Final = int(flags.MOVED_FROM)
_TO: Final = int(flags.MOVED_TO)
_CREATED: Final = int(flags.CREATE | flags.MOVED_TO)
_CONTENT: Final = int(flags.MODIFY | flags.CLOSE_WRITE | flags.CREATE | flags.MOVED_TO)


class Intake:
    """Reads the watches.

    Args:
        watches: Where events come from.
        targets: Returns the map in force.
        settle: Seconds of quiet before a change is judged.
        settle_max: Most seconds.
        clock: For the time of each event.

    Attributes:
        pending: Changes that settle.
        moves: Renamed directories, source and target, in their order.
        appeared: New directories to look at.
        overflowed: Events were lost: everything must be looked at. The reader clears it.
        users_changed: /etc/passwd has changed. The reader clears it.
    """

    def __init__(
        self, watches: Watches, targets: Callable[[], Map], settle: float, settle_max: float, clock: Clock
    ) -> None:
        self._watches = watches
        self._targets = targets
        self._clock = clock
        self.pending = Pending(settle, settle_max)
        self.moves: deque[tuple[str, str]] = deque()
        self.appeared: dict[str, None] = {}
        self.overflowed = False
        self.users_changed = False
        self.counts: dict[str, int] = dict.fromkeys(("kernel_events", "overflows", "full"), 0)
        self._cookies: dict[int, tuple[str, bool, float]] = {}

    def drain(self) -> bool:
        """Take in what there is. True: there was something."""
        any_read = False
        for _ in range(READS):
            found = self._watches.read()
            if not found:
                break
            any_read = True
            self.counts["kernel_events"] += len(found)
            for event in found:
                self._take(event.wd, event.mask, event.cookie, event.name)
        return any_read

    def next_due(self) -> float | None:
        """Return the monotonic time at which something waits to be done, or None."""
        due = self.pending.next_due()
        for _, _, since in self._cookies.values():
            # The first one is the oldest.
            half = since + COOKIE_SECONDS
            return half if due is None else min(half, due)
        return due

    def touch(self, path: str) -> Change | None:
        """Have a path judged; where there is no room for it, everything will be."""
        change = self.pending.touch(path, self._clock.monotonic())
        if change is None and not self.overflowed:
            self.overflowed = True
            self.counts["full"] += 1
        return change

    def touch_created(self, path: str) -> None:
        """Have a new path judged."""
        change = self.touch(path)
        if change is not None:
            change.created = change.content = True

    def take_appeared(self) -> Iterator[str]:
        """Yield and forget the new directories, the oldest first."""
        while self.appeared:
            path = next(iter(self.appeared))
            del self.appeared[path]
            yield path

    def _take(self, wd: int, mask: int, cookie: int, name: str) -> None:
        if mask & _OVERFLOW:
            self.counts["overflows"] += 1
            self.overflowed = True
            self._cookies.clear()
            return
        folder = self._watches.path(wd)
        if mask & _IGNORED:
            self._watches.ended(wd)
            return
        if folder is None:
            return
        if mask & _UNMOUNT:
            self._appear(folder)
            return
        if not name:
            return
        path = f"/{name}" if folder == "/" else f"{folder}/{name}"
        if path == "/etc/passwd":
            self.users_changed = True
        state = self._targets().state(path)
        if state is None:
            if mask & _FROM and cookie:
                self._cookies.pop(cookie, None)
            return
        directory = bool(mask & _ISDIR)
        if mask & _FROM and cookie:
            self._remember(cookie, path, directory)
            return
        if mask & _TO:
            source = self._cookies.pop(cookie, None)
            if source is not None:
                self._moved(source[0], path, directory)
                return
        if directory and mask & _CREATED:
            self._appear(path)
        change = self.touch(path)
        if change is not None and mask & _CONTENT:
            change.content = True
            change.created = change.created or bool(mask & _CREATED)

    def _remember(self, cookie: int, path: str, directory: bool) -> None:
        self._cookies[cookie] = (path, directory, self._clock.monotonic())
        if len(self._cookies) > MAX_COOKIES:
            self._left(self._cookies.pop(next(iter(self._cookies))))

    def _moved(self, source: str, target: str, directory: bool) -> None:
        if not directory:
            if self.pending.moved(source, target, self._clock.monotonic()) is None:
                self.overflowed = True
                self.counts["full"] += 1
            return
        if len(self.moves) >= MAX_MOVES:
            # Too many to follow: a look at everything sees deletions and creations instead.
            self.moves.clear()
            self.overflowed = True
            self.counts["full"] += 1
            return
        self.moves.append((source, target))

    def _left(self, half: tuple[str, bool, float]) -> None:
        """Take a rename to a place that is not watched for a deletion."""
        path, directory, _ = half
        self.touch(path)
        if directory:
            self._watches.forget(path)

    def expire(self, now: float) -> None:
        """Take renames whose second half has not come for deletions; `now` is monotonic."""
        for cookie, half in list(self._cookies.items()):
            if now < half[2] + COOKIE_SECONDS:
                return
            del self._cookies[cookie]
            self._left(half)

    def _appear(self, path: str) -> None:
        if len(self.appeared) < MAX_APPEARED:
            self.appeared[path] = None
        else:
            self.overflowed = True
            self.counts["full"] += 1
