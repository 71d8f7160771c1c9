"""What a worker may do, from its settings and this host's users."""

from __future__ import annotations

import os
from typing import Final

from garrison.supervisor.nursery.protocol import Rights
from garrison.supervisor.rights.accounts import Account, NoAccountError, lookup
from garrison.supervisor.settings import Worker

WORKER_USER: Final = "garrison-worker"
"""The user that the packages make."""


def rights_of(definition: Worker, folder: str = "/etc") -> Rights:
    """Return what a worker's next process may do.

    Args:
        definition: Its settings, with `agent.worker_user` in place of a user that is not named.
        folder: Where passwd and group are.

    Raises:
        NoAccountError: The user that the settings name does not exist.
    """
    account = _account(definition.user, folder)
    calls = definition.system_calls
    return Rights(
        user=account.name if account else "",
        uid=account.uid if account else -1,
        gid=account.gid if account else -1,
        groups=account.groups if account else (),
        user_is_chosen=bool(definition.user),
        capabilities=tuple(name for name in definition.capabilities if name != "none")
        if definition.capabilities
        else None,
        system_calls="" if calls == "declared" else calls,
    )


def _account(name: str, folder: str) -> Account | None:
    if name:
        return lookup(name, folder)
    if os.geteuid() != 0:
        return None
    try:
        return lookup(WORKER_USER, folder)
    except NoAccountError:
        return None
