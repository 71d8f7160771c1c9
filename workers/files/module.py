"""The module: waits for the kernel and the clock, and lets the engine work as fast as the pace allows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from garrison.ipc.rights import SystemCalls
from garrison.workers.files import events, roots, settings
from garrison.workers.files.baseline import Baseline, BaselineLostError
from garrison.workers.files.engine import Engine
from garrison.workers.files.events import Reporter
from garrison.workers.files.pace import Pace
from garrison.workers.files.targets import Map
from garrison.workers.files.watches import Watches
from garrison.workers.runtime.module import Module, Sandbox
from garrison.workers.runtime.wakeup import Wakeup

SLICE: Final = 0.004
"""Seconds of CPU time between two chances for settings, tasks and a stop."""
BATCH: Final = 0.05
"""Seconds for which events of the kernel may collect: it merges those that are alike."""
DEGRADED_BATCH: Final = 0.25
OVERFLOW_SECONDS: Final = 10.0
"""Least seconds between two scans after an overflow."""
RETRY_SECONDS: Final = 60.0
"""How often a disk that refused the baseline is tried again."""


class FilesModule(Module):
    """Integrity of files."""

    Config: ClassVar[type[msgspec.Struct]] = settings.Config
    capabilities: ClassVar[tuple[str, ...]] = ("dac_read_search", "fowner")
    """Files that only their owner may read; access times and the page cache left as they were (O_NOATIME, mincore)."""
    system_calls: ClassVar[SystemCalls] = "observe"

    _baseline: Baseline | None
    _watches: Watches | None
    _nudge: Wakeup | None
    """Ends the wait in `_turn` after a task or new settings: they run inside it and may bring work."""

    def init(self, box: Sandbox) -> None:
        """Open the baseline and begin to look at everything."""
        config: settings.Config = box.config
        self._baseline = self._watches = None
        self._nudge = Wakeup()
        self._pace = Pace(config.cpu_percent, config.read_bytes_per_second, config.events_per_second)
        self._reporter = Reporter(box, self._pace, config.alerts_per_minute)
        self._baseline = Baseline(box.state_dir)
        self._watches = Watches(config.watches_max)
        self._engine = Engine(box, config, self._baseline, self._watches, self._reporter, self._pace)
        self._in_force = config
        self._homeless = 0
        self._trouble_told = False
        self._scan_due: float | None = None
        self._scanned_at = float("-inf")
        now = box.clock.monotonic()
        self._poll_at = now + config.poll_seconds
        self._stats_at = now
        self._drained_at = float("-inf")
        self._retarget(config)
        self._tell_set_aside(box)
        self._engine.begin_scan()
        box.every(RETRY_SECONDS, lambda: self._return_to_disk(box))
        box.every(10.0, self._reporter.tell_limited)

    def run(self, box: Sandbox) -> None:
        """Follow the files until the module should stop."""
        while not box.stopping:
            try:
                self._turn(box)
            except BaselineLostError as error:
                box.log.error("%s; a new baseline is made, changes since the old one are not found", error)
                self._tell_set_aside(box)
                self._engine.restart()
        self._reporter.tell_limited()

    def shutdown(self, box: Sandbox) -> None:
        """Commit the baseline and give everything back."""
        baseline, self._baseline = getattr(self, "_baseline", None), None
        if baseline is not None:
            baseline.close()
        watches, self._watches = getattr(self, "_watches", None), None
        if watches is not None:
            watches.close()
        nudge, self._nudge = getattr(self, "_nudge", None), None
        if nudge is not None:
            nudge.close()

    def reconfigure(self, box: Sandbox, config: Any) -> None:
        """Take new settings. What is known of paths that stay is kept; new paths are learnt without a word."""
        self._pace.limit(config.cpu_percent, config.read_bytes_per_second, config.events_per_second)
        self._reporter.limit(config.alerts_per_minute)
        self._poll_at = min(self._poll_at, box.clock.monotonic() + config.poll_seconds)
        self._in_force = config
        self._retarget(config)
        self._engine.begin_scan()
        self._end_wait()

    def task(self, box: Sandbox, name: str, arguments: Mapping[str, Any]) -> Any:
        """Do ``rescan`` (``hash``: read unchanged files too), ``baseline`` (accept what is there) or ``stats``.

        Raises:
            LookupError: There is no such task.
        """
        if name == "rescan":
            self._engine.begin_scan(rehash=bool(arguments.get("hash", False)))
            self._end_wait()
            return {"scanning": True, "entries": self._statistics()["entries"]}
        if name == "baseline":
            self._engine.begin_scan(accept=True)
            self._end_wait()
            return {"scanning": True, "entries": self._statistics()["entries"]}
        if name == "stats":
            return self._statistics()
        raise LookupError(f"the files module has the tasks rescan, baseline and stats, not {name!r}")

    def _turn(self, box: Sandbox) -> None:
        config, engine, baseline = self._in_force, self._engine, self._baseline
        assert baseline is not None
        now = box.clock.monotonic()
        self._pace.degraded = box.degraded
        self._pace.budget(box.cpu_percent)
        self._what_is_due(box, config, now)
        timeout = self._timeout(config, now)
        self._wait(box, timeout)
        now = box.clock.monotonic()
        if box.stopping or self._pace.delay(now) > 0:
            return
        self._work(box, engine, baseline)

    def _work(self, box: Sandbox, engine: Engine, baseline: Baseline) -> None:
        began = time.thread_time()
        now = box.clock.monotonic()
        worked = True
        while worked and time.thread_time() - began < SLICE and self._pace.delay(now) <= 0:
            worked = engine.step(now)
        if worked:
            baseline.commit_due(now)
        elif not engine.busy(now):
            baseline.commit()
        engine.tell_watches()
        self._pace.cpu(time.thread_time() - began, box.clock.monotonic())

    def _wait(self, box: Sandbox, timeout: float | None) -> None:
        """Wait for the kernel's news or the time, and take the news in."""
        nudge, watches = self._nudge, self._watches
        assert nudge is not None
        assert watches is not None
        batch = DEGRADED_BATCH if box.degraded else BATCH
        quiet = self._drained_at + batch - box.clock.monotonic()
        fd = watches.fileno()
        if fd is None or quiet > 0:
            # Its events collect meanwhile; a queue that is never empty must not keep us awake.
            fds: tuple[int, ...] = (nudge.fileno(),)
            if fd is not None:
                timeout = quiet if timeout is None else min(timeout, quiet)
        else:
            fds = (fd, nudge.fileno())
        ready = box.wait(*fds, timeout=timeout)
        if nudge.fileno() in ready:
            nudge.clear()
        if fd is not None and fd in ready:
            began = time.thread_time()
            self._engine.drain()
            self._drained_at = box.clock.monotonic()
            self._pace.cpu(time.thread_time() - began, self._drained_at)

    def _timeout(self, config: settings.Config, now: float) -> float | None:
        due = [self._scan_due]
        if self._engine.busy(now):
            due.append(now + max(0.0, self._pace.delay(now)))
        else:
            due.append(self._engine.next_due())
            due.append(self._poll_at if self._engine.exhausted else None)
            due.append(self._scanned_at + config.rescan_seconds)
        if config.stats_seconds:
            due.append(self._stats_at + config.stats_seconds)
        return max(0.0, min(at for at in due if at is not None) - now)

    def _what_is_due(self, box: Sandbox, config: settings.Config, now: float) -> None:
        engine = self._engine
        if engine.intake.overflowed:
            engine.intake.overflowed = False
            if self._scan_due is None:
                self._scan_due = max(now, self._scanned_at + OVERFLOW_SECONDS)
                box.log.warning("events were lost (more changes than fit): everything is looked at again")
                self._reporter.state(
                    "overflow",
                    "more changes at once than fit into the queue: everything is looked at again",
                    {name: engine.intake.counts[name] for name in ("overflows", "full")},
                )
        if engine.intake.users_changed and not engine.scanning:
            engine.intake.users_changed = False
            self._retarget(config)
            self._scan_due = now if self._scan_due is None else self._scan_due
        if engine.scanning:
            self._scanned_at = now
        rescan = now >= self._scanned_at + config.rescan_seconds
        if rescan or (self._scan_due is not None and now >= self._scan_due):
            self._scan_due, self._scanned_at = None, now
            if rescan:
                self._retarget(config)
            engine.begin_scan()
        if now >= self._poll_at:
            self._poll_at = now + config.poll_seconds
            if engine.exhausted:
                engine.begin_poll()
        if config.stats_seconds and now - self._stats_at >= config.stats_seconds:
            self._stats_at = now
            box.emit(events.metric(self._statistics()))
        self._tell_trouble(box)

    def _retarget(self, config: settings.Config) -> None:
        """Work out anew what is tracked: settings, users and links may have changed."""
        homes, left_out = roots.read_homes()
        if left_out and left_out != self._homeless:
            self._reporter.state(
                "limit-reached",
                f"{left_out} homes of users are not looked at: {roots.MAX_HOMES} is the most",
                {"limit": roots.MAX_HOMES, "left_out": left_out},
            )
        self._homeless = left_out
        targets = roots.targets(config, homes)
        self._engine.retarget(config, Map(targets, config.include, config.exclude))

    def _end_wait(self) -> None:
        if self._nudge is not None:
            self._nudge.set()

    def _tell_set_aside(self, box: Sandbox) -> None:
        baseline = self._baseline
        if baseline is not None and baseline.set_aside:
            message = f"{baseline.set_aside}; a new baseline is made, changes since the old one are not found"
            box.log.error("%s", message)
            self._reporter.state("baseline-corrupt", message, {"reason": baseline.set_aside})
            baseline.set_aside = ""

    def _tell_trouble(self, box: Sandbox) -> None:
        """Say once when the baseline is not on disk, and once when it is again."""
        baseline = self._baseline
        assert baseline is not None
        if baseline.persistent == (not self._trouble_told):
            return
        self._trouble_told = not baseline.persistent
        if baseline.persistent:
            box.log.notice("the baseline is on disk again")
            self._reporter.state("baseline-persistent", "the baseline is on disk again", {})
            return
        message = (
            f"the baseline is in memory only ({baseline.trouble}): what changes while the agent is off is not found; "
            "make room or put the state directory right"
        )
        box.log.warning("%s", message)
        self._reporter.state("baseline-volatile", message, {"reason": baseline.trouble})

    def _return_to_disk(self, box: Sandbox) -> None:
        if self._baseline is not None and self._baseline.return_to_disk():
            self._tell_trouble(box)

    def _statistics(self) -> dict[str, Any]:
        return {**self._reporter.counts, **self._engine.statistics()}
