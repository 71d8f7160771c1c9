"""What can go wrong with a call to etcd, in kinds that a caller can act on. Pure."""

from __future__ import annotations

from typing import Literal, TypeAlias

from garrison.supervisor.keys import shown

Kind: TypeAlias = Literal[
    "unavailable",
    "timeout",
    "no_leader",
    "permission",
    "auth",
    "no_space",
    "compacted",
    "behind",
    "lease_gone",
    "lease_exists",
    "too_large",
    "credentials",
    "closed",
    "other",
]

KINDS: dict[Kind, str] = {
    "unavailable": "the endpoint does not answer, or refuses the connection (TLS included)",
    "timeout": "there was no answer in time",
    "no_leader": "the member is cut off from its cluster, or the cluster has no quorum",
    "permission": "the user may not do this; a failure, and never to be read as absence",
    "auth": "user or password are wrong, or missing",
    "no_space": "the database is full: reads work, writes do not",
    "compacted": "the revision asked for is compacted: list anew",
    "behind": "the revision asked for is in the future: this is another history, or a member that lags",
    "lease_gone": "there is no such lease (any more)",
    "lease_exists": "a lease of this id is there already",
    "too_large": "the answer is larger than this side takes",
    "credentials": "a certificate, key or password file of this host cannot be used",
    "closed": "the connection was closed on this side",
    "other": "anything else; the text says what",
}
"""What each kind means."""

REMEDIES: dict[Kind, str] = {
    "permission": "give the user the role of agents (`garrison fleet init` makes it)",
    "auth": "correct [store.etcd] username and password_file, or the user's password in etcd",
    "no_space": "compact and defragment etcd, then `etcdctl alarm disarm`",
    "no_leader": "look at the health of the cluster",
}
"""What can be done, where the kind says it; `describe` puts it behind the text, after a semicolon."""

_BY_DETAIL: tuple[tuple[str, Kind], ...] = (
    ("no leader", "no_leader"),
    ("not leader", "no_leader"),
    ("request timed out", "timeout"),
    ("required revision has been compacted", "compacted"),
    ("required revision is a future revision", "behind"),
    ("database space exceeded", "no_space"),
    ("requested lease not found", "lease_gone"),
    ("lease already exists", "lease_exists"),
    ("message larger than max", "too_large"),
    ("permission denied", "permission"),
    ("invalid auth token", "auth"),
    ("authentication failed", "auth"),
    ("user name is empty", "auth"),
    ("user name not found", "auth"),
    ("auth store is old", "auth"),
    ("revision in auth store is old", "auth"),
)

_BY_CODE: dict[str, Kind] = {
    "UNAVAILABLE": "unavailable",
    "DEADLINE_EXCEEDED": "timeout",
    "PERMISSION_DENIED": "permission",
    "UNAUTHENTICATED": "auth",
    "CANCELLED": "closed",
}


class EtcdError(Exception):
    """A call failed. Nothing is known of whether a write was done.

    Attributes:
        kind: One of `KINDS`.
        endpoint: Which endpoint it was.
        text: What happened, for the operator.
    """

    def __init__(self, kind: Kind, text: str, endpoint: str = "") -> None:
        super().__init__(f"{endpoint}: {text}" if endpoint else text)
        self.kind = kind
        self.endpoint = endpoint
        self.text = text


def kind_of(code: str, detail: str) -> Kind:
    """Return the kind of a gRPC status.

    Args:
        code: The name of its code, ``UNAVAILABLE``.
        detail: Its text. etcd's own messages are more precise than the codes that it gives them.
    """
    lower = detail.lower()
    for part, kind in _BY_DETAIL:
        if part in lower:
            return kind
    return _BY_CODE.get(code, "other")


def describe(what: str, kind: Kind, code: str, detail: str) -> str:
    """Return the text of a failed call: what was tried, what happened, and what can be done where that is known."""
    said = shown(" ".join(detail.replace("etcdserver: ", "").split())) or code
    remedy = REMEDIES.get(kind, "")
    return f"{what}: {said}" + (f"; {remedy}" if remedy else "")


def needs_new_token(code: str, detail: str) -> bool:
    """Tell whether a call failed only because the token is not good any more."""
    lower = detail.lower()
    return code == "UNAUTHENTICATED" or "invalid auth token" in lower or "auth store is old" in lower
