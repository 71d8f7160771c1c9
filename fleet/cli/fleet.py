"""``garrison fleet …``: commands for the cluster and the fleet as a whole, from wherever etcd can be reached."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from garrison.fleet.cli import exits
from garrison.fleet.cli.exits import guarded

fleet = typer.Typer(
    name="fleet",
    help="Set up the etcd cluster of a fleet, and look at the fleet.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Endpoints = Annotated[
    str,
    typer.Option(
        "--endpoints",
        metavar="HOST:PORT,...",
        envvar="ETCDCTL_ENDPOINTS",
        help="Members of the cluster. Without them the agent's configuration file says where it is, and who asks.",
        show_envvar=False,
    ),
]
CaCert = Annotated[
    str,
    typer.Option(
        "--ca-cert", metavar="FILE", envvar="ETCDCTL_CACERT", help="Authority of the servers.", show_envvar=False
    ),
]
Cert = Annotated[
    str,
    typer.Option("--cert", metavar="FILE", envvar="ETCDCTL_CERT", help="Certificate of yours.", show_envvar=False),
]
Key = Annotated[str, typer.Option("--key", metavar="FILE", envvar="ETCDCTL_KEY", help="Its key.", show_envvar=False)]
Prefix = Annotated[
    str, typer.Option("--prefix", metavar="PREFIX", help="What all keys start with. Default: the configuration's.")
]


class HostState(StrEnum):
    """What `garrison fleet hosts` calls hosts that it lists."""

    online = "online"
    gone = "gone"
    killed = "killed"
    unconfirmed = "unconfirmed"
    differs = "differs"
    duplicate = "duplicate"
    problem = "problem"


@fleet.command()
def init(
    context: typer.Context,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where certificates and passwords are kept; made with mode 0700.")
    ],
    endpoints: Endpoints = "",
    prefix: Prefix = "",
    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            metavar="NAME|IP",
            help="A name or address that the servers' certificate is for, beside those of the endpoints; repeatable.",
        ),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls/--no-tls", help="Make certificates and use them; without, every byte is readable.")
    ] = True,
    days: Annotated[
        int, typer.Option("--days", metavar="N", min=1, max=3650, help="How long new certificates are good for.")
    ] = 730,
    ca_cert: CaCert = "",
    cert: Cert = "",
    key: Key = "",
    passwords: Annotated[
        bool, typer.Option("--passwords", help="Give each user a password too; without TLS they all get one.")
    ] = False,
    root_password_file: Annotated[
        str,
        typer.Option(
            "--root-password-file", metavar="FILE", help="Root's password; by default FOLDER/root.password, made once."
        ),
    ] = "",
    per_host: Annotated[
        list[str] | None,
        typer.Option(
            "--per-host", metavar="HOST", help="A user for this host alone, for small fleets; repeatable, up to 500."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Make certificates, users and roles for a fleet, and turn authentication on.

    Says what it will do, asks, and does it. It may be run again at any time: it completes what is missing, changes
    nothing that is as it should be, and never replaces a key, a certificate or a password file. On a cluster without
    TLS the first run makes the certificates and ends with 69; start the members with them and run it again.

    Certificates of your own are used with --ca-cert, --cert and --key; then none are made, and the common names of
    your certificates have to be those of the users (docs/etcd.md).
    """

    def run() -> int:
        from garrison.fleet.cli import fleet_init as command
        from garrison.fleet.cli.fleet_reach import Given

        given = Given(endpoints, ca_cert, cert, key, prefix=prefix)
        options = command.Options(
            folder=folder,
            server=tuple(server or ()),
            tls=tls,
            days=days,
            passwords=passwords,
            root_password_file=root_password_file,
            per_host=tuple(per_host or ()),
            dry_run=dry_run,
            yes=yes,
        )
        return command.run(context.obj, given, options)

    code = guarded(run)
    if code != exits.OK:
        raise typer.Exit(code)


@fleet.command()
def hosts(
    context: typer.Context,
    endpoints: Endpoints = "",
    prefix: Prefix = "",
    ca_cert: CaCert = "",
    cert: Cert = "",
    key: Key = "",
    user: Annotated[
        str, typer.Option("--user", metavar="NAME", help="User of etcd, where the certificate does not say one.")
    ] = "",
    password_file: Annotated[
        str, typer.Option("--password-file", metavar="FILE", help="Its password, in a file of mode 0600.")
    ] = "",
    state: Annotated[
        list[HostState] | None,
        typer.Option("--state", metavar="|".join(HostState), help="Only hosts of this state; repeatable."),
    ] = None,
    trouble: Annotated[bool, typer.Option("--trouble", help="Only hosts that are not simply online.")] = False,
    group: Annotated[
        list[str] | None, typer.Option("--group", metavar="NAME", help="Only hosts of this group; repeatable.")
    ] = None,
    expected: Annotated[
        str,
        typer.Option(
            "--expected",
            metavar="FILE",
            help="Hosts that should be there: a name a line, or an earlier --json; - for standard input.",
        ),
    ] = "",
    summary: Annotated[bool, typer.Option("--summary", help="Only how many there are of each state.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document for each host, one a line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Print it again every so often, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=2.0, max=3600.0, help="How often, with --watch.")
    ] = 10.0,
    page: Annotated[
        int, typer.Option("--page", metavar="N", min=1, max=10_000, help="Most keys in one answer of etcd.")
    ] = 1000,
) -> None:
    """List the hosts of a fleet: online, gone, killed, not confirmed, duplicates, desired beside actual.

    Reads only, page by page and as of one revision; the documents of a page are all that is kept of them. A host is
    gone where it has keys of its own, or is in the file of --expected, and is not registered.

    Ends with 0 when all listed hosts are as they should be, and with 3 when one is gone, a duplicate, killed, not
    confirmed, or has a worker that is not in its desired state. With --json the code is 0 whenever there is a listing.
    """

    def run() -> int:
        from garrison.fleet.cli import fleet_hosts as command
        from garrison.fleet.cli.fleet_reach import Given

        if as_json and watch:
            raise exits.CliError("--json and --watch do not go together", "use one of them", exits.USAGE)
        given = Given(endpoints, ca_cert, cert, key, user, password_file, prefix)
        options = command.Options(
            states=tuple(one.value for one in state or ()),
            groups=tuple(group or ()),
            expected=expected,
            trouble=trouble,
            summary=summary,
            as_json=as_json,
            page=page,
        )
        if watch:
            return command.watch(context.obj, given, options, interval)
        return command.show(context.obj, given, options)

    code = guarded(run)
    if code != exits.OK:
        raise typer.Exit(code)
