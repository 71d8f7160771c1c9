"""A real agent on a real etcd cluster."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.e2e._agent import RunningAgent, module, until
from tests.etcd.cluster import Cluster, Tls

LONG = os.environ.get("GARRISON_LONG_TESTS", "") == "1"
"""Outages as long as those that are promised, and measured times; minutes instead of seconds."""

WITHIN = 20.0 if LONG else 60.0
"""Seconds in which a stop acts once a quorum can be reached. 20 are promised; a loaded machine is given more."""

QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
AT_ONCE = "release_spread_seconds = 1\n"
STOP_KEY = "/hids/server/config/web1/worker/quiet"
REGISTRATION = "/hids/agent/master/web1"
STATUS = "/hids/agent/status/web1"

Make = Callable[..., RunningAgent]


def store_toml(
    cluster: Cluster,
    *,
    endpoints: Sequence[str] | None = None,
    tls: Tls | None = None,
    user: str = "",
    password_file: Path | None = None,
    ttl: int = 30,
) -> str:
    """Return the tables for a store in etcd."""
    lines = ["[store]", 'backend = "etcd"', "[store.etcd]", f"endpoints = {json.dumps(endpoints or cluster.endpoints)}"]
    lines.append(f"lease_ttl = {ttl}")
    if tls is not None:
        lines += [f'ca_cert = "{tls.ca}"', f'cert = "{tls.client_cert}"', f'key = "{tls.client_key}"']
    if user:
        lines += [f'username = "{user}"', f'password_file = "{password_file}"']
    return "\n".join(lines) + "\n"


def started(make_agent: Make, cluster: Cluster, **options: Any) -> RunningAgent:
    """Return an agent that runs its worker and is registered."""
    agent = make_agent(QUIET, agent=AT_ONCE, more=store_toml(cluster, **options))
    agent.start()
    agent.wait_worker("quiet", state="running")
    until(lambda: cluster.get(REGISTRATION), "the registration is there", 60)
    return agent


def store_of(agent: RunningAgent) -> dict[str, Any]:
    """Return the store's part of the status."""
    return agent.client.call("status")["agent"]["store"]


def wait_store(agent: RunningAgent, *, connected: bool) -> dict[str, Any]:
    """Wait until the agent is connected, or knows that it is not."""
    return until(
        lambda: store if (store := store_of(agent))["connected"] == connected else None,
        f"the agent is {'connected' if connected else 'not connected'}",
        60,
    )


def acted(agent: RunningAgent, since: float, **wanted: Any) -> float:
    """Wait until the worker is as wanted; return the seconds since a time, and check them."""
    until(
        lambda: (worker := agent.worker("quiet")) and all(worker[key] == value for key, value in wanted.items()),
        f"the worker is {wanted}",
        WITHIN,
    )
    return time.monotonic() - since


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
