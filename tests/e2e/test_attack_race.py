"""Everything at once: operators, the store, crashes and the killswitch, in random order and at the same time.

``GARRISON_RACE_STEPS`` sets the number of steps (150), ``GARRISON_RACE_SEED`` the seed of their choice.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable

import pytest

from garrison.supervisor.control.client import ControlClient
from garrison.supervisor.control.protocol import ControlError
from tests.e2e._agent import RunningAgent, alive, module, needs_cgroups, until
from tests.e2e._invariants import (
    assert_clean,
    assert_in_their_cgroups,
    assert_no_mistake,
    descriptors,
    descriptors_at_rest,
    nursery_of,
    threads,
)

pytestmark = needs_cgroups

STEPS = int(os.environ.get("GARRISON_RACE_STEPS", "150"))
SEED = int(os.environ.get("GARRISON_RACE_SEED", "7"))
NAMES = ("one", "two", "three")
WORKERS = "".join(f'[workers.{name}]\nmodules = ["{module("quiet", "Quiet")}"]\n' for name in NAMES)
MOST_NURSERIES = 2
"""How many are killed: each that dies young makes the next start wait twice as long."""
POOL_THREADS = 32
"""Most threads that asyncio keeps for what waits beside the loop; they idle and are used again."""


class Attack:
    """Random steps against one agent."""

    def __init__(self, agent: RunningAgent) -> None:
        self.agent = agent
        self.failures: list[BaseException] = []
        self.nurseries = 0

    def call(self, op: str, **args: object) -> None:
        # A start under the killswitch, or a worker that is not settled in time, is a fair answer.
        with contextlib.suppress(ControlError):
            self.agent.client.call(op, **args)

    def steer(self, rng: random.Random) -> None:
        name = rng.choice(NAMES)
        what = rng.randrange(10)
        if what < 5:
            self.call(rng.choice(("start", "stop", "freeze", "thaw", "reset")), worker=name)
        elif what < 7:
            self.agent.put(f"server/config/web1/worker/{name}", rng.choice(("start", "stop", "freeze")))
        elif what < 8:
            with contextlib.suppress(FileNotFoundError):
                self.agent.delete(f"server/config/web1/worker/{name}")
        elif what < 9:
            budget = {"cpu_quota_percent": rng.randint(5, 20), "memory_max": rng.randint(70, 96) * 2**20}
            self.agent.put(f"agent/config/web1/plugin/{name}/budget", json.dumps(budget))
        else:
            settings = {"greeting": rng.choice(("a", "b", "x" * 50))}
            self.agent.put(f"agent/config/web1/plugin/{name}/settings", json.dumps(settings))

    def disturb(self, rng: random.Random) -> None:
        """What only one may do at a time, so that it can be judged."""
        what = rng.randrange(12)
        if what < 4:
            self.engage(rng)
            assert not self.agent.pids(), "somebody lives under an engaged killswitch"
            if rng.random() < 0.5:
                self.steer(rng)
                assert not self.agent.pids(), "somebody was started under an engaged killswitch"
            self.release()
        elif what < 6:
            # The worst moment: engaged and released while starts are on their way.
            self.engage(rng)
            self.release()
        elif what < 8:
            os.kill(self.agent.pid, signal.SIGHUP)
        elif what < 10:
            for pid in sorted(self.agent.pids()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, rng.choice((signal.SIGKILL, signal.SIGTERM)))
                break
        elif self.nurseries < MOST_NURSERIES and (pid := nursery_of(self.agent)):
            self.nurseries += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert_in_their_cgroups(self.agent)

    def engage(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            self.agent.client.call("kill", reason="drill")
            return
        self.agent.put("server/config/web1/killswitch", "on")
        until(lambda: self.agent.client.call("status")["agent"]["killswitch"]["engaged"], "it is engaged")
        until(lambda: not self.agent.pids(), "nobody lives")

    def release(self) -> None:
        self.agent.put("server/config/web1/killswitch", "off")
        until(
            lambda: not self.agent.client.call("release")["engaged"],
            "it is released",
        )

    def run(self, act: Callable[[random.Random], None], seed: int, steps: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(steps):
                if self.failures:
                    return
                act(rng)
        except BaseException as error:
            self.failures.append(error)


@pytest.mark.timeout(120 + STEPS)
def test_whatever_comes_at_the_same_time_nothing_is_leaked_and_nobody_escapes(
    make_agent: Callable[..., RunningAgent],
) -> None:
    agent = make_agent(WORKERS, agent="release_spread_seconds = 0\nstop_grace_seconds = 1")
    agent.start()
    for name in NAMES:
        agent.wait_worker(name, state="running")
    agent.client.call("stop", worker="one")
    agent.client.call("start", worker="one")
    fds, running = descriptors_at_rest(agent.pid), threads(agent.pid)
    attack = Attack(agent)
    share = STEPS // 3
    helpers = [threading.Thread(target=attack.run, args=(attack.steer, SEED + n, share)) for n in (1, 2)]
    for helper in helpers:
        helper.start()
    attack.run(attack.disturb, SEED, STEPS - 2 * share)
    for helper in helpers:
        helper.join()
    if attack.failures:
        raise AssertionError(f"{attack.failures[0]!r}\n{agent.errors()[-6000:]}") from attack.failures[0]

    # Calm again: everything as at the beginning.
    for name in NAMES:
        agent.put(f"server/config/web1/worker/{name}", "start")
        agent.put(f"agent/config/web1/plugin/{name}/budget", "{}")
        agent.put(f"agent/config/web1/plugin/{name}/settings", "{}")
        agent.client.call("start", worker=name)
        agent.client.call("reset", worker=name)
    for name in NAMES:
        agent.wait_worker(name, state="running")
    assert_in_their_cgroups(agent)
    assert_clean(agent)
    until(lambda: descriptors(agent.pid) == fds, f"{descriptors(agent.pid)} are not the descriptors of before, {fds}")
    assert threads(agent.pid) <= running + POOL_THREADS
    assert len(descriptors(nursery_of(agent))) <= 12

    for name in NAMES:
        agent.client.call("stop", worker=name)

    def balanced() -> bool:
        books = [worker["events"] for worker in agent.client.call("status")["workers"]]
        return all(book["emitted"] == book["delivered"] + sum(book["dropped"].values()) for book in books)

    until(balanced, "emitted = delivered + dropped")
    assert_clean(agent)
    everybody = agent.pids("") - {agent.pid}
    assert agent.stop() == 0
    assert not [pid for pid in everybody if alive(pid)]
    assert_no_mistake(agent)


def test_many_clients_at_the_same_time_get_an_answer_each(make_agent: Callable[..., RunningAgent]) -> None:
    agent = make_agent(WORKERS)
    agent.start()
    answers: list[str] = []

    def ask(number: int) -> None:
        client = ControlClient(str(agent.folder / "run" / "control.sock"), timeout=60)
        op = ("stop", "start", "freeze", "thaw", "reset")[number % 5]
        try:
            answers.append(client.call(op, worker=NAMES[number % 3])["state"])
        except ControlError as error:
            answers.append(str(error))

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(90)
    assert len(answers) == 12
    assert all(answers), answers
    for name in NAMES:
        agent.client.call("start", worker=name)
        agent.wait_worker(name, state="running")
    assert_clean(agent)
    assert agent.stop() == 0
    assert_no_mistake(agent)
