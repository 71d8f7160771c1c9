"""Users and roles: what is missing of them, and that doing it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.fleet.etcd.access import (
    AGENT,
    MAX_HOSTS,
    ROOT,
    Access,
    AddRole,
    AddUser,
    Grant,
    GrantRole,
    Permission,
    Revoke,
    RevokeRole,
    SetRootPassword,
    Step,
    TurnOn,
    prefix_end,
    steps,
    wanted,
)
from garrison.supervisor.keys import KeyGrammarError

PERMISSIONS = st.builds(
    Permission,
    st.sampled_from(["/hids/", "/hids/server/config/", "/hids/agent/master/", "/x"]),
    st.sampled_from(["", "/hids/server/config0", "/hids/agent/master0", "/z"]),
    st.sampled_from(["read", "write", "readwrite"]),
)


def one_a_range(permissions: list[Permission]) -> frozenset[Permission]:
    """etcd holds one permission for each range."""
    return frozenset({(p.key, p.range_end): p for p in permissions}.values())


ROLES = st.dictionaries(
    st.sampled_from([AGENT, "garrison-operator", "other"]), st.lists(PERMISSIONS, max_size=5).map(one_a_range)
)
USERS = st.dictionaries(
    st.sampled_from([ROOT, AGENT, "garrison-reader", "mallory"]),
    st.frozensets(st.sampled_from([ROOT, AGENT, "garrison-operator", "other"]), max_size=3),
)


def applied(actual: Access, work: list[Step]) -> Access:
    """Do the steps as etcd does them."""
    roles = {name: {(p.key, p.range_end): p for p in permissions} for name, permissions in actual.roles.items()}
    users = {name: set(held) for name, held in actual.users.items()}
    enabled = actual.enabled
    for step in work:
        match step:
            case AddRole(role):
                assert role not in roles
                roles[role] = {}
            case Grant(role, p):
                roles[role][p.key, p.range_end] = p
            case Revoke(role, p):
                del roles[role][p.key, p.range_end]
            case AddUser(user):
                assert user not in users
                users[user] = set()
            case GrantRole(user, role):
                assert role == ROOT or role in roles
                users[user].add(role)
            case RevokeRole(user, role):
                users[user].remove(role)
            case SetRootPassword():
                assert not enabled
            case TurnOn():
                assert ROOT in users[ROOT]
                enabled = True
    return Access(
        {name: frozenset(held.values()) for name, held in roles.items()},
        {name: frozenset(held) for name, held in users.items()},
        enabled,
    )


@given(ROLES, USERS, st.booleans(), st.sampled_from([(), ("web1",), ("web1", "web2")]))
def test_from_anywhere_one_run_arrives_and_the_next_has_nothing_to_do(
    roles: dict[str, frozenset[Permission]], users: dict[str, frozenset[str]], enabled: bool, hosts: tuple[str, ...]
) -> None:
    want = wanted("/hids", hosts)
    after = applied(Access(roles, users, enabled), steps(Access(roles, users, enabled), want))
    assert steps(after, want) == []
    for name, permissions in want.roles.items():
        assert after.roles[name] == permissions
    for name in set(users) - set(want.users):
        assert after.users[name] == users[name]


@given(ROLES, USERS, st.data())
def test_a_run_that_ends_anywhere_is_completed(
    roles: dict[str, frozenset[Permission]], users: dict[str, frozenset[str]], data: st.DataObject
) -> None:
    want, start = wanted("/hids"), Access(roles, users)
    work = steps(start, want)
    middle = applied(start, work[: data.draw(st.integers(0, len(work)))])
    assert steps(applied(middle, steps(middle, want)), want) == []


def test_authentication_comes_last() -> None:
    assert steps(Access(), wanted("/hids"))[-1] == TurnOn()
    assert TurnOn() not in steps(Access(enabled=True), wanted("/hids"))


def test_no_role_of_agents_writes_what_others_obey() -> None:
    for hosts in ((), ("web1", "web2")):
        for name, permissions in wanted("/hids", hosts).roles.items():
            if name in ("garrison-operator", "garrison-reader"):
                continue
            for permission in permissions:
                if permission.kind != "read":
                    assert permission.key.startswith(("/hids/agent/master/", "/hids/agent/status/", "/hids/alivehost/"))
                assert permission.range_end in ("", prefix_end(permission.key))


def test_too_many_hosts_and_no_hosts_are_refused() -> None:
    with pytest.raises(KeyGrammarError, match="at most 500"):
        wanted("/hids", [f"web{i}" for i in range(MAX_HOSTS + 1)])
    with pytest.raises(KeyGrammarError):
        wanted("/hids", ["web1/../web2"])
