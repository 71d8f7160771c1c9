"""Connects the metrics with the agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from garrison.supervisor.metrics.collect import Sources
from garrison.supervisor.metrics.service import MetricsService

if TYPE_CHECKING:
    from garrison.supervisor.agent import Agent


def make_metrics(agent: Agent, started: float) -> MetricsService:
    """Return the metrics of an agent.

    Args:
        agent: The agent.
        started: When it was started, monotonic seconds.
    """
    sources = Sources(
        host=agent.host,
        started=time.time() - (time.monotonic() - started),
        cgroups=agent.cgroups,
        sampler=agent.sampler,
        workers=lambda: agent.workers,
        own=agent.way_out.own.ledger,
        usage_of_master=agent.watchman.usage_of_master,
        budget=lambda: agent.node.budget,
        killed=lambda: agent.killswitch.engaged,
        store=agent.store.status,
        registered=lambda: agent.presence.presence.status().registered if agent.presence is not None else None,
        figures=agent.way_out.pipeline.figures,
        problems=lambda: len(agent.problems.texts()),
        shed_level=lambda: int(agent.watchman.shedding.state.level),
        nurseries=lambda: agent.nursery.replaced,
        log_events=lambda: (agent.way_out.log_events.sent, agent.way_out.log_events.suppressed),
    )
    return MetricsService(sources, agent.problems, agent.call_in_loop)
