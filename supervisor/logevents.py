"""Log lines of the level ``warning`` and above as events, where the settings ask for it.

A log line must never become the reason of another one by way of the sink. So nothing passes while something is wrong
with the sink, nothing ever passes from the sources that tell of the way out, and what passes is rated, each source and
all together. What does not pass is counted, and the next event of its source says how many.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from garrison.ipc.messages import LOG_LEVELS
from garrison.ipc.pacing import TokenBucket
from garrison.supervisor.logsinks import Line

SOURCE_PER_SECOND = 0.1
SOURCE_BURST = 10.0
PER_SECOND = 1.0
BURST = 50.0
MAX_SOURCES = 256
"""Sources that have a rate of their own; the one that has been silent longest makes room."""
MAX_WAITING = 100
"""Lines that wait for the loop."""
MAX_TEXT_CHARACTERS = 2000

WAY_OUT = (
    "agent.sink",
    "agent.spool",
    "sink",
    "spool",
    "pipeline",
    "kafka",
    "python.kafka",
    "supervisor.logs",
)
"""Sources that tell of the way out, with all below them: never events."""


class Admission:
    """Which lines pass. Pure: time and the sink's state come in as arguments."""

    def __init__(self) -> None:
        self._all = TokenBucket(PER_SECOND, BURST)
        self._sources: OrderedDict[str, TokenBucket] = OrderedDict()
        self._suppressed: dict[str, int] = {}

    def admit(self, source: str, now: float, *, well: bool) -> int | None:
        """Return how many lines of a source did not pass since its last one that did; None: this one does not either.

        Args:
            source: The line's source.
            now: Monotonic seconds.
            well: Nothing is wrong with the way out.
        """
        bucket = self._bucket(source)
        # The source's own first: what one source has too much of must not use up what all may send.
        if well and not tells_of_the_way_out(source) and bucket.admit(0, now) and self._all.admit(1, now):
            bucket.admit(1, now)
            return self._suppressed.pop(source, 0)
        self._suppressed[source] = self._suppressed.get(source, 0) + 1
        return None

    def _bucket(self, source: str) -> TokenBucket:
        bucket = self._sources.get(source)
        if bucket is None:
            while len(self._sources) >= MAX_SOURCES:
                oldest, _ = self._sources.popitem(last=False)
                self._suppressed.pop(oldest, None)
            bucket = self._sources[source] = TokenBucket(SOURCE_PER_SECOND, SOURCE_BURST)
        self._sources.move_to_end(source)
        return bucket


def tells_of_the_way_out(source: str) -> bool:
    """Tell whether a source is one of `WAY_OUT` or below it."""
    return any(source == name or source.startswith(f"{name}.") for name in WAY_OUT)


class LogEvents:
    """Takes lines from any thread and emits events from the loop.

    Args:
        emit: Emits an event of the agent's own: line, lines before it that were left out.
        well: Tells whether nothing is wrong with the way out.
        call_in_loop: Has something called from the loop, from any thread.
        clock: Monotonic seconds.

    Attributes:
        sent: Lines that became events.
        suppressed: Lines that did not.
    """

    def __init__(
        self,
        emit: Callable[[Line, int], None],
        well: Callable[[], bool],
        call_in_loop: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        self.sent = 0
        self.suppressed = 0
        self._emit = emit
        self._well = well
        self._call_in_loop = call_in_loop
        self._clock = clock
        self._admission = Admission()
        self._waiting: deque[Line] = deque()
        self._called = False
        # Reentrant, because a destructor that runs while it is held may log.
        self._lock = threading.RLock()

    def take(self, line: Line) -> None:
        """Take a line; from any thread, at once."""
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self.suppressed += 1
                return
            self._waiting.append(line)
            called, self._called = self._called, True
        if not called:
            self._call_in_loop(self._pass_on)

    def _pass_on(self) -> None:
        with self._lock:
            self._called = False
            lines, self._waiting = self._waiting, deque()
        well = self._well()
        for line in lines:
            before = self._admission.admit(line.source, self._clock(), well=well)
            if before is None:
                with self._lock:
                    self.suppressed += 1
                continue
            self.sent += 1
            self._emit(line, before)


def document(line: Line, before: int) -> dict[str, Any]:
    """Return what an event tells of a line.

    Args:
        line: The line.
        before: Lines of its source that were left out before it.
    """
    return {
        "message": line.text[:MAX_TEXT_CHARACTERS],
        "log": {"level": LOG_LEVELS[line.rank], "logger": line.source},
        "event": {"kind": "event", "category": ["host"], "type": ["info"], "action": "log"},
        **({"garrison": {"lines_left_out": before}} if before else {}),
    }


def about(line: Line) -> str:
    """Return the worker that a line is about, or ``agent``."""
    kind, _, rest = line.source.partition(".")
    return rest.partition(".")[0] if kind == "worker" and rest else "agent"
