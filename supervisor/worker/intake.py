"""What comes in from a worker's process: its events, its log, its answers. All of it is a claim, and rated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from garrison.ipc.messages import Applied, Beat, Events, Hold, Log, LogLevel, ModuleBeat, Priority, Ready, Result
from garrison.ipc.pacing import TokenBucket
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.events.stamp import Stamp
from garrison.supervisor.sampler import Facts
from garrison.supervisor.worker import modules
from garrison.supervisor.worker.acknowledging import Acknowledger
from garrison.supervisor.worker.configuration import ConfigurationState
from garrison.supervisor.worker.rate import WorkerRate
from garrison.supervisor.worker.services import Services

LOG_LINES_PER_SECOND = 20.0
LOG_BURST_LINES = 100.0
MAX_LOG_SOURCES = 32
"""Module names of one worker that get a log source of their own; the agent has room for a bounded number."""
MODULE_EVENTS_PER_MINUTE = 10
"""Events about its modules' breakers that a worker may cause: what it says of them is a claim."""
MAX_ERROR_TEXT = 500


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the intake passes on because something follows from it for the supervision.

    Attributes:
        ready: The modules run.
        error: The worker has logged an error: its text.
        breach: The pipe's contract is broken: how.
        gone: The process has ended.
    """

    ready: Callable[[Ready], None]
    error: Callable[[str], None]
    breach: Callable[[str], None]
    gone: Callable[[], None]


class Intake:
    """The `Listener` of every process of one worker.

    Args:
        name: The worker's name.
        services: The agent around it.
        ledger: Where its events are booked.
        configuration: Which answers to configurations are for.
        rate: Events a second that are let through.
        burst_seconds: The largest burst, in seconds of the rate.
        hooks: What the supervision wants to hear of.

    Attributes:
        said: The last line that the process printed, or the last error that it logged.
        beats: Signs of life of the process.
    """

    def __init__(
        self,
        name: str,
        services: Services,
        ledger: WorkerLedger,
        configuration: ConfigurationState,
        rate: float,
        burst_seconds: float,
        hooks: Hooks,
    ) -> None:
        self.said = ""
        self.beats = 0
        self._base = (0, 0)
        self._modules: dict[str, ModuleBeat] = {}
        self._ready = False
        self._module_bucket = TokenBucket(MODULE_EVENTS_PER_MINUTE / 60, MODULE_EVENTS_PER_MINUTE)
        self._name = name
        self._services = services
        self._ledger = ledger
        self._configuration = configuration
        self._hooks = hooks
        self._epoch = 0
        self._stamp: Stamp | None = None
        self._acknowledger: Acknowledger | None = None
        self._rate = WorkerRate(rate, burst_seconds)
        self._log_bucket = TokenBucket(LOG_LINES_PER_SECOND, LOG_BURST_LINES)
        self._log_suppressed = 0
        self._log_sources: set[str] = set()

    def begin(
        self, epoch: int, held: Mapping[str, Hold], acknowledge: Callable[[Priority, int], None] | None = None
    ) -> None:
        """Note that what comes from now on is of another process, which was told `held` of its modules.

        `acknowledge` tells that process which of its events are safe; None: nobody does.
        """
        self._acknowledger = None if acknowledge is None else Acknowledger(acknowledge)
        self.said = ""
        self.beats = 0
        self._base = self._ledger.emitted, self._ledger.dropped["rate_limit"]
        self._modules = modules.handed(held)
        self._ready = False
        self._epoch = epoch
        self._stamp = Stamp(self._services.host, self._name, epoch)

    def limit(self, rate: float, burst_seconds: float) -> None:
        """Change the rate, events a second, and its burst, in seconds of it."""
        self._rate.limit(rate, burst_seconds)

    def on_ready(self, ready: Ready) -> None:
        """See `Hooks`."""
        self._ready = True
        self._hooks.ready(ready)

    def facts(self, pid: int) -> Facts:
        """Return the counters of the process for the sampler."""
        emitted, limited = self._base
        return Facts(
            pid=pid,
            beats=self.beats,
            emitted=self._ledger.emitted - emitted,
            rate_limited=self._ledger.dropped["rate_limit"] - limited,
        )

    def on_beat(self, beat: Beat) -> None:
        """Count it, and tell what it says of the breakers of the worker's modules."""
        self.beats += 1
        if not self._ready:
            return  # sent before the process had been told of its modules: it knows nothing of them yet
        for action, fields in modules.changes(self._modules, beat):
            if self._module_bucket.admit(1, self._now()):
                self._log(
                    "warning" if action in ("module-tripped", "module-latched") else "notice", f"{action}: {fields}"
                )
                self._services.emit_state(action, {"worker": self._name, **fields})
        # What the agent asked of all of them is no state of their own.
        own = [msgspec.structs.replace(module, degraded=False) if beat.degraded else module for module in beat.modules]
        self._modules = {module.name: module for module in own}

    def on_events(self, batch: Events, objects: list[bytes]) -> None:
        """Admit a batch by the worker's rate, stamp it and pass it on."""
        if batch.count == 0:
            return
        last, acknowledger = batch.first + batch.count - 1, self._acknowledger
        if acknowledger is not None:
            acknowledger.expect(batch.priority, last)
        if self._stamp is None or not self._rate.admit(batch.priority, batch.count, self._now()):
            self._ledger.drop(batch.count, "rate_limit", self._epoch, batch.priority, batch.first)
            if acknowledger is not None:
                acknowledger.settle(batch.priority, last)
            return
        data = self._stamp.write(objects, batch.priority)
        stamped = Batch(
            self._name, self._ledger, batch.priority, batch.count, data, self._name, self._epoch, batch.first
        )
        if acknowledger is not None:
            stamped.on_settled = lambda settled: acknowledger.settle(settled.priority, settled.last)
        self._services.forward(stamped)

    def on_log(self, log: Log) -> None:
        """Write a worker's line to the agent's log, with its module, at a limited rate."""
        source = self._log_source(log.module)
        self._log_suppressed += log.suppressed
        if not self._log_bucket.admit(1, self._now()):
            self._log_suppressed += 1
            return
        if self._log_suppressed:
            self._log("warning", f"{self._log_suppressed} lines of {source} were suppressed")
            self._log_suppressed = 0
        if log.level in ("err", "crit", "alert", "emerg"):
            self.said = log.message.split("\n", 1)[0][:MAX_ERROR_TEXT]
            self._hooks.error(self.said)
        self._services.log(log.level, source, log.message)

    def on_applied(self, applied: Applied) -> None:
        """Note what became of a configuration."""
        configuration = self._configuration
        status = configuration.status
        configuration.answered(applied.revision, applied.ok, applied.error)
        if configuration.status == status:
            return
        if configuration.status == "rejected":
            self._log("err", f"configuration refused, the old one stays: {configuration.error}")
        self._services.emit_state(
            f"config-{configuration.status}",
            {
                "worker": self._name,
                "revision": configuration.offer.revision,
                "hash": configuration.offer.hash,
                "reason": configuration.error,
            },
        )
        self._services.changed()

    def on_result(self, result: Result) -> None:
        """Log what became of a task, at the rate of the worker's log."""
        if not self._log_bucket.admit(1, self._now()):
            self._log_suppressed += 1
            return
        text = f"task {result.id} is done" if result.ok else f"task {result.id} failed: {result.error}"
        self._log("info" if result.ok else "warning", text)

    def on_output(self, line: str) -> None:
        """Log what the process printed."""
        self.said = line[:MAX_ERROR_TEXT]
        self._log("notice", f"printed: {line}")

    def on_breach(self, reason: str) -> None:
        """See `Hooks`."""
        self._hooks.breach(reason)

    def on_gone(self) -> None:
        """See `Hooks`."""
        self._hooks.gone()

    def _log_source(self, module: str) -> str:
        if not module or module == self._name:
            return self._name
        if module not in self._log_sources:
            if len(self._log_sources) >= MAX_LOG_SOURCES:
                return self._name
            self._log_sources.add(module)
        return f"{self._name}.{module}"

    def _log(self, level: LogLevel, text: str) -> None:
        self._services.log(level, self._name, text)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
