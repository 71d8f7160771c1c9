"""The module: waits for the connector or the next look at /proc, and hands what comes to the tracker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import msgspec

from garrison.ipc.rights import SystemCalls
from garrison.workers.process import events, settings
from garrison.workers.process.connector import Connector, ConnectorError, open_connector
from garrison.workers.process.scan import Seen
from garrison.workers.process.tracker import Origin, Tracker
from garrison.workers.runtime.module import ConfigError, Module, Sandbox
from garrison.workers.runtime.wakeup import Wakeup

RESYNC_SECONDS: Final = 10.0
"""Least seconds between two resynchronisations, and between two reports of an overflow."""

RETRY_SECONDS: Final = 300.0
"""How often a missing connector is tried again while polling."""

POLL_SHARE: Final = 0.02
"""Largest share of one core that looking at /proc may take on average; a crowded host is looked at less often."""

_BREATH: Final = 0.005
_DEGRADED_BREATH: Final = 0.05


class ProcessModule(Module):
    """Process creation and what is suspicious about it."""

    Config: ClassVar[type[msgspec.Struct]] = settings.Config
    capabilities: ClassVar[tuple[str, ...]] = ("net_admin", "sys_ptrace", "dac_read_search")
    """The connector; executables, folders and sockets of other users' processes; the list of their descriptors."""
    system_calls: ClassVar[SystemCalls] = "observe"

    _connector: Connector | None
    _nudge: Wakeup | None
    """Ends the wait in `_turn` after a task or new settings: they run inside it and may change what it is for."""

    def init(self, box: Sandbox) -> None:
        """Subscribe to the connector, or find out that it must be polling, and begin the first look at /proc.

        Raises:
            ConnectorError: ``source = "connector"`` and it cannot be used.
        """
        self._connector = None
        self._nudge = Wakeup()
        self._overruns = 0
        self._congested = False
        self._lost_before = self._lost_told = 0
        self._resync_due: float | None = None
        self._overflow_due: float | None = None
        self._resynced = self._overflow_told = self._retry_at = float("-inf")
        self._stats_at = box.clock.monotonic()
        self._scan: Iterator[Seen | None] | None = None
        self._origin: Origin = "start"
        self._scan_cpu = 0.0
        self._next_poll = 0.0
        self._tracker = Tracker(box, box.config)
        self._open(box, box.config)
        self._begin_scan("start")
        box.every(1.0, self._tracker.tick)

    def run(self, box: Sandbox) -> None:
        """Follow the host's processes until the module should stop."""
        while not box.stopping:
            self._turn(box)
        # What was counted and is not told yet would be lost without a word.
        if self._overflow_due is not None or self._congested:
            self._tell_overflow(box.clock.monotonic())
        self._tracker.tell_held()

    def shutdown(self, box: Sandbox) -> None:
        """Give the subscription back."""
        connector, self._connector = getattr(self, "_connector", None), None
        if connector is not None:
            connector.close()
        nudge, self._nudge = getattr(self, "_nudge", None), None
        if nudge is not None:
            nudge.close()

    def reconfigure(self, box: Sandbox, config: Any) -> None:
        """Take new settings; the connector is opened anew where its own have changed.

        Raises:
            ConfigError: ``source = "connector"`` and it cannot be used; the old settings stay.
        """
        # What is in force here: the sandbox's may differ while a change is taken back.
        old = self._tracker.config
        source = (config.source, config.receive_buffer_bytes)
        if source != (old.source, old.receive_buffer_bytes):
            self._replace_connector(box, config)
        self._next_poll = min(self._next_poll, box.clock.monotonic() + config.poll_seconds)
        self._tracker.configure(config)
        self._end_wait()

    def task(self, box: Sandbox, name: str, arguments: Mapping[str, Any]) -> Any:
        """Do ``rescan`` (look at all of /proc, report what is not known) or ``stats`` (return the counters).

        Raises:
            LookupError: There is no such task.
        """
        if name == "rescan":
            if self._scan is None or self._origin == "poll":
                self._begin_scan("resync")
                self._end_wait()
            return {"scan": self._origin, "known": len(self._tracker.table)}
        if name == "stats":
            return self._statistics()
        raise LookupError(f"the process module has the tasks rescan and stats, not {name!r}")

    @property
    def source(self) -> str:
        """``connector`` or ``poll``: what is in use."""
        return "poll" if self._connector is None else "connector"

    def _turn(self, box: Sandbox) -> None:
        now = box.clock.monotonic()
        config = self._tracker.config
        connector = self._connector
        if connector is None:
            self._retry_connector(box, config, now)
            if self._scan is None and now >= self._next_poll:
                self._begin_scan("poll")
        elif self._scan is None and self._resync_due is not None and now >= self._resync_due:
            self._begin_scan("resync")
        if self._overflow_due is not None and now >= self._overflow_due:
            self._tell_overflow(now)
        self._statistics_due(box, config, now)
        self._wait(box, connector, self._timeout(config, now))
        self._step(box)

    def _wait(self, box: Sandbox, connector: Connector | None, timeout: float | None) -> None:
        """Wait for events, for the next thing that is due, or for a task or new settings, and take the events."""
        nudge = self._nudge
        own = () if nudge is None else (nudge.fileno(),)
        if connector is None:
            ready = box.wait(*own, timeout=timeout)
        else:
            if box.degraded:
                # One wakeup for many events; what ends meanwhile is reported with less.
                box.wait(timeout=_DEGRADED_BREATH)
                if self._connector is not connector:
                    # New settings came meanwhile; the descriptor is closed.
                    return
            ready = box.wait(connector.fileno(), *own, timeout=timeout)
            # The configuration may have changed during the wait, and the connector with it.
            due = self._congested or connector.early or connector.fileno() in ready
            if due and self._connector is connector:
                self._drain(box, connector)
        if nudge is not None and nudge.fileno() in ready:
            nudge.clear()

    def _end_wait(self) -> None:
        if self._nudge is not None:
            self._nudge.set()

    def _timeout(self, config: settings.Config, now: float) -> float | None:
        if self._congested:
            return 0.0
        if self._scan is not None:
            return _BREATH
        due = [self._next_poll if self._connector is None else self._resync_due, self._overflow_due]
        if config.stats_seconds:
            due.append(self._stats_at + config.stats_seconds)
        times = [at for at in due if at is not None]
        return max(min(times) - now, 0.0) if times else None

    def _drain(self, box: Sandbox, connector: Connector) -> None:
        """Take what is there, a bounded amount a turn, so that settings and tasks come through.

        After an overrun the kernel drops everything until its queue is empty. Only then is the number of lost
        events complete, and only a look at /proc that begins then finds all that was lost.
        """
        found, more = connector.read()
        for event in found:
            self._tracker.handle(event)
        if connector.overruns != self._overruns:
            self._tracker.counts["overflows"] += connector.overruns - self._overruns
            self._overruns = connector.overruns
            self._congested = True
        if not self._congested or more:
            return
        self._congested = False
        now = box.clock.monotonic()
        # The scan that is under way may already have passed what was lost: another one follows.
        self._resync_due = max(now, self._resynced + RESYNC_SECONDS)
        if self._overflow_due is None:
            self._overflow_due = max(now, self._overflow_told + RESYNC_SECONDS)

    def _tell_overflow(self, now: float) -> None:
        self._overflow_due, self._overflow_told = None, now
        total = self._lost()
        lost = None if total is None else total - self._lost_told
        self._lost_told = self._lost_told if total is None else total
        self._tracker.overflowed(lost, total)

    def _lost(self) -> int | None:
        """Return how many events were dropped since the start, by connectors used before too; None: not known."""
        lost = self._connector.lost() if self._connector is not None else 0
        return None if lost is None else self._lost_before + lost

    def _begin_scan(self, origin: Origin) -> None:
        self._scan, self._origin, self._scan_cpu = self._tracker.table.scan(), origin, 0.0
        if origin == "resync":
            self._resync_due = None

    def _step(self, box: Sandbox) -> None:
        """Go on with a look at /proc as far as its next pause."""
        if self._scan is None:
            return
        began = time.thread_time()
        for seen in self._scan:
            if seen is None:
                self._scan_cpu += time.thread_time() - began
                return
            self._tracker.handle_scan(seen, self._origin)
        self._scan_cpu += time.thread_time() - began
        self._scan = None
        self._tracker.scan_ended()
        now = box.clock.monotonic()
        if self._origin == "resync":
            self._resynced = now
        config = self._tracker.config
        self._next_poll = now + max(config.poll_seconds, self._scan_cpu / POLL_SHARE)
        if self._origin == "start":
            box.log.info("watching %d processes through %s", len(self._tracker.table), self.source)

    def _open(self, box: Sandbox, config: settings.Config) -> None:
        """Open the connector where it is wanted.

        Raises:
            ConnectorError: It is demanded and cannot be used.
        """
        self._overruns = 0
        if config.source == "poll":
            return
        try:
            self._connector = open_connector(config.receive_buffer_bytes)
        except ConnectorError as error:
            if config.source == "connector":
                raise
            self._retry_at = box.clock.monotonic() + RETRY_SECONDS
            box.log.warning("%s; /proc is polled every %g s instead", error, config.poll_seconds)
            box.emit(
                events.state(
                    "source-poll",
                    f"{error}; /proc is polled every {config.poll_seconds:g} s, so short-lived processes are missed",
                    {"source": "poll", "reason": str(error)},
                )
            )
            return
        # The kernel doubles what is asked for, for its own bookkeeping, and reports the double.
        granted = self._connector.buffer_bytes() // 2
        if granted < config.receive_buffer_bytes:
            box.log.notice(
                "the receive buffer is %d bytes, %d were asked for: raise net.core.rmem_max or give CAP_NET_ADMIN",
                granted,
                config.receive_buffer_bytes,
            )

    def _retry_connector(self, box: Sandbox, config: settings.Config, now: float) -> None:
        if config.source != "auto" or now < self._retry_at:
            return
        self._retry_at = now + RETRY_SECONDS
        try:
            self._connector = open_connector(config.receive_buffer_bytes)
        except ConnectorError as error:
            box.log.debug("still no proc connector: %s", error)
            return
        self._overruns = 0
        # What has started between the last look and the subscription.
        self._resync_due = now
        box.log.notice("the proc connector can be used now; polling ends")
        box.emit(events.state("source-connector", "the proc connector is in use", {"source": "connector"}))

    def _replace_connector(self, box: Sandbox, config: settings.Config) -> None:
        """Open the new one first, so that a refused configuration leaves the old one working."""
        old, self._connector = self._connector, None
        overruns, self._overruns = self._overruns, 0
        try:
            self._open(box, config)
        except ConnectorError as error:
            self._connector, self._overruns = old, overruns
            raise ConfigError(f"source: {error}") from error
        if old is not None:
            self._retire(box, old, overruns)
        # What the old one still held, and what started between two ways of looking. A first look that is under
        # way ends first: what it has not come to yet is no news.
        self._resync_due = None if self.source == "poll" else box.clock.monotonic()

    def _retire(self, box: Sandbox, old: Connector, overruns: int) -> None:
        """Take what an old connector still holds and remember what it has lost."""
        for event in old.read()[0]:
            self._tracker.handle(event)
        if self._congested or old.overruns != overruns:
            self._tracker.counts["overflows"] += old.overruns - overruns
            self._congested = False
            if self._overflow_due is None:
                self._overflow_due = box.clock.monotonic()
        self._lost_before += old.lost() or 0
        old.close()

    def _statistics(self) -> dict[str, Any]:
        connector = self._connector
        return {
            **self._tracker.statistics(),
            "source": self.source,
            "lost": self._lost(),
            "malformed": connector.malformed if connector is not None else 0,
        }

    def _statistics_due(self, box: Sandbox, config: settings.Config, now: float) -> None:
        if config.stats_seconds and now - self._stats_at >= config.stats_seconds:
            self._stats_at = now
            box.emit(events.metric(self._statistics()))
