"""What the main thread hands to a module's thread: a configuration, tasks, what it may use, the word to stop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

from garrison.ipc.messages import Task
from garrison.workers.runtime.allowance import Allowance
from garrison.workers.runtime.wakeup import Wakeup

MAX_TASKS: Final = 8
"""Tasks that may wait for one module."""

Outcome = Literal["committed", "refused", "withdrawn"]


class Change:
    """One configuration on offer to one module: the module takes it and settles it, or it is withdrawn.

    Args:
        new: The checked configuration.
        old: The one to fall back to.
        settled: Called when the module has decided, in its thread.
        rollback: `new` has been in force before; a module that refuses it is started anew with it.
    """

    __slots__ = ("_lock", "_settled", "error", "new", "old", "outcome", "rollback")

    def __init__(self, new: Any, old: Any, settled: Callable[[], None], *, rollback: bool = False) -> None:
        self.new = new
        self.old = old
        self.rollback = rollback
        self.outcome: Outcome | None = None
        self.error = ""
        self._settled = settled
        self._lock = threading.Lock()

    def commit(self) -> bool:
        """Say that the module works with it now. False: it was withdrawn meanwhile; the module must go back."""
        return self._settle("committed")

    def refuse(self, error: str) -> None:
        """Say that the module does not take it, and why."""
        self.error = error
        self._settle("refused")

    def withdraw(self) -> bool:
        """Take the offer back. False: the module has decided already; look at `outcome`."""
        with self._lock:
            if self.outcome is not None:
                return False
            self.outcome = "withdrawn"
            return True

    def _settle(self, outcome: Outcome) -> bool:
        with self._lock:
            if self.outcome is not None:
                return False
            self.outcome = outcome
        self._settled()
        return True


class Mailbox:
    """One module's letters; every delivery wakes its thread.

    Attributes:
        stopping: The module should return, for good.
        held: The module should return and wait until it is released.
        agent_degraded: The agent asks for less work.
        breaker_degraded: The module's own breaker asks for less work.
        last_task: The piece of work that runs or ran last.
        allowance: What it may use.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.held = False
        self.agent_degraded = False
        self.breaker_degraded = False
        self.last_task = ""
        self.allowance = Allowance()
        self.wakeup = Wakeup()
        self._lock = threading.Lock()
        self._change: Change | None = None
        self._tasks: deque[Task] = deque()

    @property
    def leaving(self) -> bool:
        """True while the module should return from what it does."""
        return self.stopping or self.held

    @property
    def degraded(self) -> bool:
        """True while the module is asked to do less."""
        return self.agent_degraded or self.breaker_degraded

    def hold(self) -> None:
        """Tell the module to return and to wait for `release`."""
        self.held = True
        self.wakeup.set()

    def release(self) -> None:
        """Let the module start again."""
        self.held = False
        self.wakeup.set()

    def offer(self, change: Change) -> None:
        """Leave a change; one that was not taken yet is replaced."""
        with self._lock:
            self._change = change
        self.wakeup.set()

    def take_change(self) -> Change | None:
        """Return the change that waits, unless it was withdrawn."""
        with self._lock:
            change, self._change = self._change, None
        return None if change is None or change.outcome is not None else change

    @property
    def has_change(self) -> bool:
        """True while a change waits that was not withdrawn."""
        change = self._change
        return change is not None and change.outcome is None

    def add_task(self, task: Task) -> bool:
        """Leave a task. False: the queue is full."""
        with self._lock:
            if len(self._tasks) >= MAX_TASKS:
                return False
            self._tasks.append(task)
        self.wakeup.set()
        return True

    def take_task(self) -> Task | None:
        """Return the oldest task that waits."""
        with self._lock:
            return self._tasks.popleft() if self._tasks else None

    def stop(self) -> None:
        """Tell the module to return."""
        self.stopping = True
        self.wakeup.set()
