"""The files module in a thread of its own on a real tree, and the baseline compared with the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from garrison.workers.files import MODULE
from garrison.workers.files.baseline import Baseline
from garrison.workers.files.entry import DIRECTORY, FILE, LINK, Entry
from garrison.workers.files.settings import Config
from tests.integration._process_support import RecordingBox, matches

DEADLINE = 60.0
FAST: dict[str, Any] = {
    "presets": (),
    "cpu_percent": 100.0,
    "read_bytes_per_second": 1024**3,
    "events_per_second": 100_000.0,
    "settle_seconds": 0.05,
    "settle_max_seconds": 0.5,
    "stats_seconds": 0.0,
}


def config(*paths: Path, **more: Any) -> Config:
    """Return settings that watch these paths as fast as the machine allows."""
    return Config(**{**FAST, "paths": tuple(str(path) for path in paths), **more})


class Running:
    """One run of the module, as the runtime has it."""

    def __init__(self, settings: Config, state: Path | str) -> None:
        self.box = RecordingBox(settings)  # type: ignore[arg-type]
        self.box.name = self.box.worker = "files"
        self.box.state_dir = str(state)
        self.module = MODULE()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.module.init(self.box)
            self.module.run(self.box)
        except BaseException as error:
            self.failure = error
        finally:
            self.module.shutdown(self.box)
            with self.box.changed:
                self.box.changed.notify_all()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.box.stop()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the module does not stop"
        self.box.close()
        if self.failure is not None:
            raise self.failure

    def call(self, function: Callable[[], Any]) -> Any:
        """Run something in the module's thread, from `wait`."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            try:
                result.append(function())
            except Exception as error:
                result.append(error)
            done.set()

        self.box.calls.put(run)
        self.box.wake()
        end = time.monotonic() + DEADLINE
        while not done.wait(0.1):
            assert self.failure is None, self.failure
            assert time.monotonic() < end, "the module does not come back to wait"
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

    def task(self, name: str, **arguments: Any) -> Any:
        return self.call(lambda: self.module.task(self.box, name, arguments))

    def stats(self) -> Any:
        return self.task("stats")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the module's thread inside `wait`: it reads nothing until this is left."""
        inside, go_on = threading.Event(), threading.Event()

        def pause() -> None:
            inside.set()
            go_on.wait()

        self.box.calls.put(pause)
        self.box.wake()
        try:
            assert inside.wait(DEADLINE)
            yield
        finally:
            go_on.set()

    def configure(self, settings: Config) -> None:
        def change() -> None:
            self.module.reconfigure(self.box, settings)
            self.box.config = settings

        self.call(change)

    def until(self, holds: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
        end = time.monotonic() + deadline
        with self.box.changed:
            while True:
                if self.failure is not None:
                    raise AssertionError(f"the module failed while waiting for {what}") from self.failure
                value = holds()
                if value:
                    return value
                left = end - time.monotonic()
                assert left > 0, f"no {what} within {deadline} s; {self.box.events[-5:]} {self.box.log.lines[-5:]}"
                self.box.changed.wait(min(left, 0.1))

    def event(self, deadline: float = DEADLINE, **wanted: Any) -> dict[str, Any]:
        """Wait for a document; keys are paths with ``__`` for dots."""
        found: dict[str, Any] = self.until(
            lambda: next((e for e in self.box.events if matches(e, wanted)), None), f"event {wanted}", deadline
        )
        return found

    def change(self, action: str, path: Path, **wanted: Any) -> dict[str, Any]:
        return self.event(event__action=action, file__path=str(path), **wanted)

    def all(self, **wanted: Any) -> list[dict[str, Any]]:
        with self.box.changed:
            return [event for event in self.box.events if matches(event, wanted)]

    def changes(self) -> list[tuple[str, str]]:
        """Return action and path of all changes so far."""
        with self.box.changed:
            return [(e["event"]["action"], e["file"]["path"]) for e in self.box.events if "file" in e]

    def scanned(self, scans: int = 1) -> None:
        """Wait until that many looks at everything have ended."""
        self.until(
            lambda: sum(line.startswith("looked at") for _, line in self.box.log.lines) >= scans,
            f"the end of scan {scans}",
        )

    def scans(self) -> int:
        return sum(line.startswith("looked at") for _, line in self.box.log.lines)

    def settled(self, deadline: float = DEADLINE) -> None:
        """Wait until nothing is left to do."""
        end = time.monotonic() + deadline
        quiet = 0
        while quiet < 3:
            assert time.monotonic() < end, f"it does not come to rest: {self.stats()}"
            quiet = 0 if self.call(self._busy) else quiet + 1
            time.sleep(0.05)

    def _told(self) -> bool:
        """Tell whether the kernel has news that the module has not read."""
        watches = self.module._watches
        fd = watches.fileno() if watches is not None else None
        return fd is not None and bool(select.select([fd], [], [], 0)[0])

    def _busy(self) -> bool:
        engine, intake = self.module._engine, self.module._engine.intake
        return (
            self._told()
            or engine.busy(float("inf"))
            or self.module._scan_due is not None
            or intake.overflowed
            or bool(intake._cookies)
        )


@contextlib.contextmanager
def running(settings: Config, state: Path | str, *, scanned: bool = True) -> Iterator[Running]:
    """Run the module; by default from the end of its first look."""
    module = Running(settings, state)
    module.start()
    try:
        if scanned:
            module.scanned()
        yield module
    finally:
        module.stop()


def on_disk(*roots: Path, hashes: bool = True) -> dict[str, tuple[Any, ...]]:
    """Return what is on the disk at and below some paths, as the baseline should have it."""
    found: dict[str, tuple[Any, ...]] = {}

    def add(path: str) -> None:
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return
        mode = stat.S_IMODE(facts.st_mode)
        if stat.S_ISDIR(facts.st_mode):
            found[path] = (DIRECTORY, 0, facts.st_uid, mode, None)
        elif stat.S_ISLNK(facts.st_mode):
            found[path] = (LINK, facts.st_size, facts.st_uid, mode, os.fsencode(os.readlink(path)))
        else:
            digest = hashlib.sha256(Path(path).read_bytes()).digest() if hashes else None
            found[path] = (FILE, facts.st_size, facts.st_uid, mode, digest)

    for root in roots:
        add(str(root))
        for folder, folders, files in os.walk(root):
            for name in (*folders, *files):
                add(os.path.join(folder, name))
    return found


def in_baseline(state: Path, *, hashes: bool = True) -> dict[str, tuple[Any, ...]]:
    """Return what a closed baseline has."""
    baseline = Baseline(str(state))
    try:
        assert baseline.persistent, baseline.trouble
        found = {}
        for (raw,) in baseline._all("SELECT path FROM dirs", ()):
            folder = os.fsdecode(raw)
            last = b""
            while rows := baseline.after(folder, last):
                for name, entry in rows:
                    last = name
                    found[f"{folder.rstrip('/')}/{os.fsdecode(name)}"] = summary(entry, hashes=hashes)
        assert len(found) == baseline.count
        orphans = baseline._one("SELECT count(*) FROM entries WHERE dir NOT IN (SELECT id FROM dirs)", ())
        assert orphans == (0,)
        return found
    finally:
        baseline.close()


def summary(entry: Entry, *, hashes: bool = True) -> tuple[Any, ...]:
    digest = entry.sha256 if hashes else None
    return (entry.kind, entry.size, entry.uid, entry.mode, entry.link if entry.kind == LINK else digest)


def difference(state: Path, *roots: Path, hashes: bool = True) -> list[Any]:
    """Return where baseline and disk differ; nothing: they agree."""
    disk, known = on_disk(*roots, hashes=hashes), in_baseline(state, hashes=hashes)
    return [
        (path, disk.get(path), known.get(path)) for path in sorted(disk | known) if disk.get(path) != known.get(path)
    ]
