"""``garrison fleet init``: the plan on the screen, the question, and the work."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError
from garrison.fleet.cli.fleet_reach import Given, told
from garrison.fleet.cli.text import sanitise

if TYPE_CHECKING:
    from garrison.fleet.etcd.initialise import Init, Plan, Request, Work


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command, as they were given."""

    folder: str
    server: tuple[str, ...]
    tls: bool
    days: int
    passwords: bool
    root_password_file: str
    per_host: tuple[str, ...]
    dry_run: bool
    yes: bool


def run(target: Target, given: Given, options: Options) -> int:
    """Set a cluster up; return the exit code."""
    with told():
        from garrison.fleet.etcd.certificates import CertificateError
        from garrison.fleet.etcd.initialise import Init, InitError
        from garrison.supervisor.keys import KeyGrammarError

        try:
            init = Init(_request(target, given, options))
        except (CertificateError, KeyGrammarError) as error:
            raise CliError(str(error), "", exits.USAGE) from None
        try:
            return _run(init, options)
        except (CertificateError, InitError) as error:
            raise CliError(str(error)) from None
        finally:
            init.close()


def _request(target: Target, given: Given, options: Options) -> Request:
    from garrison.fleet.etcd.certificates import canonical_name
    from garrison.fleet.etcd.initialise import Request
    from garrison.supervisor.stores.etcd.credentials import Files
    from garrison.supervisor.stores.etcd.endpoints import parse_endpoint

    reach = given.reach(target)
    names: tuple[str, ...] = ()
    if options.tls and not given.ca_cert:
        hosts = [parse_endpoint(endpoint).host for endpoint in reach.endpoints]
        names = tuple(dict.fromkeys(canonical_name(name) for name in (*hosts, *options.server)))
    elif options.server:
        raise CliError("--server is for certificates, and none are made", "leave it out", exits.USAGE)
    if not given.ca_cert:
        # What the agent's own configuration names is its identity, not that of who sets the cluster up.
        reach = replace(reach, files=Files())
    return Request(
        folder=os.path.abspath(options.folder),
        reach=reach,
        names=names,
        days=options.days,
        hosts=tuple(dict.fromkeys(options.per_host)),
        passwords=options.passwords or not (options.tls or given.ca_cert),
        root_password=os.path.abspath(options.root_password_file) if options.root_password_file else "",
    )


def _run(init: Init, options: Options) -> int:
    files = init.plan_files()
    plan = _whole(init, files)
    _show(init, plan)
    if not plan.work:
        _say("Nothing is to be done." if plan.complete else "The certificates are there.")
    if not plan.complete and not files.work:
        _unreachable(init)
    if options.dry_run:
        return exits.OK
    if plan.work:
        _agree(options)
    for work in files.work:
        _do(init, work)
    if not plan.complete:
        # Now that there are certificates the cluster may be one that was started with them.
        plan = _whole(init, init.plan_files())
        if not plan.complete:
            _unreachable(init)
        _show(init, plan)
    for work in plan.work:
        if work not in files.work:
            _do(init, work)
    if plan.work:
        init.verify()
        _say("Done.")
        _say(next_steps(init))
    return exits.OK


def _whole(init: Init, files: Plan) -> Plan:
    """Return the plan for files and cluster; the cluster's part waits until there are certificates."""
    from garrison.fleet.etcd.initialise import Plan
    from garrison.supervisor.stores.etcd.errors import EtcdError

    if files.work:
        return Plan(files.work, files.kept, files.warnings, complete=False)
    try:
        cluster = init.plan_cluster()
    except EtcdError as error:
        if error.kind not in ("unavailable", "timeout") or init.folder is None:
            raise
        init.failure = str(error)
        return Plan(files.work, files.kept, files.warnings, complete=False)
    return Plan(files.work + cluster.work, files.kept + cluster.kept, files.warnings + cluster.warnings)


def _show(init: Init, plan: Plan) -> None:
    from garrison.fleet.etcd.initialise import describe

    for line in plan.kept:
        _say(f"  =  {line}")
    for work in plan.work:
        _say(f"  +  {describe(work, init)}")
    for line in plan.warnings:
        _say(f"  !  {line}")
    if not plan.complete and plan.work:
        _say("  …  users, roles and authentication, once the certificates are there")


def _agree(options: Options) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise CliError("nothing was changed: there is nobody to ask", "give --yes, or --dry-run", exits.USAGE)
    sys.stdout.write("Go on? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError("nothing was changed")


def _do(init: Init, work: Work) -> None:
    from garrison.fleet.etcd.initialise import describe

    init.do(work)
    _say(f"done: {describe(work, init)}")


def _unreachable(init: Init) -> NoReturn:
    assert init.folder is not None
    raise CliError(
        f"the certificates are there, and the cluster does not answer with TLS: {init.failure}",
        "if it runs with TLS already, look at its health; else start each member with\n"
        f"  --cert-file {init.folder.file('server.crt')} --key-file {init.folder.file('server.key')}\n"
        f"  --trusted-ca-file {init.folder.ca} --client-cert-auth\n"
        "  --listen-client-urls https://... --advertise-client-urls https://...\n"
        "and run this command again",
        exits.UNAVAILABLE,
    )


def next_steps(init: Init) -> str:
    """Return what an agent's configuration needs, as TOML."""
    from garrison.supervisor.keys import DEFAULT_PREFIX

    request = init.request
    user = "garrison-host-HOST" if request.hosts else "garrison-agent"
    endpoints = ", ".join(f'"{endpoint}"' for endpoint in request.reach.endpoints)
    lines = ["On each host, in /etc/garrison/garrison.toml:", ""]
    if request.reach.prefix != DEFAULT_PREFIX:
        lines += ["[agent]", f'prefix = "{request.reach.prefix}"', ""]
    lines += ["[store]", 'backend = "etcd"', ""]
    lines += ["[store.etcd]", f"endpoints = [{endpoints}]"]
    if init.folder is not None:
        which = "hosts/HOST" if request.hosts else "agent"
        lines += [f'{name} = "/etc/garrison/{file}"' for name, file in _FILES]
        lines += ["", f"with ca.crt, {which}.crt and {which}.key from {init.folder.path}; the keys with mode 0600."]
    elif request.reach.files.ca_cert:
        lines += ["", f"and ca_cert, cert and key: a certificate of yours with the common name {user}."]
    elif request.passwords:
        lines += [f'username = "{user}"', 'password_file = "/etc/garrison/agent.password"']
        lines += ["", f"with the password from {init.password_file(user)}, mode 0600."]
    return "\n".join(lines)


_FILES = (("ca_cert", "ca.crt"), ("cert", "agent.crt"), ("key", "agent.key"))


def _say(text: str) -> None:
    sys.stdout.write(sanitise(text, newlines=True) + "\n")
    sys.stdout.flush()
