"""(f) Misbehaving workers: how soon each is stopped, what its neighbours feel meanwhile, and whether it recovers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from benchmarks.context import Context
from benchmarks.giving_way import giving_way
from benchmarks.leaking import leaking
from benchmarks.neighbours import UNSHED, neighbours
from benchmarks.probe import Probe
from benchmarks.report import Report, Row
from benchmarks.sampling import sampling
from benchmarks.stats import Series, number
from tests.e2e._agent import RunningAgent, until
from tests.e2e._hogs import BEHAVED, DIVISOR, HEALTHY, HOGS, SHORT, Follower, Hog, Yard, lateness

TICK_SECONDS = 1.0
BOUND_SECONDS = 60.0
QUIET_SECONDS = 4.0
"""How long those are watched that must not trip, and the machine without any of them."""
ACTED = ("throttled", "tripped", "latched", "failed")


def run(context: Context) -> Report:
    """Let one after the other loose beside a healthy worker and a probe; then all of them at once."""
    report = Report("breaking")
    for part in (_one_by_one, neighbours, leaking, giving_way, sampling):
        try:
            part(context, report)
        except (AssertionError, LookupError, OSError, ValueError) as error:
            # What the other parts have measured stays worth being shown.
            report.error += f"{part.__name__.strip('_')}: {type(error).__name__}: {error}; "
    return report


def _one_by_one(context: Context, report: Report) -> None:
    with _yard(context) as yard:
        _causes(context, yard, report)


@contextlib.contextmanager
def _yard(context: Context) -> Iterator[Yard]:
    agent = RunningAgent(
        context.folder / "breaking",
        HEALTHY + "".join(one.toml() for one in (*HOGS, *BEHAVED)),
        agent="budget = {cpu_quota_percent = 200, memory_max = '1GiB'}",
        more=UNSHED,
    )
    yard = Yard(agent)
    try:
        yard.start()
        yield yard
    finally:
        yard.call_back()
        agent.cleanup()


def _causes(context: Context, yard: Yard, report: Report) -> None:
    for one in (*HOGS, *BEHAVED):
        yard.agent.wait_worker(one.name, state="running")
    healthy = yard.agent.worker("healthy")
    follower = Follower(yard.agent)
    with Probe("latency") as probe:
        quiet = probe.measure(QUIET_SECONDS)
        for one in HOGS:
            context.noise.sample()
            _loose(yard, follower, probe, one, report)
        for one in BEHAVED:
            _watch(yard, probe, one, report)
    _recovered(yard, follower, report)
    ticks = follower.ticks()
    after = yard.agent.worker("healthy")
    if (after["pid"], after["breaker"]["trips"]) != (healthy["pid"], 0):
        raise AssertionError(f"the healthy worker was touched: {after}")
    late = Series("late", "ms", [max(0.0, lateness(ticks, TICK_SECONDS)) * 1000])
    what = f"a healthy worker's sign of life each {TICK_SECONDS:g} s, at a consumer: the latest of {len(ticks)}"
    report.rows.append(Row(what, late, goal="≤ one period late", met=late.values[0] <= TICK_SECONDS * 1000))
    report.notes.append(
        f"without any of them the probe's sleep of 2 ms is late by {number(quiet['p50'])} ms at the median, "
        f"{number(quiet['p99'])} ms at p99"
    )
    report.notes.append(
        f"budgets here: {SHORT['cpu_trip_samples']} samples of {SHORT['sample_seconds']} s, beats each "
        f"{SHORT['beat_seconds']} s; the breaker's times are divided by {DIVISOR}. With the defaults (12 samples of "
        "5 s, beats each 5 s, a throttle of 60 s) what is counted in samples or beats takes as much longer; what the "
        "kernel or the pipe tells is as fast as here"
    )


def _loose(yard: Yard, follower: Follower, probe: Probe, one: Hog, report: Report) -> None:
    """Measure from the first harm to what was done about it."""
    probe.begin()
    yard.loose(one.name)
    began = yard.began(one.name)
    acted = until(lambda: follower.states(one.name, *ACTED, since=began), f"{one.name}: something", BOUND_SECONDS)[0]
    tripped = until(
        lambda: follower.states(one.name, "tripped", "latched", since=began), f"{one.name} trips", BOUND_SECONDS
    )[0]
    felt = probe.end()
    yard.call_back(one.name)
    beside = Series("probe's sleep late, p99", "ms", [felt["p99"]])
    if acted[1]["event"]["action"] == "worker-throttled":
        report.rows.append(Row(f"{one.name}: first harm → throttled", _ms(acted[0] - began), beside))
    cause = tripped[1]["garrison"]["cause"]
    what = f"{one.name}: first harm → tripped ({cause})"
    report.rows.append(
        Row(what, _ms(tripped[0] - began), beside, goal="by " + " or ".join(one.causes), met=cause in one.causes)
    )


def _watch(yard: Yard, probe: Probe, one: Hog, report: Report) -> None:
    """Watch one that must not trip."""
    probe.begin()
    yard.loose(one.name)
    time.sleep(QUIET_SECONDS)
    felt = probe.end()
    yard.call_back(one.name)
    trips = yard.agent.worker(one.name)["breaker"]["trips"]
    beside = Series("probe's sleep late, p99", "ms", [felt["p99"]])
    what = f"{one.name}: trips in {QUIET_SECONDS:g} s"
    report.rows.append(Row(what, Series("trips", "", [trips]), beside, goal="0", met=trips == 0))


def _recovered(yard: Yard, follower: Follower, report: Report) -> None:
    """Wait until all that behave again run with a closed circuit."""
    names = [one.name for one in HOGS]

    def well() -> bool:
        workers = {worker["name"]: worker for worker in yard.agent.client.call("status")["workers"]}
        return all(
            workers[name]["state"] == "running" and workers[name]["breaker"]["state"] == "closed" for name in names
        )

    until(well, "all run again", BOUND_SECONDS)
    took = Series("to recover", "s")
    for name in names:
        trip = follower.states(name, "tripped")[-1][0]
        took.add(follower.states(name, "running", since=trip)[-1][0] - trip)
    what = f"last trip → running, circuit closed; times divided by {DIVISOR}"
    report.rows.append(Row(what, took, goal="all", met=True))


def _ms(seconds: float) -> Series:
    return Series("time", "ms", [seconds * 1000])
