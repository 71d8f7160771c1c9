"""Connects the heart with the agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from garrison.supervisor.desired.model import short_hash
from garrison.supervisor.heartbeat.heart import Heart, Surroundings
from garrison.supervisor.settings import Settings
from garrison.supervisor.status import killswitch_status, store_status

if TYPE_CHECKING:
    from garrison.supervisor.agent import Agent


def make_heart(agent: Agent, started: float) -> Heart:
    """Return the heart of an agent.

    Args:
        agent: The agent.
        started: When it was started, monotonic seconds.
    """
    hashed: tuple[Settings, object, str] | None = None

    def config_hash() -> str:
        nonlocal hashed
        desired = agent.reconciler.desired
        master = desired.master if desired is not None else None
        if hashed is None or hashed[0] is not agent.settings or hashed[1] is not master:
            hashed = agent.settings, master, short_hash(agent.settings, master)
        return hashed[2]

    def interval() -> float:
        desired = agent.reconciler.desired
        seconds = desired.master.heartbeat_seconds if desired is not None else None
        return agent.settings.heartbeat.seconds if seconds is None else seconds

    around = Surroundings(
        host=agent.host,
        cgroup_mode=agent.cgroups.mode,
        interval=interval,
        config_hash=config_hash,
        uptime=lambda: time.monotonic() - started,
        workers=lambda: agent.workers,
        sampler=agent.sampler,
        usage_of_master=agent.watchman.usage_of_master,
        killswitch=lambda: killswitch_status(agent.killswitch),
        store=lambda: store_status(agent.store.status(), agent.presence.lease_id if agent.presence is not None else ""),
        figures=agent.way_out.pipeline.figures,
        shed_level=lambda: int(agent.watchman.shedding.state.level),
        problems=agent.problems,
        emit_state=agent.emit_state,
        save=agent.remembering.save_counts,
        silent=lambda: agent.killswitch.engaged,
    )
    return Heart(around, agent.way_out.own, agent.way_out.books)
