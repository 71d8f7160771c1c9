"""How a trip ends a worker: nothing of it survives, whatever it has left behind, and nobody else is touched."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.e2e._agent import RunningAgent, needs_cgroups, until
from tests.e2e._hogs import HEALTHY, HOGS, Follower, Yard
from tests.e2e._invariants import assert_clean, assert_no_mistake

pytestmark = needs_cgroups

Make = Callable[..., RunningAgent]
ENDED = [one for one in HOGS if one.name in ("fork-bomb", "escapees", "ignores-term", "thread-leak")]


def test_nothing_of_a_tripped_worker_survives(make_agent: Make) -> None:
    agent = make_agent(HEALTHY + "".join(one.toml() for one in ENDED), agent="budget = {cpu_quota_percent = 200}")
    yard = Yard(agent)
    # The throttle is short and the cool-down long enough to look in: 60 and 30 s divided by ten.
    yard.start(10.0)
    names = {one.name for one in ENDED}
    for name in names:
        agent.wait_worker(name, state="running")
    healthy = agent.worker("healthy")["pid"]
    yard.loose(*names)
    most = dict.fromkeys(names, 0)
    ended: dict[str, set[int]] = {}

    def all_ended() -> bool:
        for name in names - ended.keys():
            # The name before the look: what is tripped now was empty before it was called so.
            if agent.worker(name)["state"] == "tripped":
                ended[name] = agent.pids(f"workers/{name}")
                yard.call_back(name)
            else:
                most[name] = max(most[name], len(agent.pids(f"workers/{name}")))
        return ended.keys() == names

    until(all_ended, "all are tripped", 60)
    assert ended == {name: set() for name in names}
    assert max(most.values()) <= 32, f"the kernel let more live than their pids_max: {most}"
    assert most["fork-bomb"] > 10
    # Itself and three: the process between it and each of them may still be seen.
    assert 4 <= most["escapees"] <= 7
    assert agent.worker("healthy")["pid"] == healthy
    for name in names:
        agent.wait_worker(name, state="probation")
    assert_clean(agent)
    assert_no_mistake(agent)


def test_a_policy_that_is_only_tried_out_ends_nobody_and_says_whom_it_would(make_agent: Make) -> None:
    names = ("cpu-hog", "thread-leak", "fd-leak")
    hogs = [one for one in HOGS if one.name in names]
    agent = make_agent(
        HEALTHY + "".join(one.toml() for one in hogs), agent="dry_run = true\nbudget = {cpu_quota_percent = 200}"
    )
    yard = Yard(agent)
    yard.start()
    pids = {name: agent.wait_worker(name, state="running")["pid"] for name in names}
    follower = Follower(agent)
    yard.loose(*names)

    def told() -> bool:
        return all(any(event["garrison"].get("dry_run") for _, event in follower.states(name)) for name in names)

    until(told, "each is told of", 60)
    time.sleep(1.0)  # for whatever might follow all the same
    for name in names:
        worker = agent.worker(name)
        assert (worker["pid"], worker["state"], worker["breaker"]["trips"]) == (pids[name], "running", 0), worker
    # Its caps hold: that is the kernel's, and nothing that can be tried out.
    assert len(agent.pids("workers/thread-leak")) <= 32
