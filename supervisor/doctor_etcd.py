"""The doctor's look at the etcd store: certificates and password, the members, what this host's user may do there."""

from __future__ import annotations

import datetime as dt
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from garrison.supervisor.doctor import Check, Finding, fail, ok, warn

if TYPE_CHECKING:
    from garrison.supervisor.settings import Settings
    from garrison.supervisor.stores.etcd.errors import EtcdError
    from garrison.supervisor.stores.etcd.probe import Look, Rights

RENEW_DAYS: Final = 30
SLOW_MILLISECONDS: Final = 1000.0
"""A read that takes longer: the cluster or the way to it is overloaded. Calls are given up after 10 s."""

RECOMMENDED: Final = {(3, 4): 23, (3, 5): 7}
"""Of a release line: the first version that neither loses data (etcd issue 13766; 3.4.21 and 3.5.5) nor
crashes when the caller of a transaction gives up (14110, 14891). Later lines have been good from the start."""

_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_ELSEWHERE: Final = "`etcdctl endpoint status --cluster` shows how the members are"
_WAYS: Final = (
    ("does not resolve", "correct the name or DNS; an address among the endpoints does without"),
    ("refused", "start etcd there, or correct the endpoint; does a firewall refuse?"),
    ("socket closed", "does it want TLS? then set [store.etcd] ca_cert; is it etcd that listens there?"),
    ("verify_failed", "does the member's certificate name this endpoint, and has ca_cert signed it?"),
    ("alert", "the member refuses this host's certificate: has its --trusted-ca-file signed [store.etcd] cert?"),
    ("ssl", "look at the certificates on both sides, and at the clocks"),
)
"""What an endpoint that cannot be reached may say, in lower case, and what can be done then."""


def checks(settings: Settings) -> list[tuple[str, Check]]:
    """Return the checks of the etcd store that a configuration names."""
    return [("etcd credentials", partial(credentials, settings)), ("etcd", partial(cluster, settings))]


def credentials(settings: Settings) -> Iterator[Finding]:
    """Judge the files: usable, private, and good for a while yet."""
    from garrison.supervisor.stores.etcd.credentials import CredentialError, check_tls, password_of

    name, etcd = "etcd credentials", settings.store.etcd
    try:
        check_tls(etcd.ca_cert, etcd.cert, etcd.key)
        if etcd.username:
            password_of(etcd.password_file)
    except CredentialError as error:
        yield fail(name, str(error), "correct the file or [store.etcd]; run as root")
        return
    if etcd.key and (mode := stat.S_IMODE(os.stat(etcd.key).st_mode)) & 0o077:
        yield warn(name, f"{etcd.key} can be read by others (mode {mode:04o})", f"chmod 600 {etcd.key}")
    if not etcd.ca_cert:
        yield warn(
            name,
            "no TLS: whoever is on the way can read and change what this host obeys",
            "set [store.etcd] ca_cert, cert and key; `garrison fleet init` makes them",
        )
    now = dt.datetime.now(dt.UTC)
    for path in filter(None, (etcd.ca_cert, etcd.cert)):
        yield _validity(name, path, now)


def _validity(name: str, path: str, now: dt.datetime) -> Finding:
    from garrison.supervisor.stores.etcd.credentials import CredentialError, read_pem
    from garrison.supervisor.stores.etcd.validity import ends_at

    try:
        end = ends_at(read_pem(path, "CERTIFICATE"))
    except (CredentialError, ValueError) as error:
        return warn(name, f"{path}: {error}", "make the certificate anew")
    days = (end - now).total_seconds() / 86400
    if days < 0:
        return fail(
            name, f"{path} has ended on {end:%Y-%m-%d}", "bring a new one; the agent takes it without a restart"
        )
    text = f"{path} is good until {end:%Y-%m-%d}, {days:.0f} days"
    if days < RENEW_DAYS:
        return warn(name, text, "bring a new one before that; the agent takes it without a restart")
    return ok(name, text)


def cluster(settings: Settings) -> Iterable[Finding]:
    """Judge the members and what this host may do there. Takes at most half a minute, whoever hangs."""
    try:
        from garrison.supervisor.stores.etcd.connection import Access
        from garrison.supervisor.stores.etcd.credentials import Files
        from garrison.supervisor.stores.etcd.endpoints import parse_endpoint
        from garrison.supervisor.stores.etcd.probe import look_at_all, rights_of
    except ModuleNotFoundError as error:
        return [fail("etcd", f"the etcd client is not installed: {error}", "pip install cslab-etcd3==0.12.1")]
    agent, etcd = settings.agent, settings.store.etcd
    access = Access(
        tls=bool(etcd.ca_cert),
        files=Files(etcd.ca_cert, etcd.cert, etcd.key, etcd.password_file),
        username=etcd.username,
    )
    looks = look_at_all(
        [parse_endpoint(text) for text in etcd.endpoints],
        access,
        f"{agent.prefix}/server/config/{agent.hostname}/killswitch",
    )
    try:
        found = list(members(looks))
        usable = next((look.connection for look in looks if look.connection is not None and look.error is None), None)
        if usable is not None:
            rights = rights_of(usable, agent.prefix, agent.hostname, agent.groups, alive=agent.alivehost_key)
            found += judge_rights(rights, agent.hostname)
        return found
    finally:
        for look in looks:
            if look.connection is not None:
                look.connection.close()


def members(looks: Sequence[Look]) -> Iterator[Finding]:
    """Judge the members and the cluster that they are."""
    serving = [look for look in looks if look.error is None]
    refused = next((look.error for look in looks if look.error and look.error.kind in ("auth", "credentials")), None)
    for look in looks:
        if look.error is None or look.error.kind not in ("auth", "credentials"):
            yield _member(look, others_serve=bool(serving))
    if refused is not None:
        # Every member would answer the same.
        yield fail("etcd login", _without_remedy(refused), remedy_of(refused))
    if not serving:
        which = f"none of {len(looks)} endpoints serves this host" if len(looks) > 1 else "it does not serve this host"
        yield fail(
            "etcd",
            f"{which}: the agent goes on with what it last knew",
            "until then the killswitch file, `garrison kill` and `garrison stop` work on this host",
        )
        return
    statuses = [look.status for look in serving if look.status is not None]
    if len({status.header.cluster_id for status in statuses}) > 1:
        yield fail(
            "etcd",
            "the endpoints are members of different clusters: what holds depends on which one answers",
            "correct [store.etcd] endpoints",
        )
    for version in sorted({status.version for status in statuses}):
        if advice := judge_version(version):
            yield warn("etcd version", version, advice)
    for alarm in sorted({alarm for look in serving for alarm in look.alarms}):
        yield _alarm(alarm)


def _alarm(alarm: str) -> Finding:
    if alarm == "NOSPACE":
        return fail(
            "etcd alarm",
            "NOSPACE: the database is full; nothing can be written, the killswitch key neither",
            "`etcdctl compact`, `etcdctl defrag`, then `etcdctl alarm disarm` (docs/etcd.md)",
        )
    return fail("etcd alarm", f"{alarm}: do not trust what this cluster says", "`etcdctl alarm list`; docs/etcd.md")


def _member(look: Look, *, others_serve: bool) -> Finding:
    name = f"etcd {look.endpoint}"
    if look.error is not None:
        judge = warn if others_serve else fail
        return judge(name, _without_remedy(look.error), remedy_of(look.error))
    status = look.status
    assert status is not None
    role = "leader" if status.leader == status.header.member_id else "follower"
    text = (
        f"etcd {status.version}, {role}, round trip {look.milliseconds:.1f} ms,"
        f" read through the majority {look.quorum_milliseconds:.1f} ms"
    )
    if look.quorum_milliseconds > SLOW_MILLISECONDS:
        return warn(name, f"{text}: slow", "look at the load of the members, their disks, and the network")
    return ok(name, text)


def remedy_of(error: EtcdError) -> str:
    """Return what can be done about an error."""
    from garrison.supervisor.stores.etcd.errors import REMEDIES

    if error.kind == "timeout":
        return "it hangs, or packets are dropped on the way: look at that member, and at the network"
    if error.kind == "credentials":
        return "correct [store.etcd], and run as root"
    lower = error.text.lower()
    known = next((way for part, way in _WAYS if part in lower), "") if error.kind == "unavailable" else ""
    return known or REMEDIES.get(error.kind, _ELSEWHERE)


def _without_remedy(error: EtcdError) -> str:
    from garrison.supervisor.stores.etcd.errors import REMEDIES

    return error.text.removesuffix(f"; {REMEDIES[error.kind]}") if error.kind in REMEDIES else error.text


def judge_version(version: str) -> str:
    """Return what is wrong with a version of etcd; empty: nothing."""
    found = _VERSION.match(version)
    if found is None:
        return ""
    major, minor, patch = (int(part) for part in found.groups())
    if (major, minor) < (3, 4):
        return "use etcd 3.4 or later: the agent is tested with 3.4 and 3.5"
    least = RECOMMENDED.get((major, minor), 0)
    if patch >= least:
        return ""
    return (
        f"upgrade to {major}.{minor}.{least} or later: before that etcd can lose data, or crash when a client gives up"
        " a transaction (docs/etcd.md)"
    )


def judge_rights(rights: Rights, host: str) -> Iterator[Finding]:
    """Judge what the user of this host may do."""
    name = "etcd rights"
    if rights.error is not None:
        yield _unknown_rights(name, rights.error)
        return
    fine = True
    if rights.unread:
        fine = False
        yield fail(
            name,
            f"this host may not read {', '.join(rights.unread)}: it does not see what is meant for it",
            "`garrison fleet init` gives the role of agents what it needs",
        )
    if rights.unwritten:
        fine = False
        yield warn(
            name,
            f"this host may not write {', '.join(rights.unwritten)}: it obeys, and is shown as gone",
            "`garrison fleet init` gives the role of agents what it needs",
        )
    if rights.too_much:
        fine = False
        yield warn(
            name,
            "this host may write what other hosts obey: authentication is off, or its role is too wide",
            "`garrison fleet init` turns authentication on and makes the roles",
        )
    if fine:
        yield ok(name, "reads what is meant for it, writes its own keys, and nothing that others obey")
    if not rights.unread:
        yield _registration(rights, host)


def _unknown_rights(name: str, error: EtcdError) -> Finding:
    if error.kind == "no_space":
        return warn(name, "not known: the database is full and takes no write", "see the alarm")
    return fail(name, f"could not be found out: {_without_remedy(error)}", remedy_of(error))


def _registration(rights: Rights, host: str) -> Finding:
    from garrison.supervisor.presence.identity import machine_id

    name = "etcd registration"
    if not rights.registered:
        return ok(name, f"no agent is registered as {host}")
    if rights.registration is None:
        return warn(
            name, f"what is registered as {host} cannot be read", "delete the key; a running agent writes it anew"
        )
    other = rights.registration
    if other.machine_id and other.machine_id != machine_id():
        return warn(
            name,
            f"another machine is registered as {host} (machine-id {other.machine_id},"
            f" {', '.join(other.ip_addresses[:2]) or 'no address'})",
            "give one of them another [agent] hostname",
        )
    return ok(name, f"{host} is registered: agent {other.version}, pid {other.pid}, since {other.started}")
