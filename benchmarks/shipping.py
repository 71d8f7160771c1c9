"""(g) Events from a worker into Kafka, both kinds of messages, beside a bare kafka-python producer with the same bytes.

The broker is Apache Kafka where `make test-kafka` has fetched it, else the small one of the tests; the report says
which.

What a host may send in a second is limited by default, to about 8,000 of these events: that limit is off here, so
that the way is measured and not the limit. The rate is that of the first 95 % of a turn, for both sides, from the first
event on: the last ones wait up to 2.5 s for company, which says nothing about throughput.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.agent import Agent
from benchmarks.context import Context, Deadline
from benchmarks.proc import busy_percent, pss_mib, usage
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from tests.e2e._agent import until
from tests.kafka.brokers import ApacheKafka, Kafka, Tansu
from tests.kafka.fetch import MissingError

PEER = Path(__file__).parent / "peers" / "kafka_bare.py"
MODES = {"one event a message": 1, "lines of events": 1000}
EVENTS = 100_000
SHARE = 0.95
TURN_SECONDS = 60.0
REFILL_SECONDS = 1.5
LOOK_SECONDS = 0.1
"""Each look costs the master CPU time that is measured; between two looks the way is taken to be steady."""
PAIRS = 4
SETTLE_SECONDS = 2.0
GOAL_PERCENT = 0.5
COMPRESSION = "gzip"

WORKERS = """
[workers.source]
modules = ["@/modules/bench_modules.py:Source"]
[workers.source.budget]
cpu_quota_percent = 200
cpu_trip_percent = 200
events_per_second = 100000
[workers.talker]
modules = ["@/modules/talker.py:Talker"]
[workers.talker.settings]
every_seconds = 0.1
events = 0
alerts = 0
"""
AGGREGATE = "[agent.budget]\ncpu_quota_percent = 400\n[limits]\nbytes_per_second = 0\n"
SINK = """
[sink]
backend = "kafka"
[sink.kafka]
bootstrap_servers = ["{server}"]
topic = "{topic}"
records_per_message = {per_message}
compression = "{compression}"
"""


@dataclass(frozen=True)
class Turn:
    """What one turn moved: delivered events a second, and CPU seconds of the master for each of them."""

    rate: float
    cpu: float


class Measured:
    """The series of one mode."""

    def __init__(self, mode: str) -> None:
        self.rate = Series(f"worker → Kafka, {mode}", "events/s")
        self.cpu = Series("master", "ms")
        self.steady = Series("master", "%")
        self.memory = Series("master", "MiB")
        self.bare_rate = Series("bare kafka-python", "events/s")
        self.bare_cpu = Series("bare kafka-python", "ms")


def run(context: Context) -> Report:
    """Measure bursts in turns with the peer, then the cost of 100 events a second; for both kinds of messages."""
    report = Report("shipping")
    count, deadline = context.count(3, 1), Deadline(context.seconds(240, 60))
    with ExitStack() as stack:
        broker, name = _broker(stack, context.folder / "broker")
        for number, (mode, per_message) in enumerate(MODES.items()):
            topic, seen = f"shipping{number}", Measured(mode)
            broker.create_topic(topic)
            broker.create_topic(f"{topic}-bare")
            sink = SINK.format(
                server=broker.bootstrap[0], topic=topic, per_message=per_message, compression=COMPRESSION
            )
            with Agent(context.folder / topic, WORKERS, "", AGGREGATE + sink) as agent:
                agent.wait_running()
                for turn in range(count):
                    if deadline.over and turn:
                        break
                    context.noise.sample()
                    time.sleep(REFILL_SECONDS)
                    moved = _burst(agent, turn + 1)
                    seen.rate.add(moved.rate)
                    seen.cpu.add(moved.cpu * 1e6)
                    seconds, cpu = _bare(broker, topic, context.folder / f"{topic}.lines")
                    seen.bare_rate.add(EVENTS * SHARE / seconds)
                    seen.bare_cpu.add(cpu / EVENTS * 1e6)
                for _ in range(context.count(PAIRS, 1)):
                    _steady(agent, seen, context.seconds(10, 5))
                seen.memory.add(pss_mib(agent.running.pid))
            _tell(report, mode, seen)
        report.notes.append(
            f"broker: {name}, on the same machine; {COMPRESSION}, acks=all, idempotent; CPU is the master's, which "
            "also reads the events from the worker, checks, stamps and accounts for them; for lines of events the bare "
            "producer sends the same messages as the agent; it compresses and sums up as kafka-python does by itself "
            "(gzip level 9), the agent as docs/kafka.md says (level 5); the limit of what leaves the host is off"
        )
    return report


def _broker(stack: ExitStack, folder: Path) -> tuple[Kafka, str]:
    try:
        return stack.enter_context(ApacheKafka(folder)), "Apache Kafka, one node"
    except MissingError:
        return stack.enter_context(Tansu(folder)), "Tansu (make test-kafka fetches Apache Kafka)"


def _books(agent: Agent, worker: str) -> dict[str, Any]:
    found: dict[str, Any] = agent.workers()[worker]["events"]
    return found


def _burst(agent: Agent, turn: int) -> Turn:
    """Have the worker send `EVENTS`; return how fast they were acknowledged.

    Raises:
        AssertionError: They were not, or some were over the rate limit.
    """
    before = now = _books(agent, "source")
    master = [agent.running.pid]
    used, begin = usage(master), time.monotonic()
    agent.configure("source", {"turn": turn, "count": EVENTS})

    def through(books: dict[str, Any]) -> int:
        return int(books["delivered"]) + int(books["dropped"].get("master_queue", 0))

    looks = [(begin, 0)]
    while looks[-1][1] < EVENTS:
        if time.monotonic() > begin + TURN_SECONDS:
            raise AssertionError(f"not all {EVENTS} events were delivered within {TURN_SECONDS:g} s: {now}")
        time.sleep(LOOK_SECONDS)
        now = _books(agent, "source")
        looks.append((time.monotonic(), through(now) - through(before)))
    spent = usage(master) - used
    if now["dropped"].get("rate_limit", 0):
        raise AssertionError(f"events were over the rate limit: the limit was measured, not the way: {now}")
    delivered = now["delivered"] - before["delivered"]
    seconds = _reached(looks, delivered * SHARE) - _began(agent, turn)
    return Turn(delivered * SHARE / seconds, spent.cpu_seconds / delivered)


def _reached(looks: list[tuple[float, int]], events: float) -> float:
    """Return when so many events had been delivered."""
    for (before, fewer), (after, more) in pairwise(looks):
        if more >= events:
            return before + (after - before) * (events - fewer) / (more - fewer)
    raise AssertionError(f"{looks[-1][1]} events were delivered, {events:.0f} are asked for")


def _began(agent: Agent, turn: int) -> float:
    """Return when the worker says that it began: its clock is ours (CLOCK_MONOTONIC)."""

    def look() -> float | None:
        found = re.findall(rf"turn {turn} began at ([\d.]+)", agent.running.errors())
        return float(found[-1]) if found else None

    return float(until(look, f"turn {turn} is in the log", 10))


def _bare(broker: Kafka, topic: str, path: Path) -> tuple[float, float]:
    """Send what the agent sent in one turn with a bare producer; return the seconds of the share, and CPU seconds."""
    if not path.exists():
        events, lines = 0, []
        for record in broker.read(topic):
            if dict(record.headers)["worker"] == b"source" and events < EVENTS:
                events += int(dict(record.headers)["count"])
                lines.append(record.value.hex())
        path.write_text("\n".join(lines))
    command = [sys.executable, str(PEER), broker.bootstrap[0], f"{topic}-bare", str(path), COMPRESSION, str(SHARE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode != 0:
        raise AssertionError(f"the bare producer failed: {done.stderr[-500:]}")
    seconds, cpu = map(float, done.stdout.split())
    return seconds, cpu


def _steady(agent: Agent, seen: Measured, seconds: float) -> None:
    """Measure the master without events, and with 100 a second; the difference is what they cost."""
    shares = []
    for events in (0, 10):
        agent.configure("talker", {"events": events})
        reached = _books(agent, "talker")["delivered"] + (50 if events else 0)
        until(lambda reached=reached: _books(agent, "talker")["delivered"] >= reached, "the talker talks")  # type: ignore[misc]
        time.sleep(SETTLE_SECONDS)
        shares.append(busy_percent([agent.running.pid], seconds))
    seen.steady.add(shares[1] - shares[0])


def _tell(report: Report, mode: str, seen: Measured) -> None:
    cpu = seen.bare_cpu.p50 / seen.cpu.p50
    steady = seen.steady.p50
    report.rows += [
        Row(f"{mode}: {EVENTS:,} events in a row", seen.rate, seen.bare_rate, seen.rate.p50 / seen.bare_rate.p50),
        Row(f"{mode}: CPU per 1,000 events", seen.cpu, seen.bare_cpu, cpu),
        Row(
            f"{mode}: CPU for 100 events a second",
            seen.steady,
            goal=f"< {GOAL_PERCENT:g} %",
            met=steady < GOAL_PERCENT,
        ),
        Row(f"{mode}: memory of the master with the producer (PSS)", seen.memory),
    ]
