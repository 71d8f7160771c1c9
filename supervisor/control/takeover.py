"""Whether a new version has taken over from the one before: what the packages' scripts ask after an upgrade.

``python -m garrison.supervisor.control.takeover --before FILE`` waits until every worker that ran before runs again and
the store is connected again where it was, and stays so for a while. It ends with 0, or with 1 and what is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Final

import msgspec

from garrison.supervisor.control.client import AgentNotRunningError, ControlClient
from garrison.supervisor.control.protocol import SOCKET_NAME, ControlError
from garrison.supervisor.control.status import StatusReport, WorkerStatus

RUNS: Final = frozenset({"running", "throttled", "probation", "frozen"})
"""States of a worker whose process is there; a breaker or the host's need may hold it back."""

STEADY_SECONDS: Final = 5.0
"""For how long nothing may be missing: two starts of a worker that crashes at once lie within."""

_POLL_SECONDS: Final = 0.2


def lacks(before: StatusReport | None, now: StatusReport) -> list[str]:
    """Return what worked before and does not now, in words. Pure.

    What was down before is not asked for, and nothing of the workers is while the killswitch is engaged.

    Args:
        before: The last status of the agent before; None: not known, then every worker that is wanted has to run.
        now: The new agent's.
    """
    found = []
    if before is not None and before.agent.store.connected and not now.agent.store.connected:
        store = now.agent.store
        found.append(store.error or f"the {store.backend or 'configuration'} store is not connected, as it was before")
    if now.agent.killswitch.engaged:
        return found
    there = {worker.name: worker for worker in now.workers}
    if before is None:
        return found + [_trouble(worker) for worker in now.workers if _wanted(worker) and worker.state not in RUNS]
    for old in before.workers:
        new = there.get(old.name)
        if old.state not in RUNS:
            continue
        if new is None:
            found.append(f"worker {old.name} is not known any more")
        elif _wanted(new) and new.state not in RUNS:
            found.append(_trouble(new))
        elif new.config.status == "rejected" and old.config.status != "rejected":
            found.append(f"worker {new.name} rejects its configuration: {new.config.error or 'no reason given'}")
        elif new.last_error and not old.last_error:
            # Its process runs, and a module in it does not.
            found.append(f"worker {new.name}: {new.last_error}")
    return found


def _wanted(worker: WorkerStatus) -> bool:
    return worker.desired != "stop" and not worker.held


def _trouble(worker: WorkerStatus) -> str:
    return f"worker {worker.name} is {worker.state}" + (f": {worker.last_error}" if worker.last_error else "")


def wait(client: ControlClient, before: StatusReport | None, seconds: float) -> tuple[list[str], float]:
    """Wait until nothing is missing and stays so for `STEADY_SECONDS`.

    Args:
        client: To the new agent; it need not answer yet.
        before: As for `lacks`.
        seconds: How long nothing missing is waited for; the steady time comes on top.

    Returns:
        What is still missing, and the moment (`time.monotonic`) since when nothing is. An agent that has answered and
        dies is given up at once: one that works does not die, and each further attempt is time without detection.
    """
    end = time.monotonic() + seconds
    good_since: float | None = None
    pid = 0
    while True:
        try:
            now = client.call_as(StatusReport, "status")
        except AgentNotRunningError as error:
            missing = [str(error)]
            if pid:
                return [f"the agent (pid {pid}) has died"], time.monotonic()
        except ControlError as error:
            missing = [str(error)]
        else:
            if pid not in (0, now.agent.pid):
                return [f"the agent (pid {pid}) has died, and another was started"], time.monotonic()
            pid = now.agent.pid
            missing = lacks(before, now)
        moment = time.monotonic()
        if missing:
            good_since = None
            if moment >= end:
                return missing, moment
        elif good_since is None:
            good_since = moment
        elif moment - good_since >= STEADY_SECONDS:
            return [], good_since
        time.sleep(_POLL_SECONDS)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="takeover", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="the agent's configuration file")
    parser.add_argument("--before", metavar="FILE", help="what `garrison status --json` said of the agent before")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to wait (default: %(default)g)")
    parser.add_argument(
        "--since", type=float, default=0.0, help="when the restart began, in seconds of /proc/uptime; the gap is told"
    )
    arguments = parser.parse_args(argv)
    from garrison.supervisor.settings import ConfigurationError, load

    try:
        settings = load(arguments.config)
    except (OSError, ConfigurationError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    before = None
    try:
        if arguments.before:
            with open(arguments.before, "rb") as file:
                before = msgspec.json.decode(file.read(), type=StatusReport)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except msgspec.MsgspecError as error:
        # The agent before may have been another version: its document is a help and no condition.
        sys.stderr.write(f"{arguments.before} is not understood ({error}): every wanted worker has to run\n")
    missing, moment = wait(
        ControlClient(os.path.join(settings.agent.run_dir, SOCKET_NAME), 5.0), before, arguments.seconds
    )
    if missing:
        sys.stderr.write("; ".join(missing) + "\n")
        return 1
    if arguments.since:
        # CLOCK_MONOTONIC stands still in a suspended host, /proc/uptime does not: the difference is theirs now.
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME) - (time.monotonic() - moment)
        sys.stdout.write(f"everything ran again {max(0.0, uptime - arguments.since):.1f} s after the restart began\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
