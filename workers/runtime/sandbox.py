"""The sandbox: all that a module sees of the agent. One for each start of a module."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable
from typing import Any, Final

from garrison.ipc.messages import Priority, Result, Task
from garrison.ipc.pacing import TokenBucket
from garrison.workers.runtime.clock import CoarseClock
from garrison.workers.runtime.emitter import Emitter, NotSentError
from garrison.workers.runtime.encoding import printable
from garrison.workers.runtime.logs import PipeLogger, describe, trace
from garrison.workers.runtime.mailbox import Change, Mailbox
from garrison.workers.runtime.module import Clock, ConfigError, Logger, Module
from garrison.workers.runtime.pace import CpuPace
from garrison.workers.runtime.tasks import perform
from garrison.workers.runtime.tickers import Tickers

DEGRADED_STRETCH: Final = 2.0
"""How much longer the periods of tickers are while the module is asked to do less."""
_LONGEST_POLL_MS = 2**31 - 1
_READABLE = select.POLLIN | select.POLLPRI


class RestartNeededError(Exception):
    """A module could not go back to the configuration in force while running; it has to start anew with it."""


class ModuleSandbox:
    """Implements `garrison.workers.runtime.module.Sandbox` on the runtime's queues.

    Args:
        module: The module that is served.
        name: Its name.
        worker: The worker's name.
        host: Host name, for staggering.
        state_dir: The worker's own directory.
        config: The configuration in force.
        mailbox: What the main thread has for the module.
        emitter: Where events go.
        log: The module's logger.
        answer: Sends the result of a task.
        took: Told each configuration that has come into force.
    """

    def __init__(
        self,
        *,
        module: Module,
        name: str,
        worker: str,
        host: str,
        state_dir: str,
        config: Any,
        mailbox: Mailbox,
        emitter: Emitter,
        log: PipeLogger,
        answer: Callable[[Result], None],
        took: Callable[[Any], None],
    ) -> None:
        self.name = name
        self.worker = worker
        self.config = config
        self.clock: Clock = CoarseClock()
        self.log: Logger = log
        self.state_dir = state_dir
        self._module = module
        self._mailbox = mailbox
        self._emitter = emitter
        self._answer = answer
        self._took = took
        self._tickers = Tickers(host, worker)
        self._inside = False
        self._pace = CpuPace()
        self._work = ""
        self._told = False
        self._poll = select.poll()
        self._poll.register(mailbox.wakeup.fileno(), select.POLLIN)
        self._polled: tuple[int, ...] = ()

    @property
    def stopping(self) -> bool:
        """True once the module should return from `run`."""
        # Once told, told for good: a release that comes before the module has noticed is for its next start.
        self._told = self._told or self._mailbox.leaving
        return self._told

    @property
    def degraded(self) -> bool:
        """True while the agent asks for less work."""
        return self._mailbox.degraded

    def emit(self, event: dict[str, Any], *, priority: Priority | None = None) -> bool:
        """Send an ECS document. Never blocks. False: dropped and counted.

        Raises:
            ValueError: There is no such priority.
        """
        try:
            return self._emitter.emit(event, priority, self.clock.timestamp())
        except NotSentError as error:
            self.log.error("%s", error)
            return False

    def every(self, seconds: float, call: Callable[[], None], *, immediately: bool = False) -> None:
        """Call something about every so many seconds, from `wait`.

        Raises:
            ValueError: `seconds` is below 0.01 or no number, or the module has 64 tickers already.
        """
        self._tickers.add(seconds, call, time.monotonic(), immediately=immediately)

    def rate(self, per_second: float, burst: float) -> TokenBucket:
        """Return a token bucket for the module's own use."""
        return TokenBucket(per_second, burst)

    @property
    def cpu_percent(self) -> float:
        """What long work may use now, percent of one core."""
        return self._mailbox.allowance.paced(time.monotonic(), degraded=self.degraded)

    def pace(self, work: str = "") -> bool:
        """Pause as long as the module's CPU time so far asks for. False: the module should stop.

        Called between the items of long work; runs what `wait` runs meanwhile.
        """
        if work and work is not self._work:
            self._work = work
            self._mailbox.last_task = printable(work, 128)
        now = time.monotonic()
        delay = self._pace.delay(time.thread_time(), now, self.cpu_percent, self._mailbox.allowance.burst_seconds)
        if delay > 0:
            self.wait(timeout=delay)
        return not self.stopping

    def wait(self, *fds: int, timeout: float | None = None) -> list[int]:
        """Sleep until a descriptor is readable, the timeout (seconds) is over, or the module should stop.

        Runs tickers, configuration changes and tasks meanwhile. Called from within one of those it only
        sleeps, so that they do not pile up on one another. A descriptor in error counts as readable: reading
        it tells what is wrong.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._register(fds)
        nested, self._inside = self._inside, True
        try:
            while not self.stopping:
                if not nested:
                    self._do_what_is_due()
                    if self._mailbox.leaving:
                        break
                    self._register(fds)  # a ticker may have waited for descriptors of its own
                now = time.monotonic()
                ready = self._sleep(now, deadline, math.inf if nested else self._tickers.next_due())
                if ready or time.monotonic() >= deadline:
                    return ready
            return []
        finally:
            self._inside = nested
            if nested:
                self._mailbox.wakeup.set()  # what rang in here is for the outer call to look at

    def _do_what_is_due(self) -> None:
        change = self._mailbox.take_change()
        if change is not None:
            self._reconfigure(change)
        # One task a turn: between two of them the module can be stopped and its tickers run.
        task = self._mailbox.take_task()
        if task is not None:
            self._perform(task)
            self._mailbox.wakeup.set()  # there may be another one behind it
        for call in self._tickers.due(time.monotonic(), DEGRADED_STRETCH if self.degraded else 1.0):
            if self.stopping:
                return
            call()

    def _perform(self, task: Task) -> None:
        self._mailbox.last_task = printable(task.task, 128)
        self._work = ""
        self._mailbox.allowance.begin_task(task.allowance_percent, task.allowance_seconds, time.monotonic())
        try:
            self._answer(perform(task, self._module, self))
        finally:
            self._mailbox.allowance.end_task()

    def _sleep(self, now: float, deadline: float, next_due: float | None) -> list[int]:
        until = min(deadline, math.inf if next_due is None else next_due)
        # Rounded up, because waking a fraction of a millisecond early would mean polling again and again.
        wait_ms = None if until == math.inf else min(_LONGEST_POLL_MS, max(0, math.ceil((until - now) * 1000)))
        wake_fd = self._mailbox.wakeup.fileno()
        ready = []
        for fd, _event in self._poll.poll(wait_ms):
            if fd == wake_fd:
                self._mailbox.wakeup.clear()
            else:
                ready.append(fd)
        return ready

    def _register(self, fds: tuple[int, ...]) -> None:
        if fds == self._polled:
            return
        for fd in self._polled:
            self._poll.unregister(fd)
        self._polled = ()
        for fd in dict.fromkeys(fds):
            self._poll.register(fd, _READABLE)
            self._polled = (*self._polled, fd)

    def _reconfigure(self, change: Change) -> None:
        try:
            self._module.reconfigure(self, change.new)
        # Whatever a module raises over a configuration is a refusal of that configuration.
        except (Exception, SystemExit) as error:
            if change.rollback:
                self._take(change.new)
                raise RestartNeededError(f"it did not go back to its old configuration: {describe(error)}") from error
            if isinstance(error, ConfigError):
                change.refuse(str(error))
            else:
                self.log.error("reconfigure failed: %s", trace(error))
                change.refuse(describe(error))
            if self.config is not change.old:
                self._go_back(change.old)
            return
        self.config = change.new
        if change.commit():
            self._took(change.new)
        else:
            self._go_back(change.old)

    def _go_back(self, old: Any) -> None:
        """Return to what is in force after a change was withdrawn while the module was busy with it."""
        try:
            self._module.reconfigure(self, old)
        except (Exception, SystemExit) as error:
            raise RestartNeededError(f"it did not go back to its old configuration: {describe(error)}") from error
        finally:
            self._take(old)

    def _take(self, config: Any) -> None:
        self.config = config
        self._took(config)
