"""How full a queue is, in words: normal, warning, full, flood. With hysteresis, so that it does not flicker. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

WARN_SHARE: Final = 0.9
NORMAL_SHARE: Final = 0.7
FLOOD_SECONDS: Final = 15.0
"""How long it must be full without a break. These three numbers are those of Wazuh's agent buffer."""
FULL_SHARE: Final = 0.99
"""A queue of batches is full when the next one does not fit, which is a little before its last byte."""

Phase = Literal["normal", "warning", "full", "flood"]


@dataclass(frozen=True, slots=True)
class Level:
    """What is known of a queue.

    Attributes:
        phase: ``warning`` from 90 % on until it is below 70 % again; ``full`` while it is full, ``flood`` when it has
            been for 15 s; then back to ``warning`` as soon as there is room.
        full_since: Monotonic seconds; None while it is not full.
    """

    phase: Phase = "normal"
    full_since: float | None = None


def judge(level: Level, at: float, share: float, *, overflowed: bool = False) -> Level:
    """Return what follows from a look.

    Args:
        level: What was known.
        at: Monotonic seconds; a time before the last one counts as that one.
        share: How much of its bound is used, 0 to 1.
        overflowed: Something was dropped for want of room since the last look.
    """
    if overflowed or share >= FULL_SHARE:
        since = at if level.full_since is None else min(level.full_since, at)
        phase: Phase = "flood" if level.phase == "flood" or at - since >= FLOOD_SECONDS else "full"
        return Level(phase, since)
    if share >= WARN_SHARE:
        return Level("warning")
    if share > NORMAL_SHARE and level.phase != "normal":
        return Level("warning")
    return Level("normal")
