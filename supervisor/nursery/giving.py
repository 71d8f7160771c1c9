"""The rights of a forked child: from what its modules declare and its settings say to what the process has.

Modules are loaded ahead of it, with the nursery's rights, because who may read their files is the agent; nothing of
them is run but their import.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from garrison.ipc.rights import SystemCalls
from garrison.supervisor.nursery.protocol import Spawn
from garrison.supervisor.rights import capabilities, seccomp
from garrison.supervisor.rights.accounts import Account
from garrison.supervisor.rights.drop import drop, hand_over
from garrison.supervisor.rights.grant import grant, told

if TYPE_CHECKING:
    from garrison.workers.runtime.loader import Loaded

_ROOT: Final = Account("root", 0, 0)
_PIPES: Final = (1, 3, 4)
"""Output and the two pipes to the master: for whoever opens one anew through /proc/self/fd."""


class Given(NamedTuple):
    """What a process was given.

    Attributes:
        rights: For the log.
        lacks: Capabilities that its modules work with and that the agent has not.
        system_calls: The filter that is still to be installed.
    """

    rights: str
    lacks: tuple[str, ...]
    system_calls: SystemCalls


def load(request: Spawn) -> Loaded | None:
    """Import the request's modules; None for a program."""
    if request.command:
        return None
    from garrison.workers.runtime.loader import load_all

    return load_all(request.modules)


def give(request: Spawn, loaded: Loaded | None) -> Given:
    """Become what the request says, all but the filter of system calls, which is for the last moment.

    Raises:
        RightsError: Something could not be given up or handed over; the process must end.
    """
    rights = request.rights
    declared: set[str] = set()
    level = rights.system_calls or "usual"
    if loaded is not None:
        kinds = tuple(loaded[0].values())
        for kind in kinds:
            declared.update(kind.capabilities)
        level = rights.system_calls or seccomp.loosest(tuple(kind.system_calls for kind in kinds))
    available = capabilities.held().permitted
    given = grant(declared, rights.capabilities, available, user_is_chosen=rights.user_is_chosen)
    as_root = os.geteuid() == 0
    account = Account(rights.user, rights.uid, rights.gid, rights.groups) if rights.user else None
    if account is not None and not as_root and account.uid == os.geteuid():
        account = None
    if given.keeps_user:
        account = None
    if as_root:
        trouble = hand_over(account or _ROOT, request.state_dir, _PIPES if account is not None else ())
        if trouble:
            os.write(2, f"garrison: {trouble}\n".encode())
    drop(account, given.capabilities, for_exec=bool(request.command))
    reason = seccomp.why_not() if level != "any" else ""
    if reason:
        level = "any"
    user = account.name if account is not None else f"uid {os.geteuid()}"
    return Given(told(user, given, level) + (f" ({reason})" if reason else ""), given.missing, level)
