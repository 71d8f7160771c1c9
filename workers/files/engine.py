"""The engine: goes through directories, and has judged what inotify or a scan points at.

All work is done by generators, in small steps, so that the module can wait, stop and take settings in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

from garrison.workers.files import disk
from garrison.workers.files.baseline import Baseline
from garrison.workers.files.entry import DIRECTORY, Entry
from garrison.workers.files.events import Reporter
from garrison.workers.files.intake import Intake
from garrison.workers.files.judge import Judge, Step, join, split
from garrison.workers.files.pace import Pace
from garrison.workers.files.settings import Config
from garrison.workers.files.targets import Map, State
from garrison.workers.files.watches import CONTENT, STRUCTURE, Watches
from garrison.workers.runtime.module import Sandbox

Mode = Literal["scan", "look", "new", "poll"]
"""`scan`: part of a look at everything. `look`: all below, because something has happened to the directory. `new`: it
has just appeared. `poll`: this directory, and new ones in it."""


class Engine:
    """Finds changes.

    Args:
        box: The sandbox.
        config: The settings.
        baseline: What was there.
        watches: Where to be told of changes.
        reporter: Where changes go.
        pace: Told what was used.
    """

    def __init__(
        self, box: Sandbox, config: Config, baseline: Baseline, watches: Watches, reporter: Reporter, pace: Pace
    ) -> None:
        self._box = box
        self._baseline = baseline
        self._watches = watches
        self._report = reporter
        self.config = config
        self.intake = Intake(watches, lambda: self.map, config.settle_seconds, config.settle_max_seconds, box.clock)
        self._judge = Judge(config, baseline, watches, reporter, pace, self.intake, box.clock, self._appeared)
        self.map = self._judge.map
        self.counts: dict[str, int] = dict.fromkeys(
            ("scans", "visits", "unreadable_directories", "depth_refused", "mounts_skipped", "unwatched"), 0
        )
        self.scanning = False
        """Whether a look at everything is under way."""
        self.exhausted = False
        """Whether some directory could not be watched."""
        self._scanned = self._again = self._rehash = self._polling = False
        self._visits: tuple[dict[str, Mode], dict[str, Mode]] = ({}, {})
        self._mounts: dict[str, str] = {}
        self._skipped: set[str] = set()
        self._scan = baseline.last_scan()
        self._scan_began = 0.0
        self._told: set[str] = set()
        self._works: list[Iterator[None] | None] = [None, None]

    # What the module asks for

    def retarget(self, config: Config, targets: Map) -> None:
        """Take new settings; the caller begins a scan."""
        self.config = self._judge.config = config
        self.map = self._judge.map = targets
        self._watches.limit = config.watches_max
        self.intake.pending.limit(config.settle_seconds, config.settle_max_seconds)

    def begin_scan(self, *, accept: bool = False, rehash: bool = False) -> None:
        """Look at everything; one that is under way ends first, unless it has to start over for `accept`.

        Args:
            accept: Take the disk as it is, without a word.
            rehash: Hash files whose times have not changed too.
        """
        self._judge.accepting = self._judge.accepting or accept
        self._rehash = self._rehash or rehash
        if self.scanning:
            self._again = True
            return
        self._start_scan()

    def restart(self) -> None:
        """Drop all work under way and look at everything: the baseline is another one."""
        self._works = [None, None]
        self._visits = ({}, {})
        self.scanning = self._again = self._polling = False
        self._judge.learnt = self._baseline.learnt()
        self._scan = self._baseline.last_scan()
        self._start_scan()

    def begin_poll(self) -> None:
        """Look at the directories that are not watched."""
        if not self.scanning:
            self._polling = True

    def drain(self) -> bool:
        """Take in what inotify has. True: there was something."""
        return self.intake.drain()

    def busy(self, now: float) -> bool:
        """Tell whether there is work that could be done at a monotonic time."""
        if any(self._works) or any(self._visits) or self.scanning or self._polling or self.intake.moves:
            return True
        due = self.intake.next_due()
        return bool(self.intake.appeared) or (due is not None and due <= now)

    def next_due(self) -> float | None:
        """Return when there will be work, monotonic, if nothing comes meanwhile."""
        return self.intake.next_due()

    def step(self, now: float) -> bool:
        """Do a little work. False: there is none."""
        self.intake.expire(now)
        for path in self.intake.take_appeared():
            self._push(path, "new")
        worked = False
        for index, source in enumerate((self._judging, self._scanning)):
            work = self._works[index]
            if work is None:
                work = source(now)
            try:
                next(work)
            except StopIteration:
                self._works[index] = None
                continue
            self._works[index] = work
            worked = True
        return worked

    def statistics(self) -> dict[str, Any]:
        """Return the counters and what there is now."""
        return {
            **self.counts,
            **self._judge.counts,
            **self.intake.counts,
            "entries": self._baseline.count,
            "watches": len(self._watches),
            "pending": len(self.intake.pending),
            "scanning": self.scanning,
            "persistent": self._baseline.persistent,
            "targets_learnt": len(self._judge.learnt & self.map.keys),
            "targets": len(self.map.keys),
        }

    # Judging what inotify told

    def _judging(self, now: float) -> Step:
        while self.intake.moves:
            source, target = self.intake.moves.popleft()
            yield from self._judge.move(source, target)
        change = self.intake.pending.take(now)
        if change is None:
            return
        rest = self._judge.resting_until(change.path)
        if change.content and now < rest:
            later = self.intake.touch(change.path)
            if later is not None:
                later.content, later.created, later.moved_from = change.content, change.created, change.moved_from
                later.not_before = rest
            return
        folder, name = split(change.path)
        since = self._judge.epoch
        try:
            fd = disk.open_directory(folder)
        except OSError as error:
            if error.errno in disk.GONE:
                row = self._baseline.get(folder, name)
                if row is not None:
                    yield from self._judge.remove(folder, name, row, self.map.state(change.path), "inotify")
            else:
                self.counts["unreadable_directories"] += 1
            return
        try:
            yield from self._judge.check(
                fd,
                folder,
                name,
                self.map.state(change.path),
                "inotify",
                since,
                force=change.content,
                live=change.created,
                was=change.moved_from,
                tries=change.tries,
            )
        finally:
            os.close(fd)
        if change.moved_from is not None:
            again = self.intake.touch(change.moved_from)
            if again is not None:
                again.content = True
        yield

    # Looking at directories

    def _scanning(self, now: float) -> Step:
        for visits in self._visits:
            if visits:
                path, mode = visits.popitem()
                yield from self._visit(path, mode)
                return
        if self.scanning:
            yield from self._sweep()
        elif self._polling:
            yield from self._poll()

    def _start_scan(self) -> None:
        self.scanning, self._again, self._polling = True, False, False
        self._scan += 1
        self._scan_began = self._box.clock.monotonic()
        self.counts["scans"] += 1
        self.counts["unwatched"] = 0
        self.exhausted = False
        self._judge.counts["entries_refused"] = self._judge.counts["paths_refused"] = 0
        self.counts["depth_refused"] = self.counts["mounts_skipped"] = 0
        self._skipped.clear()
        try:
            self._mounts = disk.read_mounts()
        except OSError as error:
            self._box.log.warning("/proc/self/mountinfo cannot be read (%s): mount points are not seen", error)
        self._push("/", "scan")

    def _sweep(self) -> Step:
        """End a scan: what it has not come to is gone, or nobody's business any more."""
        while paths := self._baseline.unvisited(self._scan):
            for path in paths:
                state = self.map.state(path)
                if state is None or self._boundary(path, state) is not None:
                    self._baseline.drop(path)
                    self._watches.forget(path)
                else:
                    yield from self._visit(path, "scan")
                    # Whatever came of it, the sweep has been here.
                    if self._baseline.tree(path) is not None:
                        self._baseline.visit(path, self._scan, watched=self._watches.has(path))
                yield
            if any(self._visits):
                return
        if any(self._visits):
            return
        self._end_scan()

    def _end_scan(self) -> None:
        self.scanning, self._scanned = False, True
        fresh = self.map.keys - self._judge.learnt
        self._judge.learnt = set(self.map.keys)
        self._baseline.learn(self.map.keys)
        seconds = self._box.clock.monotonic() - self._scan_began
        if fresh or self._judge.accepting:
            self._report.state(
                "baseline-complete",
                f"the baseline has {self._baseline.count} entries; looking took {seconds:.0f} s",
                {"entries": self._baseline.count, "seconds": round(seconds, 1), "accepted": self._judge.accepting},
            )
        self._box.log.info("looked at %d entries in %.1f s", self._baseline.count, seconds)
        self._tell_limits()
        self._judge.first = self._judge.accepting = self._rehash = False
        if self._again:
            self._start_scan()

    def _tell_limits(self) -> None:
        """Say once per limit that something is left out."""
        config = self.config
        for name, setting, value in (
            ("entries_refused", "entries_max", config.entries_max),
            ("depth_refused", "depth_max", config.depth_max),
            ("paths_refused", "path_bytes_max", config.path_bytes_max),
        ):
            count = (self._judge.counts if name in self._judge.counts else self.counts)[name]
            if count and name not in self._told:
                self._told.add(name)
                self._report.state(
                    "limit-reached",
                    f"{count} entries are not tracked: {setting} is {value}; raise it, or exclude something",
                    {"setting": setting, "limit": value, "left_out": count},
                )
            elif not count:
                self._told.discard(name)
        if self._skipped and "mounts" not in self._told:
            self._told.add("mounts")
            paths = sorted(self._skipped)
            self._report.state(
                "mounts-skipped",
                f"{len(paths)} mount points are not looked into: {', '.join(paths[:10])}",
                {"mounts": paths[:50], "count": len(paths)},
            )

    def tell_watches(self) -> None:
        """Say when watches have run out, and when there are enough again."""
        if self.exhausted and "watches" not in self._told:
            self._told.add("watches")
            why = self._watches.problem or (
                f"{len(self._watches)} directories are watched and more cannot be: raise fs.inotify.max_user_watches "
                f"or the setting watches_max ({self.config.watches_max})"
            )
            message = f"{why}; the others are looked at every {self.config.poll_seconds:g} s"
            self._box.log.warning("%s", message)
            self._report.state("watch-limit", message, {"watches": len(self._watches)})
        elif not self.exhausted and self._scanned and not self.scanning and "watches" in self._told:
            self._told.discard("watches")
            self._report.state("watch-limit-over", "every directory is watched again", {"watches": len(self._watches)})

    def _poll(self) -> Step:
        self._polling = False
        at = ""
        while paths := self._baseline.unwatched(at):
            for at in paths:
                yield from self._visit(at, "poll")
                yield

    def _push(self, path: str, mode: Mode) -> None:
        """Plan to look at a directory. Those where a change is an alert come first."""
        state = self.map.state(path)
        if state is None:
            return
        visits = self._visits[0 if state.alert else 1]
        if visits.get(path) != "scan" or mode == "scan":
            visits.pop(path, None)
            visits[path] = mode

    def _boundary(self, path: str, state: State) -> str | None:
        """Return why a path is not looked into for being, or being below, a mount point; None: it is."""
        if path in self._mounts and path != "/":
            kind = self._mounts[path]
            if disk.is_network(kind) and not self.config.network_filesystems:
                return kind
            if state.target is not None and state.depth > 0 and not self.config.cross_filesystems:
                return kind
        return None

    def _visit(self, path: str, mode: Mode) -> Step:
        state = self.map.state(path)
        if state is None:
            return
        if state.depth > self.config.depth_max:
            self.counts["depth_refused"] += 1
            return
        if self._boundary(path, state) is not None:
            if state.target is not None or state.nodes:
                self._skipped.add(path)
                self.counts["mounts_skipped"] += 1
            return
        self.counts["visits"] += 1
        try:
            fd = disk.open_directory(path)
        except OSError as error:
            if error.errno in disk.GONE:
                yield from self._judge.gone(path, "poll" if mode == "poll" else "scan")
            else:
                self.counts["unreadable_directories"] += 1
                self._baseline.visit(path, self._scan, watched=False)
            return
        try:
            yield from self._look_through(fd, path, state, mode)
        finally:
            os.close(fd)

    def _look_through(self, fd: int, path: str, state: State, mode: Mode) -> Step:
        since = self._judge.epoch
        # First the watch, then the list: what appears in between is told, what was there before is listed.
        watched = self._watch(fd, path, state)
        self._baseline.visit(path, self._scan, watched=watched)
        yield
        try:
            names = self._names(fd, state)
        except OSError:
            self.counts["unreadable_directories"] += 1
            return
        known: list[tuple[bytes, Entry]] = []
        more, last, index = True, b"", 0
        while True:
            if not known and more:
                known = self._baseline.after(path, last)
                more = bool(known)
            if index >= len(names) and not known:
                return
            if self._judge.displaced(path, since):
                # It has another name by now, under which it is looked at again.
                return
            raw = names[index] if index < len(names) else None
            if known and (raw is None or known[0][0] <= raw):
                last, row = known.pop(0)
                name = os.fsdecode(last)
                if last == raw:
                    index += 1
                child = self.map.step(state, join(path, name), name)
                if last != raw and child is not None and child.target is not None and disk.look(fd, name) is None:
                    yield from self._judge.remove(path, name, row, child, _origin(mode))
                    continue
            else:
                assert raw is not None
                name, row = os.fsdecode(raw), None
                index += 1
                child = self.map.step(state, join(path, name), name)
            yield from self._look_at(fd, path, name, child, mode, since, known=row is not None)
            yield

    def _look_at(
        self, fd: int, path: str, name: str, child: State | None, mode: Mode, since: int, *, known: bool
    ) -> Step:
        """Look at one entry during a visit."""
        full = join(path, name)
        if mode == "new" and not known and child is not None:
            # It settles first, for its writer may not be done.
            facts = self._judge.facts(fd, name)
            if facts is not None and facts.kind == DIRECTORY:
                self._push(full, "new")
            if facts is not None and (child.target is not None or facts.kind != DIRECTORY):
                self.intake.touch_created(full)
            return
        rehash = self._rehash and mode == "scan"
        kind = yield from self._judge.check(fd, path, name, child, _origin(mode), since, force=rehash)
        if kind == DIRECTORY and child is not None and (mode != "poll" or not known):
            self._push(full, "look" if mode == "poll" else mode)

    def _appeared(self, path: str, new: bool) -> None:
        self._push(path, "new" if new else "look")

    def _names(self, fd: int, state: State) -> list[bytes]:
        """Return the names that matter in an open directory, in the order of their bytes."""
        if state.target is None and not any(node.globs for node in state.nodes):
            # Only on the way: a crowded directory is not listed for a few known names.
            names = {name for node in state.nodes for name in node.literal}
            return sorted(os.fsencode(name) for name in names if self._judge.facts(fd, name) is not None)
        limit = self.config.entries_max
        found: list[bytes] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                if len(found) >= limit:
                    self._judge.counts["entries_refused"] += 1
                    break
                found.append(os.fsencode(entry.name))
        found.sort()
        return found

    def _watch(self, fd: int, path: str, state: State) -> bool:
        files_here = state.target is not None or any(
            child.target is not None
            for node in state.nodes
            for child in (*node.literal.values(), *(other for _, other in node.globs.values()))
        )
        added = self._watches.add(fd, path, CONTENT if files_here else STRUCTURE)
        if added != "watched":
            self.counts["unwatched"] += 1
            self.exhausted = self.exhausted or added == "exhausted"
        return added == "watched"


def _origin(mode: Mode) -> str:
    return mode if mode in ("scan", "poll") else "inotify"
