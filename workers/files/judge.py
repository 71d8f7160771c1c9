"""Judging one entry: the disk against the baseline.

Everything that changes the baseline ends in `_compare`: events of the kernel only say where to look. So whatever is
lost or comes late, the baseline ends up as the disk is. The work is done by generators, which the module goes on
with in small steps; while one is suspended others may change rows and paths, so each looks again after a pause.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Final

from garrison.workers.files import disk
from garrison.workers.files.baseline import Baseline
from garrison.workers.files.entry import DIRECTORY, FILE, RACY, UNHASHED, Entry, action_for, differences
from garrison.workers.files.events import Reporter
from garrison.workers.files.intake import Intake
from garrison.workers.files.pace import Pace
from garrison.workers.files.reading import Hasher
from garrison.workers.files.settings import Config
from garrison.workers.files.targets import Map, State, Target, below
from garrison.workers.files.watches import Watches
from garrison.workers.runtime.module import Clock

Step = Generator[None, None, None]

RACY_NS: Final = 50_000_000
"""A file changed so shortly before it was hashed (two ticks of the slowest kernel clock and some more) may have been
changed again within the same tick."""
MAX_TRIES: Final = 3
"""How often a file that changes while it is read is read again before what was read counts."""
HASH_REST: Final = 10
"""A file is not hashed again within so many times the seconds that reading it takes."""
MAX_RESTING: Final = 1024


class Judge:
    """Compares entries with their rows.

    Args:
        config: The settings.
        baseline: What was there.
        watches: Told of directories that are gone.
        reporter: Where changes go.
        pace: Told what was read.
        intake: Where what must be judged again goes.
        clock: Monotonic time.
        appeared: Called with a directory that must be looked through, and whether it has just appeared.

    Attributes:
        map: What is tracked.
        learnt: Keys of targets that were looked at once: what is new there is news.
        accepting: Take everything without a word.
        first: The first scan after the start is under way: what it finds happened while the agent was off.
    """

    def __init__(
        self,
        config: Config,
        baseline: Baseline,
        watches: Watches,
        reporter: Reporter,
        pace: Pace,
        intake: Intake,
        clock: Clock,
        appeared: Callable[[str, bool], None],
    ) -> None:
        self.config = config
        self.map = Map(())
        self.learnt = baseline.learnt()
        self.accepting = False
        self.first = True
        self.epoch = 0
        """Grows with each renamed directory."""
        self.counts: dict[str, int] = dict.fromkeys(
            ("hashed", "hashed_bytes", "unreadable", "unstable", "moves", "entries_refused", "paths_refused"), 0
        )
        self._baseline = baseline
        self._watches = watches
        self._report = reporter
        self._pace = pace
        self._intake = intake
        self._clock = clock
        self._appeared = appeared
        self._hasher = Hasher()
        self._displacements: deque[tuple[int, str]] = deque(maxlen=256)
        self._resting: dict[str, float] = {}

    def resting_until(self, path: str) -> float:
        """Return the monotonic time before which a file is not hashed again."""
        return self._resting.get(path, 0.0)

    def facts(self, fd: int, name: str) -> Entry | None:
        """Describe an entry of an open directory, or return None where there is none or it cannot be read."""
        try:
            return disk.look(fd, name)
        except OSError:
            self.counts["unreadable"] += 1
            return None

    def check(
        self,
        fd: int,
        folder: str,
        name: str,
        state: State | None,
        origin: str,
        since: int,
        *,
        force: bool = False,
        live: bool = False,
        was: str | None = None,
        tries: int = 0,
    ) -> Generator[None, None, str | None]:
        """Compare an entry with its row, and take it into the baseline; return the kind of what is there.

        Args:
            fd: The open directory.
            folder: Its path.
            name: The entry.
            state: What the map says of the entry.
            origin: ``event.provider``.
            since: `epoch` when the directory was opened.
            force: Hash it whatever its times say.
            live: Its creation was seen.
            was: Its path before a rename.
            tries: How often it has changed while it was read.
        """
        path = join(folder, name)
        try:
            facts = disk.look(fd, name)
        except OSError:
            self.counts["unreadable"] += 1
            return None
        row = self._baseline.get(folder, name)
        if facts is None:
            if row is not None:
                yield from self.remove(folder, name, row, state, origin)
            elif state is not None and state.nodes:
                # Only on the way, so it has no row; what was below it is gone too.
                yield from self.gone(path, origin)
            return None
        if state is None or not self.map.wanted(state, path, name, facts.kind):
            if row is not None:
                self._baseline.delete(folder, name)
            return facts.kind
        if len(os.fsencode(path)) > self.config.path_bytes_max:
            self.counts["paths_refused"] += 1
            return facts.kind
        if facts.kind == FILE:
            fresh = row is None or force or not row.same_times(facts) or bool(row.flags & RACY)
            if facts.size > self.config.hash_max_bytes:
                facts = facts._replace(flags=UNHASHED)
            elif fresh:
                hashed = yield from self._hash(fd, path, name, facts, tries, live=live, was=was)
                if hashed is None or self.displaced(folder, since):
                    return facts.kind
                facts = hashed
            elif row is not None:
                facts = facts._replace(sha256=row.sha256, flags=row.flags)
        yield from self._compare(folder, name, facts, state, origin, live=live, was=was)
        return facts.kind

    def _hash(
        self, fd: int, path: str, name: str, facts: Entry, tries: int, *, live: bool, was: str | None
    ) -> Generator[None, None, Entry | None]:
        """Read a file; None where it has changed meanwhile and is judged again later."""
        try:
            file = disk.open_file(fd, name)
        except OSError:
            return facts._replace(flags=UNHASHED) if self.facts(fd, name) is not None else None
        digest: bytes | None = None
        try:
            before = disk.describe(os.fstat(file), FILE)
            if before.size > self.config.hash_max_bytes:
                return before._replace(flags=UNHASHED)
            for piece in self._hasher.hash(file, before.size):
                if isinstance(piece, bytes):
                    digest = piece
                else:
                    self.counts["hashed_bytes"] += piece
                    self._pace.read(piece, self._clock.monotonic())
                    yield
            after = disk.describe(os.fstat(file), FILE)
        except OSError:
            self.counts["unreadable"] += 1
            return facts._replace(flags=UNHASHED)
        finally:
            os.close(file)
        self.counts["hashed"] += 1
        self._rest(path, before.size)
        if not before.same_times(after) and tries < MAX_TRIES:
            self.counts["unstable"] += 1
            change = self._intake.touch(path)
            if change is not None:
                change.content, change.tries = True, tries + 1
                change.created, change.moved_from = change.created or live, change.moved_from or was
            return None
        current = self.facts(fd, name)
        if current is None or current.inode != before.inode:
            # Another file has its name by now; that has been told, or a later look finds it.
            self._intake.touch(path)
            return None
        racy = time.time_ns() - max(before.mtime_ns, before.ctime_ns) < RACY_NS
        return before._replace(sha256=digest, flags=RACY if racy else 0)

    def _compare(
        self, folder: str, name: str, entry: Entry, state: State, origin: str, *, live: bool, was: str | None
    ) -> Step:
        """Judge an entry. Up to the end of this nothing else can come in between."""
        path = join(folder, name)
        owner = state.owner
        row = self._baseline.get(folder, name)
        moved = self._moved_row(was, entry)
        if row is None and moved is None and self._baseline.count >= self.config.entries_max:
            self.counts["entries_refused"] += 1
            return
        silent = self.accepting or (owner is not None and owner.key not in self.learnt and not live)
        offline = self.first and origin == "scan" and not silent
        if moved is not None and was is not None and path != was:
            at, before = split(was)
            self._baseline.delete(at, before)
            self._baseline.put(folder, name, entry)
            source = self.map.state(was)
            if source is not None and source.target is not None and source.target.alert and not state.alert:
                owner = source.target
            self._report.change(
                "renamed",
                path,
                entry,
                owner,
                origin,
                old=moved,
                changed=differences(moved, entry),
                was=was,
                replaced=row,
            )
            return
        if row is not None and row.kind == DIRECTORY and entry.kind != DIRECTORY:
            yield from self.gone(path, origin)
            row = self._baseline.get(folder, name) or row
        if row == entry:
            return
        self._baseline.put(folder, name, entry)
        if row is None:
            if not silent:
                self._report.change("created", path, entry, owner, origin, offline=offline)
            if entry.kind == DIRECTORY and origin == "inotify" and not self._watches.has(path):
                self._appeared(path, True)
            return
        changed = differences(row, entry)
        action = action_for(changed, times=self.config.report_times)
        if entry.kind == DIRECTORY and (row.kind != DIRECTORY or row.inode != entry.inode):
            self._appeared(path, False)
        if action is not None and not silent:
            self._report.change(action, path, entry, owner, origin, old=row, changed=changed, offline=offline)

    def _moved_row(self, was: str | None, entry: Entry) -> Entry | None:
        """Return the row of a file that was renamed to here, if that is what happened."""
        if was is None:
            return None
        folder, name = split(was)
        row = self._baseline.get(folder, name)
        return row if row is not None and row.inode == entry.inode and row.kind == entry.kind else None

    def remove(self, folder: str, name: str, row: Entry, state: State | None, origin: str) -> Step:
        """Take what is no longer there out of the baseline."""
        path = join(folder, name)
        if row.kind == DIRECTORY:
            # Perhaps it was renamed a moment ago, and the news is still waiting.
            self._intake.drain()
            if any(below(path, source) for source, _ in self._intake.moves):
                return
            yield from self.gone(path, origin)
        if self._baseline.get(folder, name) is None:
            return
        self._baseline.delete(folder, name)
        self._tell_deleted(path, row, state, origin)
        yield

    def gone(self, path: str, origin: str) -> Step:
        """Take a directory out of the baseline with all below it."""
        while (folder := self._baseline.tree(path)) is not None:
            last = b""
            while rows := self._baseline.after(folder, last):
                for raw, row in rows:
                    last = raw
                    name = os.fsdecode(raw)
                    if self._baseline.get(folder, name) is None:
                        continue
                    self._baseline.delete(folder, name)
                    full = join(folder, name)
                    self._tell_deleted(full, row, self.map.state(full), origin)
                    yield
            self._baseline.drop(folder)
        self._watches.forget(path)

    def _tell_deleted(self, path: str, row: Entry, state: State | None, origin: str) -> None:
        owner: Target | None = state.owner if state is not None else None
        if state is None or self.accepting:
            return
        offline = self.first and origin == "scan"
        self._report.change("deleted", path, row, owner, origin, offline=offline)

    def displaced(self, path: str, since: int) -> bool:
        """Tell whether a directory has got another path since, by a rename of it or of one above it."""
        return self.epoch != since and any(
            epoch > since and below(path, folder) for epoch, folder in self._displacements
        )

    def _rest(self, path: str, size: int) -> None:
        """Keep a file that is written all the time from being read all the time."""
        seconds = HASH_REST * size / self.config.read_bytes_per_second
        if seconds <= self.config.settle_max_seconds:
            self._resting.pop(path, None)
            return
        self._resting[path] = self._clock.monotonic() + seconds
        while len(self._resting) > MAX_RESTING:
            del self._resting[next(iter(self._resting))]

    def move(self, source: str, target: str) -> Step:
        """Take a renamed directory along, with all that is known below it."""
        self.counts["moves"] += 1
        folder, name = split(source)
        row = self._baseline.get(folder, name)
        state = self.map.state(target)
        if row is None or state is None or state.target is None:
            # Unknown, or it leaves what is tracked: each end is judged by itself.
            for path in (source, target):
                self._intake.touch(path)
            self._watches.forget(source)
            self._appeared(target, True)
            return
        into, new = split(target)
        before = self._baseline.get(into, new)
        if before is not None:
            yield from self.remove(into, new, before, state, "inotify")
        while (orphan := self._baseline.tree(target)) is not None:
            self._baseline.drop(orphan)
        row = self._baseline.get(folder, name)
        if row is None:
            self._appeared(target, True)
            return
        self.epoch += 1
        self._displacements.append((self.epoch, source))
        self._displacements.append((self.epoch, target))
        self._baseline.delete(folder, name)
        self._baseline.move(source, target)
        self._baseline.put(into, new, row)
        self._watches.moved(source, target)
        other = self.map.state(source)
        owner = state.target
        if other is not None and other.target is not None and other.target.alert and not owner.alert:
            owner = other.target
        self._report.change("renamed", target, row, owner, "inotify", was=source)
        # What has changed in there while the paths did not fit is found by looking.
        self._appeared(target, False)
        yield


def join(folder: str, name: str) -> str:
    """Return the path of an entry of a directory."""
    return f"/{name}" if folder == "/" else f"{folder}/{name}"


def split(path: str) -> tuple[str, str]:
    """Return the directory and the name of a path."""
    folder, _, name = path.rpartition("/")
    return folder or "/", name
