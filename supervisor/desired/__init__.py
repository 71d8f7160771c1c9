"""Desired state: from the keys of a store to what this host should do. Pure.

`resolve` is the one code path for every store; `changes` says what differs between two results.
"""

from garrison.supervisor.desired.changes import Change, changes
from garrison.supervisor.desired.model import (
    DEFAULT,
    LOCAL,
    Accepted,
    Context,
    Desired,
    MasterDesired,
    Memory,
    ResetMemory,
    WorkerBase,
    WorkerDesired,
)
from garrison.supervisor.desired.resolve import resolve
from garrison.supervisor.stores.base import Refusal

__all__ = [
    "DEFAULT",
    "LOCAL",
    "Accepted",
    "Change",
    "Context",
    "Desired",
    "MasterDesired",
    "Memory",
    "Refusal",
    "ResetMemory",
    "WorkerBase",
    "WorkerDesired",
    "changes",
    "resolve",
]
