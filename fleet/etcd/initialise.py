"""`garrison fleet init`: what is there, what is missing, how it is made. Says all before it does any."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from garrison.fleet.etcd import access
from garrison.fleet.etcd.access import (
    AddRole,
    AddUser,
    Grant,
    GrantRole,
    Revoke,
    RevokeRole,
    SetRootPassword,
    Step,
    TurnOn,
)
from garrison.fleet.etcd.admin import AdminConnection
from garrison.fleet.etcd.certificates import CertificateError, Folder, Wanted, write_new
from garrison.fleet.etcd.reach import Reach, connect
from garrison.supervisor.stores.etcd.credentials import CredentialError, Files, password_of
from garrison.supervisor.stores.etcd.errors import EtcdError

_PASSWORD_BYTES = 24


class InitError(Exception):
    """It cannot go on. The text says what is in the way and what to do; nothing that exists was changed by it."""


@dataclass(frozen=True, slots=True)
class MakeAuthority:
    """Make the authority's key and certificate."""


@dataclass(frozen=True, slots=True)
class MakeCertificate:
    """Make one certificate and its key."""

    wanted: Wanted


@dataclass(frozen=True, slots=True)
class MakePassword:
    """Make up a password and write it to its file."""

    user: str
    path: str


Work: TypeAlias = MakeAuthority | MakeCertificate | MakePassword | Step


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        work: In this order.
        kept: What is there already, for people.
        warnings: What the operator should know.
        complete: The cluster was looked at; without certificates it cannot be yet.
    """

    work: tuple[Work, ...]
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator has asked for.

    Attributes:
        folder: Where certificates and passwords are kept.
        reach: The cluster; its files are empty where the folder's own are used.
        names: What the servers answer to; none: no certificates are made.
        days: How long new certificates are good for.
        hosts: Those that get a user each.
        passwords: Give every user a password, not root alone.
        root_password: Its file.
    """

    folder: str
    reach: Reach
    names: tuple[str, ...] = ()
    days: int = 730
    hosts: tuple[str, ...] = ()
    passwords: bool = False
    root_password: str = ""


class Init:
    """One run; see `Request`.

    Attributes:
        want: Users and roles as they should be.
        folder: The certificates; None where none are made.
        failure: Why the cluster could not be looked at, where it could not.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.want = access.wanted(request.reach.prefix, request.hosts)
        self.folder = Folder(request.folder) if request.names else None
        self.failure = ""
        self._connection: AdminConnection | None = None

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def certificates(self) -> list[Wanted]:
        """Return the certificates that should be there, without the authority."""
        if self.folder is None:
            return []
        clients = [("operator", access.OPERATOR), ("reader", access.READER)]
        if self.request.hosts:
            clients += [(f"hosts/{host}", access.HOST_PREFIX + host) for host in self.request.hosts]
        else:
            clients.insert(0, ("agent", access.AGENT))
        server = Wanted("server", "garrison-etcd", self.request.names)
        return [server, *(Wanted(name, common_name) for name, common_name in clients)]

    def password_file(self, user: str) -> str:
        """Return where a user's password is kept."""
        if user == access.ROOT:
            return self.request.root_password or os.path.join(self.request.folder, "root.password")
        return os.path.join(self.request.folder, f"{user}.password")

    def plan_files(self) -> Plan:
        """Return what is missing in the folder.

        Raises:
            CertificateError: A certificate that is there does not do; it is never replaced.
            InitError: It would weaken the stricter mode.
        """
        if self.folder is None:
            return Plan(())
        hosts = self.folder.hosts()
        if hosts and not self.request.hosts and not os.path.exists(self.folder.file("agent.crt")):
            raise InitError(_stricter(f"{self.folder.path} has certificates of", hosts))
        work: list[Work] = []
        kept, warnings = [], list(self.folder.open_to_others())
        for wanted in (None, *self.certificates()):
            found = self.folder.look(wanted)
            path = self.folder.file(f"{'ca' if wanted is None else wanted.name}.crt")
            if not found.certificate:
                work.append(MakeAuthority() if wanted is None else MakeCertificate(wanted))
            elif found.problem and found.days > 0 and found.problem.startswith("it ends in"):
                warnings.append(f"{path}: {found.problem}; move it away (its key may stay) and run this again")
            elif found.problem:
                raise CertificateError(
                    f"{path}: {found.problem}. Nothing that exists is replaced: move it away and run this again"
                )
            else:
                kept.append(f"{path}, good for {found.days:.0f} days")
        if work and work[0] != MakeAuthority() and not os.path.exists(self.folder.file("ca.key")):
            raise CertificateError(
                f"{self.folder.file('ca.key')} is not here, so no certificate can be signed; bring it back"
            )
        return Plan(tuple(work), tuple(kept), tuple(warnings))

    def plan_cluster(self) -> Plan:
        """Return what is missing on the cluster.

        Raises:
            InitError: Root's password is not known, or it would weaken the stricter mode.
            EtcdError: The cluster does not answer, or not to us.
        """
        actual = self._access()
        path = self.password_file(access.ROOT)
        if access.ROOT in actual.users and not os.path.exists(path):
            raise InitError(
                f"the cluster has a user root, and {path} with its password is not here; give the file with"
                " --root-password-file (while authentication is off, `etcdctl user delete root` works too)"
            )
        hosts = [user.removeprefix(access.HOST_PREFIX) for user in actual.users if user.startswith(access.HOST_PREFIX)]
        if hosts and not self.request.hosts and access.AGENT not in actual.users:
            raise InitError(_stricter("the cluster has users for", hosts))
        steps = access.steps(actual, self.want)
        work: list[Work] = []
        for step in steps:
            if isinstance(step, AddUser) and self._has_password(step.user):
                file = self.password_file(step.user)
                if not os.path.exists(file):
                    work.append(MakePassword(step.user, file))
            work.append(step)
        kept = [f"role {name}" for name in self.want.roles if name in actual.roles]
        kept += [f"user {name}" for name in self.want.users if name in actual.users]
        kept += ["authentication is on"] if actual.enabled else []
        return Plan(tuple(work), tuple(kept), tuple(self._warnings(actual, steps)))

    def _warnings(self, actual: access.Access, steps: list[Step]) -> Iterator[str]:
        strangers = access.strangers(actual, self.want)
        if strangers:
            yield f"other users, left alone: {', '.join(strangers)}"
        taken = sorted({step.role for step in steps if isinstance(step, Revoke)})
        if taken:
            yield (
                f"what somebody has added to {', '.join(taken)} is taken away; a second fleet under another --prefix"
                " needs a cluster of its own"
            )
        for user in self.want.users:
            if user in actual.users and self._has_password(user) and not os.path.exists(self.password_file(user)):
                yield (
                    f"the password of {user} is not in {self.password_file(user)}, if it has one;"
                    f" `etcdctl user delete {user}` and run this again for a new one"
                )
        if not self._files().ca_cert:
            yield "without TLS passwords and keys cross the network for everybody to read and to change"
        extra = [role for role in actual.roles if role.startswith("garrison-") and role not in self.want.roles]
        if extra and self.request.hosts and access.AGENT in extra:
            yield (
                f"the user {access.AGENT} may still be any host; `etcdctl user delete {access.AGENT}`"
                " once every host has a user of its own"
            )

    def _has_password(self, user: str) -> bool:
        return user == access.ROOT or self.request.passwords

    def do(self, work: Work) -> None:
        """Do one thing.

        Raises:
            CertificateError: A file cannot be written.
            InitError: A password cannot be read.
            EtcdError: The cluster refuses.
        """
        if isinstance(work, MakeAuthority | MakeCertificate):
            assert self.folder is not None
            if isinstance(work, MakeAuthority):
                self.folder.make_authority()
            else:
                self.folder.make(work.wanted, self.request.days)
        elif isinstance(work, MakePassword):
            write_new(work.path, secrets.token_urlsafe(_PASSWORD_BYTES).encode() + b"\n", 0o600)
        else:
            self._do_step(self._connected(), work)

    def _do_step(self, connection: AdminConnection, step: Step) -> None:
        match step:
            case AddRole(role):
                connection.add_role(role)
            case Grant():
                connection.grant(step)
            case Revoke():
                connection.revoke(step)
            case AddUser(user):
                connection.add_user(user, self._password(user) if self._has_password(user) else None)
            case SetRootPassword():
                connection.set_password(access.ROOT, self._password(access.ROOT))
            case GrantRole(user, role):
                connection.grant_role(user, role)
            case RevokeRole(user, role):
                connection.revoke_role(user, role)
            case TurnOn():
                connection.turn_on(access.ROOT)

    def _password(self, user: str) -> str:
        try:
            return password_of(self.password_file(user))
        except CredentialError as error:
            raise InitError(str(error)) from None

    def verify(self) -> None:
        """Look at the cluster again.

        Raises:
            InitError: It is not as it should be.
            EtcdError: It does not answer.
        """
        left = access.steps(self._access(), self.want)
        if left:
            raise InitError(f"{len(left)} things are not as they should be; did somebody else change them? Run again")

    def _files(self) -> Files:
        files = self.request.reach.files
        if self.folder is not None:
            files = files._replace(
                ca_cert=self.folder.ca, cert=self.folder.file("operator.crt"), key=self.folder.file("operator.key")
            )
        return files._replace(password=self.password_file(access.ROOT))

    def _connected(self) -> AdminConnection:
        if self._connection is None:
            # A login is tried where root's password is known, also while authentication is off.
            username = access.ROOT if os.path.exists(self.password_file(access.ROOT)) else ""
            reach = replace(self.request.reach, files=self._files(), username=username)
            self._connection = connect(reach, AdminConnection)
        return self._connection

    def _access(self) -> access.Access:
        connection = self._connected()
        try:
            return connection.access(enabled=connection.logged_in)
        except EtcdError as error:
            if connection.logged_in or error.kind not in ("permission", "auth"):
                raise
            raise InitError(
                f"authentication is on, and root's password is not in {self.password_file(access.ROOT)};"
                " give its file with --root-password-file"
            ) from error


def _stricter(what: str, hosts: Sequence[str]) -> str:
    some = ", ".join(sorted(hosts)[:3]) + (", …" if len(hosts) > 3 else "")
    return (
        f"{what} single hosts ({some}); without --per-host one user for all would be added, who may be any of them."
        " Give --per-host for at least one host, or delete what is there for single hosts first"
    )


def describe(work: Work, init: Init) -> str:
    """Return a line for a plan."""
    match work:
        case MakeAuthority():
            assert init.folder is not None
            return f"make the authority {init.folder.ca}"
        case MakeCertificate(wanted):
            assert init.folder is not None
            names = f", for {', '.join(wanted.names)}" if wanted.names else f", user {wanted.common_name}"
            return f"make the certificate {init.folder.file(wanted.name)}.crt{names}"
        case MakePassword(user, path):
            return f"make up the password of {user} in {path}"
        case AddRole(role):
            return f"add the role {role}"
        case Grant(role, permission):
            return f"let the role {role} {permission}"
        case Revoke(role, permission):
            return f"no longer let the role {role} {permission}"
        case AddUser(user):
            how = "" if user == access.ROOT or init.request.passwords else ", known by its certificate"
            return f"add the user {user}{how}"
        case SetRootPassword():
            return f"set the password of root to that in {init.password_file(access.ROOT)}"
        case GrantRole(user, role):
            return f"give the user {user} the role {role}"
        case RevokeRole(user, role):
            return f"take the role {role} from the user {user}"
        case TurnOn():
            return "turn authentication on"
