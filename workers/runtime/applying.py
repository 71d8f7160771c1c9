"""Bringing a configuration into force: all modules take it, or none keeps it.

A state machine of the main thread, which never waits: `step` goes as far as the modules have got.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from garrison.ipc.messages import Applied, Config
from garrison.workers.runtime.catcher import ModuleThread
from garrison.workers.runtime.configuring import check, check_one
from garrison.workers.runtime.encoding import printable
from garrison.workers.runtime.logs import PipeLogger
from garrison.workers.runtime.mailbox import Change
from garrison.workers.runtime.module import ConfigError

TAKE_SECONDS: Final = 10.0
"""How long a module may take to call `wait` and accept a configuration."""
ERROR_BYTES: Final = 2048


@dataclass
class _Round:
    """One configuration on its way through the modules."""

    config: Config
    new: dict[str, Any]
    first: bool
    todo: deque[ModuleThread] = field(default_factory=deque)
    offered: list[tuple[ModuleThread, Change]] = field(default_factory=list)
    done: list[ModuleThread] = field(default_factory=list)
    deadline: float = 0.0


class Applying:
    """Applies configurations to the modules of a worker, one after the other.

    Args:
        modules: The modules that could be loaded, not started yet.
        names: The names of all modules of the worker.
        report: Sends an `Applied`.
        changed: Called from a module's thread when `step` has something to look at.
        log: The runtime's own logger.
        took: Told the name of a module that has taken changed settings.
    """

    def __init__(
        self,
        modules: Sequence[ModuleThread],
        names: Sequence[str],
        report: Callable[[Applied], object],
        changed: Callable[[], None],
        log: PipeLogger,
        took: Callable[[str], object],
    ) -> None:
        self._modules = list(modules)
        self._names = list(names)
        self._report = report
        self._changed = changed
        self._log = log
        self._took = took
        self._kinds: Mapping[str, Any] = {module.name: module.kind for module in modules}
        self._in_force: dict[str, Any] = {}
        self._hash = ""
        self._round: _Round | None = None
        self._late: _Round | None = None
        self._next: Config | None = None
        self.started = False
        """True once the modules were started, which the first configuration does."""

    def offer(self, config: Config) -> None:
        """Take a configuration from the master; `step` goes on with it.

        One that still waits for its turn is replaced and gets no answer: the latest one wins.
        """
        self._next = config

    def step(self, now: float) -> None:
        """Go on as far as the modules have got; `now` is monotonic seconds."""
        while True:
            self._watch_late()
            if self._round is None:
                if self._next is None:
                    return
                config, self._next = self._next, None
                started = self.started
                self._begin(config, now)
                if self.started != started:
                    return  # quick modules have taken it already, and `ready` goes first
            elif not self._proceed(self._round, now):
                return

    def deadline(self) -> float | None:
        """Return when `step` is to be called at the latest (monotonic seconds), or None."""
        return self._round.deadline if self._round is not None else None

    def _begin(self, config: Config, now: float) -> None:
        if self.started and self._hash and config.hash == self._hash:
            self._report(Applied(revision=config.revision, ok=True))
            return
        try:
            new = check(self._kinds, self._names, config.settings)
        except ConfigError as error:
            self._refused(config, str(error))
            if not self.started:
                self._start_on_defaults()
            return
        round_ = _Round(config=config, new=new, first=not self.started)
        self._round = round_
        if not self.started:
            self.started = True
            round_.deadline = now + TAKE_SECONDS
            for module in self._modules:
                self._in_force[module.name] = self._defaults(module)
                self._offer(round_, module)
                module.start(self._in_force[module.name])
            return
        round_.todo.extend(m for m in self._modules if not _same(new[m.name], self._in_force[m.name]))

    def _start_on_defaults(self) -> None:
        self.started = True
        for module in self._modules:
            self._in_force[module.name] = self._defaults(module)
            module.start(self._in_force[module.name])

    def _defaults(self, module: ModuleThread) -> Any | None:
        try:
            return check_one(module.name, module.kind, {})
        except ConfigError as error:
            # A module may insist on a setting. It then waits for a configuration that has it.
            self._log.warning("there are no defaults to fall back to: %s", error)
            return None

    def _proceed(self, round_: _Round, now: float) -> bool:
        """Do one step of a round. False: it has to wait for a module."""
        if not round_.offered:
            if not round_.todo:
                self._accepted(round_)
                return True
            round_.deadline = now + TAKE_SECONDS
            self._offer(round_, round_.todo.popleft())
        module, change = round_.offered[0]
        if change.outcome is None and now >= round_.deadline:
            if round_.first:
                # The modules hold it and are still starting. Whoever refuses it later is heard by `_late`.
                self._late = round_
                self._accepted(round_)
                return True
            if change.withdraw():
                self._end(round_, f"module {module.name} did not take the configuration within {TAKE_SECONDS:.0f} s")
                return True
        if change.outcome is None:
            return False
        round_.offered.pop(0)
        if change.outcome == "committed":
            round_.done.append(module)
        else:
            self._end(round_, f"module {module.name} refused it: {change.error}")
        return True

    def _offer(self, round_: _Round, module: ModuleThread) -> None:
        change = Change(round_.new[module.name], self._in_force[module.name], self._changed)
        round_.offered.append((module, change))
        module.mailbox.offer(change)

    def _accepted(self, round_: _Round) -> None:
        self._round = None
        self._hash = round_.config.hash
        self._in_force = dict(round_.new)
        for module in round_.done if not round_.first else ():
            self._took(module.name)
        self._report(Applied(revision=round_.config.revision, ok=True))

    def _end(self, round_: _Round, error: str) -> None:
        """Refuse a configuration: whoever has it already goes back."""
        self._round = None
        for module, change in round_.offered:
            if change.withdraw() or change.outcome != "committed":
                continue
            round_.done.append(module)
        for module in reversed(round_.done):
            old = self._in_force[module.name]
            if old is None:
                # Its very first configuration, and no defaults to go back to: it keeps what it can run on.
                self._in_force[module.name] = round_.new[module.name]
            else:
                module.mailbox.offer(Change(old, old, self._changed, rollback=True))
        self._refused(round_.config, error)

    def _watch_late(self) -> None:
        round_ = self._late
        if round_ is None:
            return
        for module, change in round_.offered:
            if change.outcome == "refused":
                # It runs on its defaults; the hash is forgotten so that the same configuration is tried again.
                self._late = None
                self._hash = ""
                self._in_force[module.name] = change.old
                self._refused(round_.config, f"module {module.name} refused it: {change.error}")
                return
        if all(change.outcome is not None for _module, change in round_.offered):
            self._late = None

    def _refused(self, config: Config, error: str) -> None:
        text = printable(error, ERROR_BYTES)
        self._log.warning("configuration of revision %d refused: %s", config.revision, text)
        self._report(Applied(revision=config.revision, ok=False, error=text))


def _same(new: object, old: object) -> bool:
    try:
        return bool(new == old)
    except Exception:  # noqa: BLE001  # a comparison of a module's own that fails: then it is offered
        return False
