"""The commands and their options. Each imports what it needs when it is called, so that help comes at once."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import guarded
from garrison.fleet.cli.fleet import fleet

_CLICK_USAGE = 2
"""What the command-line library ends with after an error of usage."""

app = typer.Typer(
    name="garrison",
    help="Look at and control the Garrison agent of this host.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Kind(StrEnum):
    """The kinds of events, by falling importance."""

    alert = "alert"
    state = "state"
    event = "event"
    metric = "metric"


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="The agent's configuration file: tells where its socket is."
        ),
    ] = None,
    socket: Annotated[
        str | None, typer.Option("--socket", metavar="PATH", help="The control socket; no configuration is read.")
    ] = None,
) -> None:
    """Look at and control the Garrison agent of this host."""
    context.obj = Target(config, socket)


def _complete_worker(context: typer.Context, incomplete: str) -> list[str]:
    """Return the agent's workers for the shell; an agent that does not answer at once has none to offer."""
    from garrison.fleet.cli.exits import CliError
    from garrison.supervisor.control.protocol import ControlError
    from garrison.supervisor.control.status import StatusReport
    from garrison.supervisor.settings.schema import WORKER_NAME_PATTERN

    top = context.parent.params if context.parent else {}
    try:
        client = Target(top.get("config"), top.get("socket")).client(timeout=0.5)
        report = client.call_as(StatusReport, "status")
    except (ControlError, CliError):
        return []
    names = (worker.name for worker in report.workers if worker.name.startswith(incomplete))
    # Shells evaluate what they are offered, and a socket named with --socket may be anybody's.
    return [name for name in names if re.search(WORKER_NAME_PATTERN, name) and name.isprintable()]


Workers = Annotated[
    list[str], typer.Argument(metavar="WORKER...", help="Names of workers.", autocompletion=_complete_worker)
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until each worker has got there.")]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600.0, help="How long to wait for each worker.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _finish(code: int) -> None:
    if code != exits.OK:
        raise typer.Exit(code)


@app.command()
def status(
    context: typer.Context,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Print it again every so often, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.2, max=3600.0, help="How often, with --watch.")
    ] = 2.0,
) -> None:
    """Show the agent and its workers.

    Ends with 0 when all is well and with 3 when something needs attention: the killswitch is engaged, a worker is
    tripped, latched or failed, or a configuration was rejected. A store that cannot be reached is shown but is no
    reason for 3: the agent is made to go on without it.

    With --json the agent's own document is printed and the exit code is 0 whenever there is one: whoever reads it
    judges by its content.
    """

    def run() -> int:
        from garrison.fleet.cli import status as command

        if as_json and watch:
            raise exits.CliError("--json and --watch do not go together", "use one of them", exits.USAGE)
        return command.watch(context.obj, interval) if watch else command.show(context.obj, as_json)

    _finish(guarded(run))


def _change(context: typer.Context, command: str, workers: list[str], wait: bool, timeout: float) -> None:
    def run() -> int:
        from garrison.fleet.cli import workers as implementation

        return implementation.run(context.obj, command, workers, wait, timeout)

    _finish(guarded(run))


@app.command()
def start(context: typer.Context, workers: Workers, wait: Wait = True, timeout: Timeout = 30.0) -> None:
    """Start workers, taking back a local stop or freeze.

    A stop or freeze that comes from the store stays in force: the command then names the key that decides and
    ends with 1.
    """
    _change(context, "start", workers, wait, timeout)


@app.command()
def stop(context: typer.Context, workers: Workers, wait: Wait = True, timeout: Timeout = 30.0) -> None:
    """Stop workers.

    A local stop outlives restarts of the agent and of the host, and wins over a start in the store. `garrison start`
    takes it back.
    """
    _change(context, "stop", workers, wait, timeout)


@app.command()
def freeze(context: typer.Context, workers: Workers, wait: Wait = True, timeout: Timeout = 30.0) -> None:
    """Freeze workers.

    They keep their memory and get no CPU time until `garrison thaw`.
    """
    _change(context, "freeze", workers, wait, timeout)


@app.command()
def thaw(context: typer.Context, workers: Workers, wait: Wait = True, timeout: Timeout = 30.0) -> None:
    """Let frozen workers go on.

    A freeze that comes from the store stays in force: the command then names the key that decides and ends with 1.
    """
    _change(context, "thaw", workers, wait, timeout)


@app.command()
def reset(context: typer.Context, workers: Workers, wait: Wait = True, timeout: Timeout = 30.0) -> None:
    """Close the breaker of workers.

    Those that are tripped or latched run again at once, and the next trip waits no longer than a first one.
    """
    _change(context, "reset", workers, wait, timeout)


@app.command()
def kill(
    context: typer.Context,
    reason: Annotated[
        str, typer.Option("--reason", "-r", metavar="TEXT", help="Why; the status shows it. Up to 512 characters.")
    ] = "",
) -> None:
    """Kill all workers now, and keep them dead.

    Engages the killswitch of this host, which outlives restarts of the agent and of the host. Prints how long it
    took, as the agent measured it.
    """

    def run() -> int:
        from garrison.fleet.cli import killswitch

        return killswitch.kill(context.obj, reason)

    _finish(guarded(run))


@app.command()
def release(context: typer.Context) -> None:
    """Take back `garrison kill`.

    Where the store or the killswitch file engages it as well the workers stay dead: the command names each of them,
    says how to release it, and ends with 1.
    """

    def run() -> int:
        from garrison.fleet.cli import killswitch

        return killswitch.release(context.obj)

    _finish(guarded(run))


@app.command()
def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events, until Ctrl-C.")] = False,
    last: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=0, max=1000, help="How many past events to begin with.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as the JSON line that it is.")] = False,
    worker: Annotated[
        list[str] | None,
        typer.Option(
            "--worker",
            "-w",
            metavar="WORKER",
            help="Only of this worker; may be repeated.",
            autocompletion=_complete_worker,
        ),
    ] = None,
    kind: Annotated[
        list[Kind] | None,
        typer.Option("--kind", "-k", metavar="|".join(Kind), help="Only of this kind; may be repeated."),
    ] = None,
) -> None:
    """Show what the workers report.

    A line for each event: time (UTC), kind, worker, action, rule, and who did what to what.

    Events are what processes on this host make of them, so characters that could steer the terminal are shown as
    escapes, and long fields are cut; --json prints them whole. The agent keeps a small number of past events in
    memory; all of them are where the sink puts them.

    Whoever reads too slowly misses events, never the sink: a line on standard error says how many, and without
    --follow the exit code is 1. With --follow it ends with 130 on Ctrl-C and with 69 when the agent ends.
    """

    def run() -> int:
        from garrison.fleet.cli import events as command

        kinds = [one.value for one in kind or ()]
        return command.show(
            context.obj, follow=follow, last=last, kinds=kinds, workers=list(worker or ()), as_json=as_json
        )

    _finish(guarded(run))


@app.command()
def history(
    context: typer.Context,
    worker: Annotated[
        str | None,
        typer.Argument(metavar="[WORKER]", help="Only of this worker.", autocompletion=_complete_worker),
    ] = None,
    last: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=1, max=1000, help="How many entries at most.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Show what has happened to the workers, and why.

    A line for each start, stop, throttle, trip, recovery and decision of the agent: time (UTC), worker, what it went
    from and to, then cause, numbers, the module and task that ran last, and when it is tried again.

    The agent keeps the last 64 of each worker on disk, so they outlive restarts of the agent and of the host.
    """

    def run() -> int:
        from garrison.fleet.cli import history as command

        return command.show(context.obj, worker or "", last, as_json)

    _finish(guarded(run))


class Level(StrEnum):
    """The syslog levels, from the least important."""

    debug = "debug"
    info = "info"
    notice = "notice"
    warning = "warning"
    err = "err"
    crit = "crit"
    alert = "alert"
    emerg = "emerg"


@app.command()
def logs(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines, until Ctrl-C.")] = False,
    last: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", min=0, max=100_000, help="How many past lines to begin with.")
    ] = 20,
    level: Annotated[
        Level, typer.Option("--level", "-l", metavar="LEVEL", help=f"The least important: {', '.join(Level)}.")
    ] = Level.debug,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            "-s",
            metavar="SOURCE",
            help="Only of this source, such as agent, control or a worker's name; may be repeated.",
            autocompletion=_complete_worker,
        ),
    ] = None,
) -> None:
    """Show the agent's own log.

    Read from the two files in the agent's log_dir, so it works while the agent is down too. With --follow it goes
    on across a change of file and ends with 130 on Ctrl-C.
    """

    def run() -> int:
        from garrison.fleet.cli import logs as command

        return command.show(context.obj, last=last, follow=follow, level=level.value, sources=list(source or ()))

    _finish(guarded(run))


@app.command()
def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Check what this host can enforce.

    Says what it cannot, which fallback is in use then, and how to mend it. Needs no running agent; run it as the
    user that the agent runs as, usually root. Ends with 1 when a check failed; warnings are not failures.
    """

    def run() -> int:
        from garrison.fleet.cli import doctor as command

        return command.show(context.obj, as_json)

    _finish(guarded(run))


@app.command()
def reconcile(
    context: typer.Context,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="A file of events, or the path of a file sink; `-` is standard input."
        ),
    ] = None,
    bootstrap: Annotated[
        str | None, typer.Option("--bootstrap", metavar="HOST:PORT,...", help="Brokers of Kafka to read from.")
    ] = None,
    topic: Annotated[list[str] | None, typer.Option("--topic", metavar="TOPIC", help="A topic to read.")] = None,
    host: Annotated[list[str] | None, typer.Option("--host", metavar="HOST", help="Only this host.")] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only one part of the hosts, where all are too many at once."),
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", help="What is read goes back to the first event: an earlier one that is not there is missing."
        ),
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also show workers of which nothing is missing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which events are missing or came twice, and why.

    Reads events where they arrived, by default where this host's configuration sends them: a topic from its beginning
    to its end of now, or files. Needs no running agent. Sequence numbers show what is missing; heartbeats, which are
    among the events, say what of that the agents gave up and why.

    Ends with 0 when every missing event has a reason or is still on its way, with 1 when one has none or the books
    of an agent do not balance, and with 69 when Kafka could not be read to the end.
    """

    def run() -> int:
        from garrison.fleet.cli import reconcile as command

        options = command.Options(
            files=file or [],
            bootstrap=bootstrap,
            topics=topic or [],
            hosts=host or [],
            shard=shard,
            complete=complete,
            everything=everything,
            as_json=as_json,
        )
        return command.show(context.obj, options)

    _finish(guarded(run))


@app.command()
def version(context: typer.Context) -> None:
    """Show the command's and the agent's version."""

    def run() -> int:
        from garrison.fleet.cli import version as command

        return command.show(context.obj)

    _finish(guarded(run))


app.add_typer(fleet)


def main() -> NoReturn:
    """Run the command line and end the process."""
    code: int | str | None
    stdout = sys.stdout
    try:
        app(prog_name="garrison")
        code = exits.OK
    except SystemExit as end:
        code = exits.USAGE if end.code == _CLICK_USAGE else end.code
    except KeyboardInterrupt:
        # Before the command itself ran.
        code = exits.INTERRUPTED
    if sys.stdout is not stdout:
        # What the library does when the reader of its own output (help) goes away, besides ending with 1.
        sys.stdout, code = stdout, exits.OK
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        exits.discard_stdout()
    sys.exit(code)
