"""What a detection module is and what it may use: the interface between detection code and the runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import TokenBucket
from garrison.ipc.rights import SystemCalls


class ConfigError(ValueError):
    """A module refuses a configuration. The text goes to the operator: which field, what is wrong with it."""


class NoConfig(msgspec.Struct, forbid_unknown_fields=True):
    """For a module without settings."""


class Clock(Protocol):
    """Time, read when asked and at most every 100 ms: no thread ticks for it."""

    def monotonic(self) -> float:
        """Return monotonic seconds, exact: for intervals and deadlines."""

    def now(self) -> float:
        """Return seconds since the epoch, up to 100 ms old: for timestamps only."""

    def timestamp(self) -> str:
        """Return `now` in ISO 8601, UTC, with milliseconds: ``2026-01-02T03:04:05.678Z``."""


class Logger(Protocol):
    """Lines for the agent's log, by syslog level, rate-limited; `args` are for ``%`` formatting."""

    def debug(self, message: str, *args: object) -> None:
        """Log at this level."""

    def info(self, message: str, *args: object) -> None:
        """Log at this level."""

    def notice(self, message: str, *args: object) -> None:
        """Log at this level."""

    def warning(self, message: str, *args: object) -> None:
        """Log at this level."""

    def error(self, message: str, *args: object) -> None:
        """Log at this level."""

    def critical(self, message: str, *args: object) -> None:
        """Log at this level."""


class Sandbox(Protocol):
    """All that a module sees of the agent. Each module has its own; it is used from the module's thread."""

    name: str
    """The module's name: the default of ``event.module`` is the worker's name."""
    worker: str
    config: Any
    """The module's `Config` in force; replaced as a whole, between two calls of `wait`."""
    clock: Clock
    log: Logger
    state_dir: str
    """A directory of the worker's own for what should survive a restart; may be missing or full."""

    @property
    def stopping(self) -> bool:
        """True once the module should return from `run`."""

    @property
    def degraded(self) -> bool:
        """True while the module is asked to do less: leave out what is expensive and not essential.

        By the agent, or for what the module uses itself. Tickers come half as often and `pace` takes twice as long.
        """

    @property
    def cpu_percent(self) -> float:
        """What long work may use now, percent of one core: 80 % of the module's share of ``cpu_trip_percent``.

        More while a task with an allowance of its own runs. For modules that pace themselves; others call `pace`.
        """

    def emit(self, event: dict[str, Any], *, priority: Priority | None = None) -> bool:
        """Send an ECS document (nested dicts; ``event.kind`` and ``event.action`` given).

        Fills in ``@timestamp``, ``event.module`` and ``event.sequence``. The priority follows from
        ``event.kind`` unless given. Never blocks. False: dropped and counted.
        """

    def every(self, seconds: float, call: Callable[[], None], *, immediately: bool = False) -> None:
        """Call something about every so many seconds, from `wait`, in the module's thread.

        Calls of one process are merged into common wakeups and staggered by host, so the first comes after
        a share of the period (at once where `immediately`). A late call is not made up for.
        """

    def wait(self, *fds: int, timeout: float | None = None) -> list[int]:
        """Sleep until a descriptor is readable, the timeout (seconds) is over, or the module should stop.

        Runs tickers that are due, configuration changes and tasks meanwhile. Returns the readable
        descriptors; with an empty list look at `stopping`.
        """

    def rate(self, per_second: float, burst: float) -> TokenBucket:
        """Return a token bucket for the module's own use, to be asked with ``clock.monotonic()``."""

    def pace(self, work: str = "") -> bool:
        """Pause as long as the CPU time of the module's thread asks for: to be called between the items of long work.

        Keeps it at `cpu_percent` on average, so that a scan never looks like a breach. Meanwhile it does what `wait`
        does. `work` is the name under which a beat and a trip show what is going on. False: the module should stop.
        """


class Module:
    """Base of detection modules; each method runs in the module's own thread.

    A method that raises is reported and the module is started again with backoff, from `init`.
    """

    Config: ClassVar[type[msgspec.Struct]] = NoConfig
    """Settings with defaults and ranges (``forbid_unknown_fields=True``); only changed fields need be given."""

    capabilities: ClassVar[tuple[str, ...]] = ()
    """Linux capabilities that it works with (`ipc.rights.CAPABILITIES`); its process has no others. Where the agent
    itself lacks one the module runs without: `init` finds out, and does less or raises."""

    system_calls: ClassVar[SystemCalls] = "usual"
    """What it may ask the kernel for; what is not allowed fails with EPERM. Several modules of one process have what
    the one with the loosest needs."""

    def init(self, box: Sandbox) -> None:
        """Open what is needed. ``box.config`` holds the checked configuration."""

    def run(self, box: Sandbox) -> None:
        """Work until ``box.stopping``. The default only waits, for modules made of tickers."""
        while not box.stopping:
            box.wait()

    def shutdown(self, box: Sandbox) -> None:
        """Close what `init` opened; called also after a failure of `init` or `run`."""

    def reconfigure(self, box: Sandbox, config: Any) -> None:
        """Take a checked configuration; ``box.config`` still holds the old one. The default just takes it.

        Raises:
            ConfigError: The configuration cannot be used; the old one stays.
        """

    def task(self, box: Sandbox, name: str, arguments: Mapping[str, Any]) -> Any:
        """Do one piece of work and return what goes back to the operator.

        Raises:
            LookupError: There is no such task.
        """
        raise LookupError(f"the module has no task {name!r}")
