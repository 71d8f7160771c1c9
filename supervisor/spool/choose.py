"""The spool as the settings want it."""

from __future__ import annotations

from collections.abc import Callable

from garrison.supervisor.events.pipeline import Spooling
from garrison.supervisor.settings import Settings
from garrison.supervisor.spool.keeper import SpoolPlan


def spooling_of(settings: Settings, on_trouble: Callable[[str], None]) -> Spooling | None:
    """Return how the pipeline spools; None: not at all."""
    spool = settings.spool
    if spool.max_bytes == 0:
        return None
    plan = SpoolPlan(spool.path, spool.max_bytes, spool.keep_free, always=spool.durability == "always")
    return Spooling(plan, spool.drain_bytes_per_second, spool.drain_spread_seconds, on_trouble)
