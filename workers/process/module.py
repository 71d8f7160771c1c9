"""The module: waits for the connector or the next look at /proc, and hands what comes to the tracker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import msgspec

from garrison.workers.process import events, settings
from garrison.workers.process.connector import Connector, ConnectorError, open_connector
from garrison.workers.process.scan import Seen
from garrison.workers.process.tracker import Origin, Tracker
from garrison.workers.runtime.module import ConfigError, Module, Sandbox

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

    _connector: Connector | None

    def init(self, box: Sandbox) -> None:
        """Subscribe to the connector, or find out that it must be polling, and begin the first look at /proc.

        Raises:
            ConnectorError: ``source = "connector"`` and it cannot be used.
        """
        self._connector = None
        self._overruns = 0
        self._resync_due: float | None = None
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

    def shutdown(self, box: Sandbox) -> None:
        """Give the subscription back."""
        connector = getattr(self, "_connector", None)
        if connector is not None:
            connector.close()
        self._connector = None

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

    def task(self, box: Sandbox, name: str, arguments: Mapping[str, Any]) -> Any:
        """Do ``rescan`` (look at all of /proc, report what is not known) or ``stats`` (return the counters).

        Raises:
            LookupError: There is no such task.
        """
        if name == "rescan":
            if self._scan is None or self._origin == "poll":
                self._begin_scan("resync")
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
        self._statistics_due(box, config, now)
        timeout = self._timeout(config, now)
        if self._scan is not None:
            timeout = _BREATH
        if connector is None:
            box.wait(timeout=timeout)
        else:
            if box.degraded:
                # One wakeup for many events; what ends meanwhile is reported with less.
                box.wait(timeout=_DEGRADED_BREATH)
            ready = box.wait(connector.fileno(), timeout=timeout)
            # The configuration may have changed during the wait, and the connector with it.
            if ready and self._connector is connector:
                self._drain(box, connector)
        self._step(box)

    def _timeout(self, config: settings.Config, now: float) -> float | None:
        due = [] if self._connector is not None else [self._next_poll]
        if self._resync_due is not None:
            due.append(self._resync_due)
        if config.stats_seconds:
            due.append(self._stats_at + config.stats_seconds)
        return max(min(due) - now, 0.0) if due else None

    def _drain(self, box: Sandbox, connector: Connector) -> None:
        """Take what is there, a bounded amount a turn, so that settings and tasks come through."""
        found, _ = connector.read()
        for event in found:
            self._tracker.handle(event)
        if connector.overruns == self._overruns:
            return
        self._tracker.counts["overflows"] += connector.overruns - self._overruns
        self._overruns = connector.overruns
        now = box.clock.monotonic()
        # The scan that is under way may already have passed what was lost: another one follows.
        self._resync_due = max(now, self._resynced + RESYNC_SECONDS)
        if now - self._overflow_told >= RESYNC_SECONDS:
            self._overflow_told = now
            self._tracker.overflowed(connector.lost())

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
        self._begin_scan("resync")
        box.log.notice("the proc connector can be used now; polling ends")
        box.emit(events.state("source-connector", "the proc connector is in use", {"source": "connector"}))

    def _replace_connector(self, box: Sandbox, config: settings.Config) -> None:
        """Open the new one first, so that a refused configuration leaves the old one working."""
        old, self._connector = self._connector, None
        try:
            self._open(box, config)
        except ConnectorError as error:
            self._connector = old
            self._overruns = old.overruns if old is not None else 0
            raise ConfigError(f"source: {error}") from error
        if old is not None:
            old.close()
        if self.source == "connector":
            self._begin_scan("resync")

    def _statistics(self) -> dict[str, Any]:
        connector = self._connector
        return {
            **self._tracker.statistics(),
            "source": self.source,
            "lost": connector.lost() if connector is not None else None,
            "malformed": connector.malformed if connector is not None else 0,
        }

    def _statistics_due(self, box: Sandbox, config: settings.Config, now: float) -> None:
        if config.stats_seconds and now - self._stats_at >= config.stats_seconds:
            self._stats_at = now
            box.emit(events.metric(self._statistics()))
