"""The catcher: runs one module in a thread of its own, and starts it anew with backoff when it fails."""

from __future__ import annotations

import gc
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from garrison.ipc.messages import ModuleBeat, Result
from garrison.ipc.pacing import backoff
from garrison.workers.runtime.emitter import Emitter
from garrison.workers.runtime.encoding import printable
from garrison.workers.runtime.logs import PipeLogger, describe, trace
from garrison.workers.runtime.mailbox import Change, Mailbox
from garrison.workers.runtime.module import ConfigError, Module
from garrison.workers.runtime.sandbox import ModuleSandbox
from garrison.workers.runtime.tasks import refused

BACKOFF_BASE_SECONDS: Final = 1.0
BACKOFF_CAP_SECONDS: Final = 60.0
STABLE_SECONDS: Final = 60.0
"""After so long without a failure the next one counts as the first."""

STACK_BYTES: Final = 4 * 1024 * 1024
"""Stack of a module's thread: address space, of which only the pages in use cost memory (18 KiB for a waiting
thread, whatever is reserved). Less is not safe: Python's recursion limit of 1,000 counts calls, and calls
through C functions such as sorted() ran over 2 MiB (CPython 3.11) before it was reached, which ends the process."""

State = Literal["starting", "running", "backoff", "tripped", "stopped"]


class ReturnedEarlyError(Exception):
    """A module's `run` came back although nobody told it to stop."""


@dataclass
class Restarts:
    """When to start a failed module again. Pure.

    Attributes:
        identity: Host, worker and module, for the jitter.
        attempt: Failures in a row.
    """

    identity: tuple[str, ...]
    attempt: int = 0

    def failed(self, ran_seconds: float) -> float:
        """Return the seconds to wait after a failure that came `ran_seconds` after the start."""
        if ran_seconds >= STABLE_SECONDS:
            self.attempt = 0
        wait = backoff(self.attempt, base=BACKOFF_BASE_SECONDS, cap=BACKOFF_CAP_SECONDS, identity=self.identity)
        self.attempt += 1
        return wait


class ModuleThread:
    """One module of the worker, from `start` to the end of the process.

    Args:
        name: The module's name.
        kind: Its class.
        worker: The worker's name.
        host: Host name, for jitter and staggering.
        state_dir: The worker's own directory.
        emitter: Where events go.
        log: The module's logger.
        answer: Sends the result of a task.
        changed: Called, in the module's thread, when something happened that the main thread waits for.
    """

    def __init__(
        self,
        *,
        name: str,
        kind: type[Module],
        worker: str,
        host: str,
        state_dir: str,
        emitter: Emitter,
        log: PipeLogger,
        answer: Callable[[Result], None],
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.kind = kind
        self.log = log
        self.mailbox = Mailbox()
        self._worker = worker
        self._host = host
        self._state_dir = state_dir
        self._emitter = emitter
        self._answer = answer
        self._changed = changed
        self._config: Any = None
        self._state: State = "starting"
        self._error = ""
        self._restarts = 0
        self._started_at = 0.0
        self._cpu_clock: int | None = None
        self._cpu_seconds = 0.0
        self._policy = Restarts((host, worker, name))
        self.came_up = False
        """True once the first `init` has ended, well or not."""
        self.began: Callable[[str, int], None] | None = None
        """Called with name and identity of the thread, in the thread, before any code of the module."""
        self.parked = False
        """True while the thread waits to be released and runs nothing of the module."""
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self, config: Any | None) -> None:
        """Start the thread with a configuration in force; None waits for one on offer in the mailbox."""
        self._config = config
        previous = threading.stack_size(STACK_BYTES)
        try:
            self._thread.start()
        finally:
            threading.stack_size(previous)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, that many seconds at most. It may never have been started."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, seconds))

    def cpu_seconds(self) -> float:
        """Return the CPU time of the thread so far."""
        if self._cpu_clock is not None:
            try:
                self._cpu_seconds = time.clock_gettime(self._cpu_clock)
            except OSError:
                self._cpu_clock = None  # the thread has ended; what it used last stays
        return self._cpu_seconds

    def beat(self, now: float, error_characters: int = 512) -> ModuleBeat:
        """Return the module's part of a beat; `now` is monotonic seconds."""
        if self._error and self._state == "running" and now - self._started_at >= STABLE_SECONDS:
            self._error = ""
        return ModuleBeat(
            name=printable(self.name, 128),
            state=self._state,
            restarts=self._restarts,
            cpu_seconds=self.cpu_seconds(),
            last_task=self.mailbox.last_task,
            error=self._error[:error_characters],
            degraded=self.mailbox.degraded,
            allowance_percent=self.mailbox.allowance.of_task(now),
        )

    def _main(self) -> None:
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        if self.began is not None:
            self.began(self.name, threading.get_ident())
        while not self.mailbox.stopping:
            if self.mailbox.held:
                self._park()
                continue
            change = self.mailbox.take_change()
            if change is None and self._config is None:
                self._error = self._error or "waits for a configuration: its own defaults are not complete"
                self._pause(None)
                continue
            if self._state == "backoff":
                self._restarts += 1
            self._attempt(change)
        self._state = "stopped"
        while (task := self.mailbox.take_task()) is not None:
            self._answer(refused(task, "the worker is stopping"))
        self._changed()

    def _park(self) -> None:
        """Wait until the module is released; take configurations meanwhile, and refuse tasks."""
        gc.collect()  # what the module had in memory; its frames are gone by now
        self._state = "tripped"
        self.came_up = self.parked = True
        self._changed()
        poll = select.poll()
        poll.register(self.mailbox.wakeup.fileno(), select.POLLIN)
        while self.mailbox.held and not self.mailbox.stopping:
            if (change := self.mailbox.take_change()) is not None:
                # Checked against the module's struct; the module's own opinion follows when it starts with it.
                self._commit(change)
            while (task := self.mailbox.take_task()) is not None:
                self._answer(refused(task, "the module is stopped by its breaker; look at the worker's status"))
            if poll.poll():
                self.mailbox.wakeup.clear()
        self.parked = False
        self._state = "starting"
        self._restarts += 1

    def _attempt(self, change: Change | None) -> None:
        """Run the module once, from `init` to `shutdown`, and wait where that ended in a failure."""
        self._started_at = time.monotonic()
        if change is not None:
            self._config = change.old
        try:
            failure = self._run(change)
        # Also what is no Exception: a thread that ends by SystemExit would leave a worker that looks well.
        except BaseException as error:  # noqa: BLE001
            failure = error
        if change is not None and change.outcome is None:
            # Not the configuration's fault as far as anybody knows: it stays, and the next start has it too.
            self._commit(change)
        self.came_up = True
        if failure is None or self.mailbox.leaving:
            if failure is not None:
                self.log.error("failed while stopping: %s", trace(failure))
            return
        if change is not None and change.outcome in ("refused", "withdrawn"):
            self._error = printable(change.error or describe(failure), 512)
            return  # the old configuration is tried at once: nothing is known against it
        self._error = describe(failure)
        wait = self._policy.failed(time.monotonic() - self._started_at)
        self.log.error("failed and starts again in %.1f s: %s", wait, trace(failure))
        # The traceback keeps the module's frames alive, and with them all that it had in memory.
        failure = None
        gc.collect()
        self._state = "backoff"
        self._changed()
        self._pause(time.monotonic() + wait)

    def _run(self, change: Change | None) -> BaseException | None:
        self._state = "starting"
        module = self.kind()
        box = ModuleSandbox(
            module=module,
            name=self.name,
            worker=self._worker,
            host=self._host,
            state_dir=self._state_dir,
            config=self._config if change is None else change.new,
            mailbox=self.mailbox,
            emitter=self._emitter,
            log=self.log,
            answer=self._answer,
            took=self._took,
        )
        failure: BaseException | None = None
        try:
            self._init(module, box, change)
            self._state = "running"
            self.came_up = True
            self._changed()
            module.run(box)
            if not box.stopping:
                raise ReturnedEarlyError("run returned although nothing told it to stop")
        # Caught here so that `shutdown` comes after every failure; `_attempt` deals with it.
        except BaseException as error:  # noqa: BLE001
            failure = error
        try:
            module.shutdown(box)
        except BaseException as error:  # noqa: BLE001
            self.log.error("shutdown failed: %s", trace(error))
        return failure

    def _init(self, module: Module, box: ModuleSandbox, change: Change | None) -> None:
        try:
            module.init(box)
        except ConfigError as error:
            if change is not None:
                change.refuse(str(error))
            raise
        if not self._commit(change):
            raise RuntimeError("its configuration was withdrawn while it started")

    def _commit(self, change: Change | None) -> bool:
        if change is None:
            return True
        if not change.commit():
            return False
        self._took(change.new)
        return True

    def _took(self, config: Any) -> None:
        self._config = config

    def _pause(self, until: float | None) -> None:
        """Sleep until a monotonic time, or until the module is to stop or to try another configuration."""
        poll = select.poll()
        poll.register(self.mailbox.wakeup.fileno(), select.POLLIN)
        while not self.mailbox.leaving and not self.mailbox.has_change:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            if poll.poll(None if left is None else left * 1000 + 1):
                self.mailbox.wakeup.clear()
