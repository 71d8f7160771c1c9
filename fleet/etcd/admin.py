"""Users, roles and authentication of a cluster, over the same kind of connection that agents use."""

from __future__ import annotations

from typing import Any, Final

from garrison.fleet.etcd.access import Access, Grant, Kind, Permission, Revoke
from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.library import rpc

_KINDS: Final[dict[int, Kind]] = {0: "read", 1: "write", 2: "readwrite"}
_NUMBERS: Final = {kind: number for number, kind in _KINDS.items()}

_NO_PASSWORD: Final = b"\x1a\x02\x08\x01"
"""Field 3 of AuthUserAddRequest, ``options { no_password: true }``, which the stubs are too old to know."""


class AdminConnection(Connection):
    """A connection that can also look at and change who may do what; root's, once authentication is on."""

    @property
    def logged_in(self) -> bool:
        """Tell whether there was a login by password; while authentication is off the server refuses every login."""
        return bool(self._token)

    def access(self, enabled: bool) -> Access:
        """Return all users and roles.

        Raises:
            EtcdError: They could not be read.
        """
        roles = self._auth("listing roles", "RoleList", rpc.AuthRoleListRequest()).roles
        users = self._auth("listing users", "UserList", rpc.AuthUserListRequest()).users
        return Access({name: self._role(name) for name in roles}, {name: self._user(name) for name in users}, enabled)

    def _role(self, name: str) -> frozenset[Permission]:
        answer = self._auth(f"reading the role {name}", "RoleGet", rpc.AuthRoleGetRequest(role=name))
        return frozenset(
            Permission(_text(one.key), _text(one.range_end), _KINDS[one.permType])
            for one in answer.perm
            if one.permType in _KINDS
        )

    def _user(self, name: str) -> frozenset[str]:
        answer = self._auth(f"reading the user {name}", "UserGet", rpc.AuthUserGetRequest(name=name))
        return frozenset(answer.roles)

    def add_role(self, role: str) -> None:
        """Make a role.

        Raises:
            EtcdError: It is not known to be done; so for all methods below.
        """
        self._auth(f"adding the role {role}", "RoleAdd", rpc.AuthRoleAddRequest(name=role))

    def grant(self, step: Grant) -> None:
        """Give a role a permission."""
        one = step.permission
        request = rpc.AuthRoleGrantPermissionRequest(name=step.role)
        request.perm.permType = _NUMBERS[one.kind]
        request.perm.key = one.key.encode("utf-8", "surrogateescape")
        request.perm.range_end = one.range_end.encode("utf-8", "surrogateescape")
        self._auth(f"granting {one} to the role {step.role}", "RoleGrantPermission", request)

    def revoke(self, step: Revoke) -> None:
        """Take a permission from a role."""
        one = step.permission
        request = rpc.AuthRoleRevokePermissionRequest(role=step.role, key=one.key, range_end=one.range_end)
        self._auth(f"revoking {one} from the role {step.role}", "RoleRevokePermission", request)

    def add_user(self, user: str, password: str | None) -> None:
        """Make a user; without a password only a certificate with this common name is the user."""
        request = rpc.AuthUserAddRequest(name=user, password=password or "")
        if password is None:
            request.MergeFromString(_NO_PASSWORD)
        self._auth(f"adding the user {user}", "UserAdd", request)

    def set_password(self, user: str, password: str) -> None:
        """Give a user a password in place of another."""
        request = rpc.AuthUserChangePasswordRequest(name=user, password=password)
        self._auth(f"setting the password of {user}", "UserChangePassword", request)

    def grant_role(self, user: str, role: str) -> None:
        """Give a user a role."""
        request = rpc.AuthUserGrantRoleRequest(user=user, role=role)
        self._auth(f"granting the role {role} to {user}", "UserGrantRole", request)

    def revoke_role(self, user: str, role: str) -> None:
        """Take a role from a user."""
        request = rpc.AuthUserRevokeRoleRequest(name=user, role=role)
        self._auth(f"revoking the role {role} from {user}", "UserRevokeRole", request)

    def turn_on(self, user: str) -> None:
        """Turn authentication on, and log in as a user whose password is in the file that this was made with."""
        self._auth("turning authentication on", "AuthEnable", rpc.AuthEnableRequest())
        self._access = self._access._replace(username=user)
        self._authenticate("")
        if not self._token:
            raise EtcdError("auth", "authentication is on, but there was no login", self.endpoint)

    def _auth(self, what: str, method: str, request: Any) -> Any:
        return self._call(what, lambda **how: getattr(self._stub(rpc.AuthStub), method)(request, **how))


def _text(key: bytes | str) -> str:
    return key if isinstance(key, str) else key.decode("utf-8", "surrogateescape")
