"""Which drops a reader has been told of: a heartbeat that was delivered has told what was in it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

MAX_WAITING = 64
"""Most heartbeats that are waited for; of older ones the drops are told again, which changes nothing."""


@dataclass(frozen=True, slots=True)
class Told:
    """One heartbeat on its way.

    Attributes:
        at: When it was sent, monotonic seconds.
        last: The sequence number of its last document.
        numbers: By worker, up to which change of its drop ranges it tells.
    """

    at: float
    last: int
    numbers: Mapping[str, int]


class Telling:
    """Keeps what was sent until it has arrived."""

    def __init__(self) -> None:
        self._waiting: deque[Told] = deque(maxlen=MAX_WAITING)

    @property
    def waiting_since(self) -> float | None:
        """When the oldest heartbeat that has not arrived was sent; None: all have."""
        return self._waiting[0].at if self._waiting else None

    def sent(self, told: Told) -> None:
        """Note a heartbeat."""
        self._waiting.append(told)

    def arrived(self, through: int, dropped: list[tuple[int, int]]) -> dict[str, int]:
        """Return, by worker, up to which change its drops were told now.

        Args:
            through: The highest sequence number that was delivered; what is below was delivered too, or dropped.
            dropped: Ranges of those that were dropped, first and last number.
        """
        confirmed: dict[str, int] = {}
        while self._waiting:
            told = self._waiting[0]
            given_up = any(first <= told.last <= last for first, last in dropped)
            if told.last > through and not given_up:
                break
            self._waiting.popleft()
            if not given_up:
                for worker, number in told.numbers.items():
                    confirmed[worker] = max(confirmed.get(worker, 0), number)
        return confirmed
