"""A real agent on a real etcd cluster."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.e2e._agent import RunningAgent, module, until
from tests.etcd.cluster import Cluster, EtcdctlError, Member, Tls

LONG = bool(os.environ.get("GARRISON_FULL"))
"""Outages and numbers as large as those that are promised to be survived; minutes instead of seconds."""

QUORUM_SECONDS = 20.0
"""Promised: a stop acts this long after a quorum can be reached."""

RIGHT_SECONDS = 5.0
"""Promised where only a write right is lost, or nothing is wrong."""

SPINNING = 0.1
"""A master that uses this share of a core, or more, while etcd is away does not back off.

It is far above the 1 % that is promised: what an idle process costs differs tenfold between machines and hours, so
the promise is measured in the benchmark (`make bench ARGS=etcd`), where the machine's own state stands beside it.
"""

QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
AT_ONCE = "release_spread_seconds = 0\n"
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


def problems(agent: RunningAgent) -> list[str]:
    """Return what the agent says is wrong."""
    return agent.client.call("status")["agent"]["problems"]


def report(what: str, value: object) -> None:
    """Show a measured value; ``pytest -s`` lets it through."""
    name = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[2].partition(" ")[0]
    sys.stdout.write(f"\n[measured] {name}: {what}: {value}\n")


def acted(agent: RunningAgent, since: float, within: float = RIGHT_SECONDS, **wanted: Any) -> None:
    """Wait until the worker is as wanted, and check that it took no longer than promised since a time.

    What the machine itself was late meanwhile, seen by a thread that does nothing but sleep, is allowed for.
    """
    try:
        until(
            lambda: (worker := agent.worker("quiet")) and all(worker[key] == value for key, value in wanted.items()),
            f"the worker is {wanted}",
            within + 60,
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\nstatus: {agent.client.call('status')}\n{agent.errors()[-4000:]}") from None
    in_time(", ".join(map(str, wanted.values())), since, within)


def in_time(what: str, since: float, within: float) -> None:
    """Check, and report, how long something took that has just been seen."""
    seconds, late = time.monotonic() - since, LATENESS.since(since)
    report(what, f"{seconds:.2f} s of {within:g} s promised; this machine was {late:.2f} s late")
    assert seconds <= within + late


class Lateness:
    """How late this machine is: what a thread that does nothing but sleep loses. One for all tests."""

    STEP = 0.1

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []
        threading.Thread(target=self._run, name="lateness", daemon=True).start()

    def _run(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(self.STEP)
            now = time.monotonic()
            self._late = [*self._late[-6000:], (now, now - before - self.STEP)]
            before = now

    def since(self, begin: float) -> float:
        """Return the seconds lost since a time, ten minutes ago at most."""
        return sum(late for at, late in self._late if at > begin)


LATENESS = Lateness()


def member_of(cluster: Cluster, agent: RunningAgent) -> Member:
    """Return the member that the agent is connected to."""
    endpoint = wait_store(agent, connected=True)["endpoint"]
    return next(member for member in cluster.members if member.endpoint in endpoint)


def put_when_possible(cluster: Cluster, key: str, value: str, *, without: Member | None = None) -> float:
    """Put a key through the members but one as soon as they have a leader; return when that was done."""
    endpoints = [member.endpoint for member in cluster.members if member is not without]

    def put() -> bool:
        with contextlib.suppress(EtcdctlError):
            cluster.etcdctl("put", key, stdin=value, endpoints=endpoints, timeout=5)
            return True
        return False

    until(put, "a quorum takes a write", 60)
    return time.monotonic()


def quiet_for(agent: RunningAgent, seconds: float) -> float:
    """Let an agent alone for some time; return the share of a core that its master used."""
    before, began = cpu_seconds(agent.pid), time.monotonic()
    time.sleep(seconds)  # the time itself is what is measured
    share = (cpu_seconds(agent.pid) - before) / (time.monotonic() - began)
    report("processor time of the master during the outage", f"{100 * share:.2f} % of a core in {seconds:g} s")
    return share


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, with all its threads."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e9
