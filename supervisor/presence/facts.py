"""Fills the status document from the living parts of the agent. Called from the loop only."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from garrison.supervisor.control.status import ConfigStatus, KillswitchStatus
from garrison.supervisor.desired import DEFAULT, LOCAL, Desired, WorkerDesired
from garrison.supervisor.killswitch import KillSwitch
from garrison.supervisor.presence.document import BreakerFacts, HostStatus, WorkerFacts, clipped, clipped_problems
from garrison.supervisor.version import VERSION
from garrison.supervisor.worker.supervisor import WorkerSupervisor


def host_status(
    host: str,
    desired: Desired,
    workers: Iterable[WorkerSupervisor],
    killswitch: KillSwitch,
    problems: list[str],
) -> HostStatus:
    """Return what a host says of itself.

    Args:
        host: The hostname.
        desired: What is wanted of it.
        workers: Its workers.
        killswitch: Its killswitch.
        problems: What is wrong, without what is wrong with the store and with this document itself: that would
            change with every outage, and who can read it knows better.
    """
    switch = msgspec.convert(killswitch.describe(), KillswitchStatus)
    return HostStatus(
        host=host,
        version=VERSION,
        killswitch=msgspec.structs.replace(switch, reason=clipped(switch.reason)),
        groups=desired.groups,
        groups_by=desired.groups_by,
        master_by=desired.master.decided_by,
        problems=clipped_problems(problems),
        workers=tuple(_worker(worker) for worker in sorted(workers, key=lambda worker: worker.name)),
    )


def _worker(worker: WorkerSupervisor) -> WorkerFacts:
    configuration, breaker = worker.configuration, worker.breaker
    return WorkerFacts(
        name=worker.name,
        desired=worker.desired.action,
        desired_by=worker.desired.decided_by,
        state=worker.state.value,
        breaker=BreakerFacts(state=breaker.phase, trips=breaker.trips, cause=breaker.cause),
        config=ConfigStatus(
            revision=configuration.offer.revision,
            hash=configuration.offer.hash,
            status=configuration.status,
            error=None if configuration.error is None else clipped(configuration.error),
        ),
        config_by=_configured_by(worker.desired),
        last_error=None if worker.last_error is None else clipped(worker.last_error),
    )


def _configured_by(desired: WorkerDesired) -> tuple[str, ...]:
    keys = {desired.settings_by, desired.budget_by, desired.rules_by, desired.log_level_by}
    return tuple(sorted(keys - {DEFAULT, LOCAL}))
