"""Two modules in one worker of a whole agent: the guilty one is stopped, the other one does not notice."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until
from tests.e2e._invariants import assert_no_mistake

pytestmark = needs_cgroups

Make = Callable[..., RunningAgent]
AGENT = """
budget = {cpu_quota_percent = 200}
pressure = {cpu_percent = 100, io_percent = 100, memory_percent = 100}
"""
"""Whatever else this machine does is not what is looked at here."""
BUDGET = "cpu_quota_percent = 60\ncpu_trip_percent = 10\nsample_seconds = 0.3\nbeat_seconds = 2.0\n"


def pair(name: str, kind: str, settings: str, samples: int = 9) -> str:
    return (
        f'[workers.pair]\nmodules = ["{module(name, kind)}", "{module("healthy", "Healthy")}"]\n'
        f"[workers.pair.settings.{kind.lower()}]\n{settings}"
        f"[workers.pair.settings.healthy]\nevery_seconds = 0.2\n"
        f"[workers.pair.budget]\n{BUDGET}cpu_trip_samples = {samples}\n"
    )


def ticks(agent: RunningAgent) -> int:
    return sum(event["event"]["action"] == "tick" for event in agent.events())


def test_the_guilty_module_is_stopped_and_its_worker_stays(make_agent: Make) -> None:
    agent = make_agent(pair("hogs", "CpuHog", 'switch = "@/hog"\n'), agent=AGENT)
    agent.start()
    pid = agent.wait_worker("pair", state="running")["pid"]
    (agent.folder / "hog").touch()
    event = agent.wait_event(60, event__action="module-tripped")
    assert event["garrison"]["worker"] == "pair"
    assert event["garrison"]["module"] == "cpuhog"
    assert event["garrison"]["cause"] == "cpu"
    assert event["garrison"]["retry_in_seconds"] > 0
    before = ticks(agent)
    until(lambda: ticks(agent) > before + 10, "ticks of the neighbour")
    (agent.folder / "hog").unlink()
    agent.wait_event(60, event__action="module-probation")
    worker = agent.wait_worker("pair", pid=pid)
    assert worker["state"] in ("running", "throttled")
    assert worker["breaker"]["trips"] == 0
    assert_no_mistake(agent)


def test_a_worker_is_started_again_without_the_module_that_does_not_hear(make_agent: Make) -> None:
    # As with the default numbers, what is left of the samples is more than the 5 s that a module may take to return.
    agent = make_agent(pair("deaf", "Deaf", 'switch = "@/deaf"\n', samples=60), agent=AGENT)
    agent.start()
    first = agent.wait_worker("pair", state="running")["pid"]
    (agent.folder / "deaf").touch()
    agent.wait_event(60, event__action="module-tripped")
    second = until(
        lambda: (worker := agent.worker("pair"))["pid"] not in (0, None, first) and worker, "another process", 60
    )
    assert second["breaker"]["trips"] == 0
    agent.wait_worker("pair", state="running")
    before = ticks(agent)
    until(lambda: ticks(agent) > before + 10, "ticks of the neighbour")
    assert agent.worker("pair")["pid"] == second["pid"]
    # The next process was told: it neither runs the module at once nor reports the same trip again.
    trips = [e["garrison"]["trips"] for e in agent.events() if e["event"]["action"] == "module-tripped"]
    assert trips == list(range(1, len(trips) + 1))
    assert_no_mistake(agent)


def test_a_policy_that_is_only_tried_out_stops_no_module_and_says_which(make_agent: Make) -> None:
    agent = make_agent(pair("hogs", "CpuHog", 'switch = "@/hog"\n'), agent=f"dry_run = true{AGENT}")
    agent.start()
    pid = agent.wait_worker("pair", state="running")["pid"]
    (agent.folder / "hog").touch()
    event = agent.wait_event(60, event__action="module-would-trip")
    assert event["garrison"]["module"] == "cpuhog"
    assert event["garrison"]["dry_run"] is True
    assert event["garrison"]["trips"] == 0
    assert agent.worker("pair")["pid"] == pid
    assert not any(event["event"]["action"] == "module-tripped" for event in agent.events())


def test_an_operators_reset_brings_the_module_back(make_agent: Make) -> None:
    agent = make_agent(pair("hogs", "CpuHog", 'switch = "@/hog"\n'), agent=AGENT)
    agent.start()
    pid = agent.wait_worker("pair", state="running")["pid"]
    (agent.folder / "hog").touch()
    agent.wait_event(60, event__action="module-tripped")
    (agent.folder / "hog").unlink()
    done = agent.garrison("reset", "pair")
    assert done.returncode == 0, done.stderr
    until(
        lambda: any(
            "module cpuhog is back to normal" in line
            for path in (agent.folder / "log").glob("garrison.*.log")
            for line in path.read_text().splitlines()
        ),
        "the module is back",
    )
    assert agent.worker("pair")["pid"] == pid
