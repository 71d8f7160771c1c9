"""The sandbox's clock: read on demand, so that no thread ticks for it."""

from __future__ import annotations

import time

GRAIN_SECONDS = 0.1
"""How old a timestamp may be. Events of one burst share one, and formatting it is paid for once."""


class CoarseClock:
    """Time for one module; not for sharing between threads."""

    __slots__ = ("_now", "_read_at", "_text")

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._now = 0.0
        self._text = ""

    def monotonic(self) -> float:
        """Return monotonic seconds, exact: for intervals and deadlines."""
        return time.monotonic()

    def now(self) -> float:
        """Return seconds since the epoch, up to 100 ms old: for timestamps only."""
        self.timestamp()
        return self._now

    def timestamp(self) -> str:
        """Return `now` in ISO 8601, UTC, with milliseconds: ``2026-01-02T03:04:05.678Z``."""
        at = time.monotonic()
        if at - self._read_at >= GRAIN_SECONDS:
            self._read_at = at
            self._now = time.time()
            self._text = iso8601(self._now)
        return self._text


def iso8601(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC with milliseconds, rounded down."""
    milliseconds = int(seconds * 1000 // 1)
    whole, rest = divmod(milliseconds, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:03d}Z"
