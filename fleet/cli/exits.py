"""What the exit codes of `garrison` mean, and the one place where errors become text and code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final, TypeVar

import typer

OK: Final = 0
FAILED: Final = 1
UNHEALTHY: Final = 3
USAGE: Final = 64
UNAVAILABLE: Final = 69
NO_PERMISSION: Final = 77
CONFIGURATION: Final = 78
INTERRUPTED: Final = 130

MEANINGS: Final = {
    OK: "Done. For `status`: the agent is healthy; for `fleet hosts`: all hosts are as they should be.",
    FAILED: "The request was refused or did not have its effect; for `doctor`: a check failed; for `reconcile`: an "
    "event is missing without a reason.",
    UNHEALTHY: "`status` and `fleet hosts` without `--json`: something needs attention.",
    USAGE: "The command line was not understood.",
    UNAVAILABLE: "The agent, or for `fleet` the etcd cluster, for `reconcile` Kafka, is not running, went away, or "
    "does not answer.",
    NO_PERMISSION: "This user may not control the agent, or not do this in etcd.",
    CONFIGURATION: "The configuration file has errors, or names no cluster; a certificate or password cannot be used.",
    INTERRUPTED: "Ended by Ctrl-C, which is also how `events -f` usually ends.",
}
"""Of every exit code: what it means. The reference page is made from this."""

T = TypeVar("T")


class CliError(Exception):
    """A command that cannot go on, with its exit code. `main` prints it and ends.

    Args:
        message: What happened, to which thing.
        remedy: What the operator can do; may be empty.
        code: The exit code.
    """

    def __init__(self, message: str, remedy: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code


def complain(message: str, remedy: str = "") -> None:
    """Write an error to standard error: what happened, and below it what can be done."""
    from garrison.fleet.cli.text import sanitise

    sys.stdout.flush()
    lines = sanitise(message, newlines=True).splitlines() or [""]
    lines[0] = f"garrison: {lines[0]}"
    lines += [f"  {line}" for line in sanitise(remedy, newlines=True).splitlines()]
    sys.stderr.write("\n".join(lines) + "\n")


def guarded(call: Callable[[], T]) -> T:
    """Run a command; whatever ends it becomes a text on standard error and an exit code.

    Raises:
        typer.Exit: The command has failed and said so.
    """
    try:
        return call()
    except CliError as error:
        complain(error.message, error.remedy)
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        discard_stdout()
        raise typer.Exit(OK) from None
    except Exception as error:
        # Looked at by name so that `--help` and usage errors do not pay for importing the client.
        from garrison.supervisor.control.protocol import ControlError

        if not isinstance(error, ControlError):
            raise
        complain(error.message, error.remedy)
        raise typer.Exit(code_of(error)) from None


def code_of(error: Exception) -> int:
    """Return the exit code for an error of the control client."""
    from garrison.supervisor.control import client

    if isinstance(error, client.PermissionDeniedError):
        return NO_PERMISSION
    if isinstance(error, client.AgentNotRunningError | client.AgentTimeoutError):
        return UNAVAILABLE
    return FAILED


def discard_stdout() -> None:
    """Send what is still buffered to nowhere: its reader (``| head``) has gone, which is no error."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    finally:
        os.close(null)
