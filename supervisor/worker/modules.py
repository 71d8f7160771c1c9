"""What a beat says of the breakers inside a worker: every word a claim. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from garrison.ipc.messages import Beat, Hold, ModuleBeat, ModuleState


def changes(before: Mapping[str, ModuleBeat], beat: Beat) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield action and fields of an event for each module whose own breaker has changed.

    Args:
        before: The modules as the last beat had them, or as they were handed to the process.
        beat: The newest beat.
    """
    for module in beat.modules:
        action = _action(before.get(module.name, ModuleBeat(name=module.name)), module, beat.degraded)
        if action:
            yield (
                action,
                {
                    "module": module.name,
                    "cause": module.cause,
                    "cpu_percent": round(module.cpu_percent, 2),
                    "task": module.last_task,
                    "trips": module.trips,
                    "dry_run": action == "module-would-trip" or None,
                    "retry_in_seconds": module.retry_in_seconds if module.state == "tripped" else None,
                    "reason": module.error,
                },
            )


def handed(held: Mapping[str, Hold]) -> dict[str, ModuleBeat]:
    """Return what a process was told about its modules in the shape of a beat: nothing of it is news."""
    states: dict[str, ModuleState] = {"latched": "latched", "open": "tripped", "closed": "running"}
    return {
        name: ModuleBeat(
            name=name,
            state=states[hold.phase],
            trips=hold.trips,
            level=hold.level,
            cause=hold.cause,
        )
        for name, hold in held.items()
    }


def asks_again(beat: Beat | None, held: Mapping[str, Hold]) -> ModuleBeat | None:
    """Return the module for whose sake a worker asks to be started again: one that has tripped in this process."""
    for module in beat.modules if beat is not None else ():
        known = held.get(module.name)
        if module.state in ("tripped", "latched") and module.trips > (known.trips if known is not None else 0):
            return module
    return None


def _action(before: ModuleBeat, now: ModuleBeat, all_degraded: bool) -> str:
    if now.trips > before.trips:
        return "module-latched" if now.state == "latched" else "module-tripped"
    if now.would_trips > before.would_trips:
        return "module-would-trip"
    if now.probation and not before.probation:
        return "module-probation"
    if before.probation and not now.probation and now.state == "running":
        return "module-restored"
    if all_degraded:
        return ""  # the agent asked all of them, and has said so
    if now.degraded and not before.degraded:
        return "module-degraded"
    if before.degraded and not now.degraded and now.state == "running":
        return "module-restored"
    return ""
