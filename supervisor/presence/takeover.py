"""What to do about a registration that is already there. Pure.

Two agents must never take one key from each other for ever, whatever was cloned: the disk, the machine id, a running
machine. So a key is only taken over by who can show that its writer is gone, or was this host in this boot; and a
process that was itself displaced never takes the key back while the other's lease lives.

| the key | and | decision |
|---|---|---|
| is not there | | create |
| was written by this process | is on our lease | keep |
| was written by this process | is on another lease | take over |
| is of another machine, or unreadable | | duplicate |
| is of this machine | its lease is gone, or it never had one | take over |
| is of this machine, or on our lease | this process was displaced from it | duplicate |
| is of this machine, this boot | | take over |
| is on our lease | | take over |
| is of this machine, another boot | its lease has not been waited for | wait for its end |
| is of this machine, another boot | its lease outlived the wait | duplicate |

The fourth row from below is the restart of an agent. The last two are a power cut (the old lease runs out) and a
cloned machine (its lease is renewed by the other). The process id alone proves nothing: clones boot alike.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from garrison.supervisor.keys import shown
from garrison.supervisor.presence.document import Registration

WAIT_MARGIN_SECONDS = 2.0
"""Beyond the rest of a lease: etcd looks for expired leases twice a second and deletes their keys in batches."""

Action: TypeAlias = Literal["create", "keep", "take over", "wait", "duplicate"]


class Existing(msgspec.Struct, frozen=True):
    """A registration as it was found.

    Attributes:
        document: What it says; None where it cannot be read.
        lease_id: That the key is on; 0 for none.
        lease_seconds: What is left of that lease; 0 or less where it is gone.
        mod_revision: Of the key: what a takeover compares.
    """

    document: Registration | None
    lease_id: int
    lease_seconds: float
    mod_revision: int


class Decision(msgspec.Struct, frozen=True):
    """What to do.

    Attributes:
        action: ``create``, ``take over``: write, if nothing has changed since the look. ``keep``: it is there.
            ``wait``: look again after `seconds`. ``duplicate``: report `text`, look again later.
        seconds: How long to wait.
        text: Why, for the operator.
    """

    action: Action
    seconds: float = 0.0
    text: str = ""


def decide(
    host: str, me: Registration, lease_id: int, existing: Existing | None, *, displaced: bool, waited: bool
) -> Decision:
    """Return what to do about what was found.

    Args:
        host: The hostname, for the text.
        me: Our own registration.
        lease_id: Our living lease.
        existing: What is there; None where nothing is.
        displaced: Whether this process held the key and another has taken it since.
        waited: Whether the key has outlived a wait that an earlier decision asked for.
    """
    if existing is None:
        return Decision("create")
    other, ours = existing.document, existing.lease_id == lease_id
    if other is not None and other.instance and other.instance == me.instance:
        return Decision("keep" if ours else "take over")
    same_machine = other is not None and bool(me.machine_id) and other.machine_id == me.machine_id
    if not (same_machine or ours):
        return Decision("duplicate", text=_duplicate(host, existing, "another machine"))
    if existing.lease_seconds <= 0:
        return Decision("take over")
    if displaced:
        return Decision("duplicate", text=_duplicate(host, existing, "a copy of this machine or a second agent on it"))
    if ours or (other is not None and other.boot_id and other.boot_id == me.boot_id):
        return Decision("take over")
    if not waited:
        text = f"{host} is still registered by an earlier boot of this machine; that ends with its lease"
        return Decision("wait", existing.lease_seconds + WAIT_MARGIN_SECONDS, text)
    return Decision("duplicate", text=_duplicate(host, existing, "a copy of this machine (the same machine-id)"))


def _duplicate(host: str, existing: Existing, who: str) -> str:
    other = existing.document
    if other is None:
        found = "by something that is no agent: the value of the key cannot be read"
    else:
        address = shown(", ".join(other.ip_addresses[:2]) or "no address", 100)
        found = f"by {who}: {address}, agent {shown(other.version, 40)}, started {shown(other.started, 40)}"
    remedy = (
        "delete the key"
        if existing.lease_id == 0
        else "give one of the two another agent.hostname (and a cloned machine a new /etc/machine-id)"
    )
    return f"duplicate host {host}: registered {found}; {remedy}. Keys are obeyed here, nothing is written"
