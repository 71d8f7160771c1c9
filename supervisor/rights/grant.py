"""What a worker's process may do: worked out from what it asks for and what there is to give. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from garrison.ipc.rights import SystemCalls
from garrison.supervisor.rights import capabilities


class RightsError(Exception):
    """A worker cannot be given the rights that it is to have, and so it does not start. The text says what to do."""


class Grant(NamedTuple):
    """What a process is given.

    Attributes:
        capabilities: Bits by number.
        keeps_user: It stays the agent's user, because a capability that it works with cannot be had.
        missing: Names of those capabilities.
    """

    capabilities: int
    keeps_user: bool = False
    missing: tuple[str, ...] = ()


def grant(declared: Iterable[str], demanded: tuple[str, ...] | None, available: int, *, user_is_chosen: bool) -> Grant:
    """Return what a worker is given.

    What a module declares it works with, and does less without; what the settings demand must be had. A module that
    lacks one of its capabilities stays the agent's user where nobody chose another one: as the owner of most files it
    sees more than as anybody else.

    Args:
        declared: Capabilities that the modules declare.
        demanded: Those that the settings name instead, or None.
        available: What the agent has, as bits.
        user_is_chosen: The settings name the worker's user.

    Raises:
        RightsError: A capability is demanded that the agent does not have, or that does not exist.
    """
    wanted = declared if demanded is None else demanded
    try:
        bits = capabilities.bits(wanted)
    except ValueError as error:
        raise RightsError(f"it asks for a capability that does not exist: {error}") from error
    missing = bits & ~available
    if missing and demanded is not None:
        names = " ".join("CAP_" + name.upper() for name in capabilities.names(missing))
        raise RightsError(
            f"the agent does not have {names} to give: add it to the unit (`systemctl edit garrison`, "
            f"[Service] CapabilityBoundingSet={names}), or take it out of the worker's capabilities"
        )
    return Grant(bits & available, bool(missing) and not user_is_chosen, capabilities.names(missing))


def told(user: str, grant: Grant, level: SystemCalls) -> str:
    """Return what a process was given, for the log: ``user nobody, capabilities net_admin, system calls: usual``."""
    held = ", ".join(capabilities.names(grant.capabilities)) or "none"
    return f"user {user}, capabilities: {held}, system calls: {level}"
