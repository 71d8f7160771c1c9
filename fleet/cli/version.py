"""``garrison version``: this command's version and the agent's."""

from __future__ import annotations

import sys

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError, complain
from garrison.fleet.cli.text import sanitise
from garrison.supervisor.version import VERSION


def show(target: Target) -> int:
    """Print both; an agent that does not run is a fact, not an error."""
    sys.stdout.write(f"garrison {VERSION}\n")
    sys.stdout.flush()
    from garrison.supervisor.control.client import AgentNotRunningError
    from garrison.supervisor.control.protocol import PROTOCOL_VERSION, ControlError, VersionResult

    try:
        agent = target.client(timeout=5.0).call_as(VersionResult, "version")
    except AgentNotRunningError:
        sys.stdout.write("agent    not running\n")
        return exits.OK
    except (ControlError, CliError) as error:
        sys.stdout.write("agent    unknown\n")
        complain(error.message, error.remedy)
        return error.code if isinstance(error, CliError) else exits.code_of(error)
    sys.stdout.write(f"agent    {sanitise(agent.version)}\n")
    if agent.protocol != PROTOCOL_VERSION:
        complain(
            f"the agent speaks version {agent.protocol} of the control protocol, this command version"
            f" {PROTOCOL_VERSION}",
            "restart the agent after an upgrade: `systemctl restart garrison`",
        )
        return exits.FAILED
    return exits.OK
