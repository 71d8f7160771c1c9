"""Tickers: when to call what. Pure: time comes in as an argument.

The ticks of a period lie at ``phase + k * period`` on the monotonic clock, where the phase comes from a hash
of host and worker. So the fleet, and the workers of a host, are staggered, while all tickers of one process
share a phase: a 60 s ticker fires in the same wakeup as a 10 s one. Periods that do not divide each other
meet on a grid: each tick is moved up to the next multiple of a power of two seconds, at most a tenth of the
period, and grids of powers of two contain one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from garrison.ipc.pacing import spread

MIN_PERIOD_SECONDS = 0.01
MAX_TICKERS = 64
_PHASE_RANGE_SECONDS = 86_400.0


def grid_of(period: float) -> float:
    """Return the grid step of a period, seconds: a power of two, at most a second and a tenth of the period."""
    return 2.0 ** math.floor(math.log2(min(1.0, period / 10.0)))


class _Ticker:
    __slots__ = ("call", "due", "grid", "period", "planned")

    def __init__(self, period: float, call: Callable[[], None], due: float) -> None:
        self.period = self.planned = period
        self.grid = grid_of(period)
        self.call = call
        self.due = due


class Tickers:
    """The tickers of one module.

    Args:
        identity: Host and worker: what the phase is drawn from.
    """

    __slots__ = ("_phase", "_tickers")

    def __init__(self, *identity: str) -> None:
        self._phase = spread(*identity, "tickers") * _PHASE_RANGE_SECONDS
        self._tickers: list[_Ticker] = []

    def __len__(self) -> int:
        return len(self._tickers)

    def add(self, period: float, call: Callable[[], None], now: float, *, immediately: bool = False) -> None:
        """Add a ticker; its first call comes after a share of the period, or at once where `immediately`.

        Args:
            period: Seconds, at least 0.01.
            call: What to call.
            now: Monotonic seconds.
            immediately: Make the first call due now.

        Raises:
            ValueError: The period is no such number, or there are 64 tickers already.
        """
        if not MIN_PERIOD_SECONDS <= period < math.inf:
            raise ValueError(f"a ticker's period must be at least {MIN_PERIOD_SECONDS} s, not {period!r}")
        if len(self._tickers) >= MAX_TICKERS:
            raise ValueError(f"a module may have at most {MAX_TICKERS} tickers")
        ticker = _Ticker(period, call, now)
        if not immediately:
            ticker.due = self._tick_from(ticker, math.nextafter(now, math.inf), period)
        self._tickers.append(ticker)

    def next_due(self) -> float | None:
        """Return the monotonic time of the next call, or None without tickers."""
        return min((ticker.due for ticker in self._tickers), default=None)

    def due(self, now: float, stretch: float = 1.0) -> list[Callable[[], None]]:
        """Return what is to be called now, in the order of being added, and plan each one's next call.

        Nothing comes before its tick. What is late is called once, and then not again within half a
        period, so that a stalled module does not come back to a heap of work. `stretch`, 1 or more, makes the periods
        longer from the next call on: a whole number keeps the ticks on those that would have come anyway.
        """
        calls = []
        for ticker in self._tickers:
            period = ticker.period * stretch
            if now >= ticker.due:
                calls.append(ticker.call)
                ticker.due = self._tick_from(ticker, now + period / 2, period)
            elif ticker.due - now > 2 * max(period, ticker.planned):
                # Only a clock that went backwards leaves a tick that far ahead: plan anew rather than wait.
                ticker.due = self._tick_from(ticker, math.nextafter(now, math.inf), period)
        return calls

    def _tick_from(self, ticker: _Ticker, earliest: float, period: float) -> float:
        ticker.planned = period
        count = math.ceil((earliest - self._phase) / period)
        tick = count * period
        due = self._phase + math.ceil(tick / ticker.grid) * ticker.grid
        return max(due, earliest)  # rounding in the last bit must not make it early
