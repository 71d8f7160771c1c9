"""How full the way out is: one answer for the heartbeat, the metrics and the status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpoolFigures:
    """The spool on disk.

    Attributes:
        bytes: What its files take now.
        max_bytes: What they may take.
        events: Events that wait in it.
        error: Why it cannot be used now; empty where it can.
    """

    bytes: int = 0
    max_bytes: int = 0
    events: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """The pipeline at one moment.

    Attributes:
        sink: The backend in use.
        error: What is wrong with it now; empty where nothing is.
        queue_bytes: What the queue ahead of it holds.
        queue_max_bytes: What it may hold.
        spool: The spool; None where there is none.
    """

    sink: str
    error: str
    queue_bytes: int
    queue_max_bytes: int
    spool: SpoolFigures | None = None
