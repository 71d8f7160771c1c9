"""``garrison kill`` and ``garrison release``: the killswitch of this host."""

from __future__ import annotations

import sys

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import ACTION_SECONDS, Target
from garrison.fleet.cli.exits import complain
from garrison.fleet.cli.health import release_remedy
from garrison.fleet.cli.text import plural, sanitise
from garrison.supervisor.control.status import KillswitchResult


def kill(target: Target, reason: str) -> int:
    """Engage it; return the exit code."""
    result = target.client(ACTION_SECONDS).call_as(KillswitchResult, "kill", reason=reason)
    if result.message:
        _say(result.message)
    if not result.engaged:
        complain("the agent answered, but its killswitch is not engaged", "see `garrison status` and the agent's log")
        return exits.FAILED
    scopes = f" (engaged by {', '.join(result.scopes)})" if result.scopes else ""
    _say(f"killed {plural(result.processes, 'process', 'processes')} in {result.milliseconds:.1f} ms{scopes}")
    _say("no worker runs until `garrison release`")
    return exits.OK


def release(target: Target) -> int:
    """Take back this host's own engagement; return the exit code: 1 where something else still engages it."""
    result = target.client(ACTION_SECONDS).call_as(KillswitchResult, "release")
    if result.message:
        _say(result.message)
    if not result.engaged:
        _say(f"released in {result.milliseconds:.1f} ms; the workers start again")
        return exits.OK
    places = target.places()
    reason = f" ({result.reason})" if result.reason else ""
    complain(
        f"released here in {result.milliseconds:.1f} ms, but the killswitch is still engaged"
        f" by {', '.join(result.scopes) or 'another source'}{reason}",
        "\n".join(f"{scope}: {release_remedy(scope, places=places)}" for scope in result.scopes)
        or "see `garrison status`",
    )
    return exits.FAILED


def _say(line: str) -> None:
    sys.stdout.write(sanitise(line) + "\n")
    sys.stdout.flush()
