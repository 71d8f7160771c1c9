"""``garrison start|stop|freeze|thaw|reset``: one worker after the other, and waiting for what was asked."""

from __future__ import annotations

import sys
import time
from typing import Final, Literal

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import ACTION_SECONDS, Target
from garrison.fleet.cli.exits import complain
from garrison.fleet.cli.text import duration, sanitise
from garrison.supervisor.control.client import ControlClient
from garrison.supervisor.control.protocol import ControlError, unknown_worker
from garrison.supervisor.control.status import StatusReport, WorkerResult, WorkerStatus

Verdict = Literal["reached", "missed", "under way"]

DESIRED: Final = {"start": "start", "thaw": "start", "stop": "stop", "freeze": "freeze"}
"""What each command wants the desired state to be; ``reset`` wants nothing of it."""

_UP: Final = frozenset({"running", "throttled", "probation"})
_REACHED: Final = {
    # A worker that should run may stand frozen because the host is under pressure: nothing to wait for.
    "start": _UP | {"frozen"},
    "thaw": _UP,
    "stop": frozenset({"stopped", "killed"}),
    "freeze": frozenset({"frozen"}),
    "reset": _UP | {"stopped", "frozen", "killed"},
}
_MISSED: Final = {
    "start": frozenset({"tripped", "latched", "failed", "killed"}),
    "thaw": frozenset({"tripped", "latched", "failed", "killed", "stopped"}),
    "stop": frozenset[str](),
    "freeze": frozenset({"tripped", "latched", "failed", "killed", "stopped"}),
    "reset": frozenset({"failed"}),
}
_REMEDIES: Final = {
    "tripped": "its breaker is open: see `garrison status`; `garrison reset {name}` closes it",
    "latched": "its breaker has given up: see `garrison status`; `garrison reset {name}` closes it",
    "failed": "see `garrison status` for the reason and `garrison doctor` for what this host lacks",
    "killed": "the killswitch is engaged: see `garrison status` for by whom, and `garrison release`",
    "stopped": "it does not run: `garrison start {name}`",
}
_POLL_SECONDS: Final = 0.2
_SETTLE_SECONDS: Final = 0.6
"""How long a bad state has to last: right after the request it may be the state from before."""


def judge(command: str, state: str) -> Verdict:
    """Return what a worker's state means for a command. Pure."""
    if state in _REACHED[command]:
        return "reached"
    return "missed" if state in _MISSED[command] else "under way"


def run(target: Target, command: str, names: list[str], wait: bool, timeout: float) -> int:
    """Carry out a command for each worker; one that fails does not keep the others from their turn.

    Returns:
        The exit code: 0 where every worker did what was asked.
    """
    client = target.client(ACTION_SECONDS)
    code = exits.OK
    for name in dict.fromkeys(names):
        try:
            result = client.call_as(WorkerResult, command, worker=name)
            if not _report(client, command, result, timeout if wait else 0.0):
                code = exits.FAILED
        except ControlError as error:
            code = exits.code_of(error)
            if code != exits.FAILED:
                raise
            complain(error.message, error.remedy)
    return code


def _report(client: ControlClient, command: str, result: WorkerResult, seconds: float) -> bool:
    name = result.name
    wanted = DESIRED.get(command, result.desired)
    if result.message:
        _say(f"{name}: {result.message}")
    if result.desired != wanted:
        by = result.desired_by or "something else"
        complain(
            f"{name}: stays {result.state}: its desired state is {result.desired!r}, decided by {by}",
            f"a local `{command}` does not override that; change it there" + _key_remedy(result.desired_by, wanted),
        )
        return False
    state, error = result.state, ""
    verdict = judge(command, state)
    if seconds > 0 and verdict != "reached":
        verdict, worker = _wait(client, command, name, seconds)
        state, error = worker.state, worker.last_error or ""
    decided = f" (desired {result.desired}, decided by {result.desired_by})" if result.desired_by else ""
    if verdict == "reached" or (verdict == "under way" and seconds <= 0):
        _say(f"{name}: {state}{decided}")
        return True
    if verdict == "missed":
        remedy = _REMEDIES.get(state, "see `garrison status`").format(name=name)
        complain(f"{name}: {command} was accepted, but it is {state}" + (f": {error}" if error else ""), remedy)
    else:
        complain(
            f"{name}: {command} was accepted, but after {duration(seconds)} it is still {state}",
            "see `garrison status`; `--timeout` waits longer, `--no-wait` not at all",
        )
    return False


def _wait(client: ControlClient, command: str, name: str, seconds: float) -> tuple[Verdict, WorkerStatus]:
    deadline = time.monotonic() + seconds
    missed_since: float | None = None
    while True:
        report = client.call_as(StatusReport, "status")
        found = [worker for worker in report.workers if worker.name == name]
        if not found:
            raise unknown_worker(name, [worker.name for worker in report.workers])
        verdict, now = judge(command, found[0].state), time.monotonic()
        missed_since = (missed_since or now) if verdict == "missed" else None
        settled = missed_since is not None and now - missed_since >= _SETTLE_SECONDS
        if verdict == "reached" or settled or now >= deadline:
            return verdict, found[0]
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - now)))


def _key_remedy(decided_by: str, wanted: str) -> str:
    return f": set {decided_by} to `{wanted}`, or delete it" if decided_by.startswith("/") else ""


def _say(line: str) -> None:
    sys.stdout.write(sanitise(line) + "\n")
    sys.stdout.flush()
