"""Who may do what on the cluster: the users and roles of a fleet, and what is missing of them. Pure.

The roles and users named here belong to `garrison fleet init`: it makes them exactly what is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from garrison.supervisor.keys import KeyGrammarError, RegistrationKey, StatusKey, check_component, format_key

Kind: TypeAlias = Literal["read", "write", "readwrite"]

ROOT: Final = "root"
AGENT: Final = "garrison-agent"
OPERATOR: Final = "garrison-operator"
READER: Final = "garrison-reader"
SHARED: Final = "garrison-shared"
HOST_PREFIX: Final = "garrison-host-"

MAX_HOSTS: Final = 500
"""Most users of hosts: any change of a user or role makes every member rebuild the permissions of all users."""


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """What a role may do with a range of keys.

    Attributes:
        key: First key.
        range_end: First key behind the range; empty: only `key`.
        kind: What is allowed.
    """

    key: str
    range_end: str
    kind: Kind

    def __str__(self) -> str:
        """Return it for people."""
        if not self.range_end:
            return f"{self.kind} {self.key}"
        if self.range_end == prefix_end(self.key):
            return f"{self.kind} {self.key}*"
        return f"{self.kind} from {self.key} to {self.range_end}"


@dataclass(frozen=True, slots=True)
class Access:
    """Users and roles of a cluster.

    Attributes:
        roles: Permissions of each role.
        users: Roles of each user.
        enabled: Authentication is on.
    """

    roles: Mapping[str, frozenset[Permission]] = field(default_factory=dict)
    users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    enabled: bool = False


def prefix_end(prefix: str) -> str:
    """Return the first key behind all that start with a prefix (which ends in an ASCII character)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _below(prefix: str, kind: Kind) -> Permission:
    return Permission(prefix, prefix_end(prefix), kind)


def agent_permissions(prefix: str) -> frozenset[Permission]:
    """Return what all agents may do together: read what is meant for them, write what they say about themselves.

    They may read registrations, because a takeover compares, but not what other hosts say about their state.
    """
    return frozenset(
        {
            _below(f"{prefix}/server/config/", "read"),
            _below(f"{prefix}/agent/config/", "read"),
            _below(f"{prefix}/config/", "read"),
            _below(f"{prefix}/kafka/", "read"),
            _below(f"{prefix}/agent/master/", "readwrite"),
            _below(f"{prefix}/agent/status/", "write"),
            _below(f"{prefix}/alivehost/", "write"),
        }
    )


def shared_permissions(prefix: str) -> frozenset[Permission]:
    """Return what every host may read in the stricter mode: the keys of no single host."""
    return frozenset(
        {
            _below(f"{prefix}/server/config/@", "read"),
            _below(f"{prefix}/agent/config/@", "read"),
            _below(f"{prefix}/config/", "read"),
            _below(f"{prefix}/kafka/", "read"),
        }
    )


def host_permissions(prefix: str, host: str) -> frozenset[Permission]:
    """Return what one host may do in the stricter mode, beside `shared_permissions`.

    Raises:
        KeyGrammarError: The name cannot be that of a host.
    """
    check_component(host, "the hostname")
    if "--" in host:
        raise KeyGrammarError(f"the hostname {host!r} holds two hyphens, which end the name in /alivehost/ keys")
    return frozenset(
        {
            _below(f"{prefix}/server/config/{host}/", "read"),
            _below(f"{prefix}/agent/config/{host}/", "read"),
            Permission(format_key(RegistrationKey(host), prefix), "", "readwrite"),
            Permission(format_key(StatusKey(host), prefix), "", "write"),
            _below(f"{prefix}/alivehost/{host}--", "write"),
        }
    )


def wanted(prefix: str, hosts: Sequence[str] = ()) -> Access:
    """Return what a cluster should have.

    Args:
        prefix: What all keys start with.
        hosts: Those that get a user each; none: all agents share one.

    Raises:
        KeyGrammarError: A name cannot be that of a host, or there are too many.
    """
    if len(hosts) > MAX_HOSTS:
        raise KeyGrammarError(f"{len(hosts)} hosts; a user for each is for fleets of at most {MAX_HOSTS}")
    roles = {
        AGENT: agent_permissions(prefix),
        OPERATOR: frozenset({_below(f"{prefix}/", "readwrite")}),
        READER: frozenset({_below(f"{prefix}/", "read")}),
    }
    users = {ROOT: frozenset({ROOT}), **{name: frozenset({name}) for name in (AGENT, OPERATOR, READER)}}
    if hosts:
        # With a user for each host nobody should be able to be any host.
        del roles[AGENT], users[AGENT]
        roles[SHARED] = shared_permissions(prefix)
    for host in hosts:
        name = HOST_PREFIX + host
        roles[name] = host_permissions(prefix, host)
        users[name] = frozenset({SHARED, name})
    return Access(roles, users, enabled=True)


@dataclass(frozen=True, slots=True)
class AddRole:
    """Make a role without any permission."""

    role: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Give a role a permission, in place of another one for the same range."""

    role: str
    permission: Permission


@dataclass(frozen=True, slots=True)
class Revoke:
    """Take a permission from a role."""

    role: str
    permission: Permission


@dataclass(frozen=True, slots=True)
class AddUser:
    """Make a user without any role."""

    user: str


@dataclass(frozen=True, slots=True)
class SetRootPassword:
    """Set root's password to that in its file, while authentication is off and nobody can be locked out."""


@dataclass(frozen=True, slots=True)
class GrantRole:
    """Give a user a role."""

    user: str
    role: str


@dataclass(frozen=True, slots=True)
class RevokeRole:
    """Take a role from a user."""

    user: str
    role: str


@dataclass(frozen=True, slots=True)
class TurnOn:
    """Turn authentication on."""


Step: TypeAlias = AddRole | Grant | Revoke | AddUser | SetRootPassword | GrantRole | RevokeRole | TurnOn


def steps(actual: Access, want: Access) -> list[Step]:
    """Return what is to be done, in an order in which an end in the middle leaves nobody with more than he should have.

    Authentication comes last: until then nothing that runs today is refused.
    """
    found: list[Step] = []
    for role, permissions in want.roles.items():
        have = actual.roles.get(role)
        if have is None:
            found.append(AddRole(role))
            have = frozenset()
        kept = {(permission.key, permission.range_end) for permission in permissions}
        # A grant for the same range replaces, so only other ranges are taken away.
        found += [Revoke(role, p) for p in sorted(have - permissions) if (p.key, p.range_end) not in kept]
        found += [Grant(role, permission) for permission in sorted(permissions - have)]
    for user, roles in want.users.items():
        held = actual.users.get(user)
        if held is None:
            found.append(AddUser(user))
            held = frozenset()
        elif user == ROOT and not actual.enabled:
            found.append(SetRootPassword())
        if user != ROOT:  # which is everybody's, and may do all anyway
            found += [RevokeRole(user, role) for role in sorted(held - roles)]
        found += [GrantRole(user, role) for role in sorted(roles - held)]
    if not actual.enabled:
        found.append(TurnOn())
    return found


def strangers(actual: Access, want: Access) -> list[str]:
    """Return the users that are not the fleet's, with their roles, for the operator; they are left alone."""
    found = []
    for user, roles in sorted(actual.users.items()):
        if user not in want.users and user != AGENT and not user.startswith(HOST_PREFIX):
            found.append(f"{user} ({', '.join(sorted(roles)) or 'no role'})")
    return found
