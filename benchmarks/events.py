"""(c) Events from a worker into the file, beside `multiprocessing.Queue`, and batches beside a bare pipe.

What counts is what stands in the file. The rate is that of the first 95 % of a turn, for both sides: the last
events of a burst wait up to 0.5 s for company, which says nothing about throughput.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.agent import Agent
from benchmarks.context import Context, Deadline
from benchmarks.proc import usage
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from benchmarks.workers.bench_modules import execution
from tests.e2e._agent import until

PEERS = Path(__file__).parent / "peers"
SHARE = 0.95
LOOK_SECONDS = 0.001
STILL_LOOKS = 200
TURN_SECONDS = 20.0
BATCH_BYTES = 60_000
MARK = b'"action":"exec"'
EVENTS = 60_000
BATCHES = 1500
"""Of a turn, for both sides."""
REFILL_SECONDS = 1.5
"""Before a turn. The agent reads a bounded amount from one worker, on average and in a burst, and lets a bounded number
of events pass; a turn fits into these bursts, so that the way is measured and not the bound."""

WORKERS = """
[workers.source]
modules = ["@/modules/bench_modules.py:Source"]
[workers.source.budget]
cpu_quota_percent = 200
cpu_trip_percent = 200
events_per_second = 100000
[workers.pusher]
command = ["{python}", "-I", "@/modules/pusher.py"]
[workers.pusher.budget]
cpu_quota_percent = 200
cpu_trip_percent = 200
events_per_second = 100000
"""
AGGREGATE = "[agent.budget]\ncpu_quota_percent = 400\n"
SINK = "[sink.file]\nmax_bytes = 1073741824\n"


@dataclass(frozen=True)
class Turn:
    """What one turn moved.

    Attributes:
        rate: Of the first 95 %, a second: events, or bytes as the sender made them.
        sender: CPU seconds of the sending process.
        receiver: CPU seconds of the process that wrote the file.
        delivered: Events in the file.
        dropped: Events that the sender gave up and counted.
    """

    rate: float
    sender: float
    receiver: float
    delivered: int
    dropped: int = 0


class Growth:
    """Watches a file grow; tells when it had how many bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: list[tuple[float, int]] = []

    def look(self) -> int:
        """Look once; return the size."""
        try:
            size = os.stat(self._path).st_size
        except FileNotFoundError:
            size = 0
        self._seen.append((time.monotonic(), size))
        return size

    def share(self, begin: float) -> float:
        """Return the seconds from `begin` until `SHARE` of the final size was there."""
        wanted = self._seen[-1][1] * SHARE
        return next(at for at, size in self._seen if size >= wanted) - begin


class Flow:
    """The agent with a source and a pusher, one turn at a time."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._turn = 0
        self._file = agent.folder / "log" / "events.0.ndjson"

    def run(self, worker: str, settings: dict[str, object], events: int) -> Turn:
        """Have a worker send `events`; return what happened.

        Raises:
            AssertionError: The books do not balance, or the file says something else than they.
        """
        agent = self._agent
        for path in self._file.parent.glob("events.*.ndjson"):
            path.unlink()  # a fresh file, as the peer has
        self._turn += 1
        before = agent.workers()[worker]
        pid, master = before["pid"], agent.running.pid
        used = usage([pid]), usage([master])
        growth = Growth(self._file)
        wanted = {"turn": self._turn, **settings}
        begin = time.monotonic()
        agent.configure(worker, {"order": json.dumps(wanted)} if worker == "pusher" else wanted)
        size, still, deadline = 0, 0, begin + TURN_SECONDS
        while True:
            grown = growth.look()
            still = still + 1 if grown == size else 0
            size = grown
            # Only when it has been still for a while it is worth counting: that costs the CPU that is measured.
            if still >= STILL_LOOKS:
                if self._file.read_bytes().count(MARK) >= events:
                    break
                still = 0
            if time.monotonic() > deadline:
                books = agent.workers()[worker]["events"]
                raise AssertionError(
                    f"not all {events} events of {worker} were in the file within {TURN_SECONDS} s: {books}"
                )
            time.sleep(LOOK_SECONDS)

        def balanced() -> dict[str, int] | None:
            now = agent.workers()[worker]["events"]
            books: dict[str, int] = {key: now[key] - before["events"][key] for key in ("emitted", "delivered")}
            books["dropped"] = sum(now["dropped"].values()) - sum(before["events"]["dropped"].values())
            return books if books["emitted"] == books["delivered"] + books["dropped"] and books["emitted"] else None

        books = until(balanced, f"the books of {worker} balance", 10)
        lines = self._file.read_bytes().count(MARK)
        if lines != books["delivered"] or lines < events:
            raise AssertionError(f"{lines} of {events} events are in the file, the books say {books}")
        limited = agent.workers()[worker]["events"]["dropped"].get("rate_limit", 0)
        if limited:
            raise AssertionError(f"{limited} events were over the rate limit: the limit was measured, not the way")
        seconds = growth.share(self._began())
        cpu = usage([pid]) - used[0], usage([master]) - used[1]
        return Turn(lines * SHARE / seconds, cpu[0].cpu_seconds, cpu[1].cpu_seconds, lines, books["dropped"])

    def _began(self) -> float:
        """Return when the worker says that it began: its clock is ours (CLOCK_MONOTONIC)."""

        def look() -> float | None:
            found = re.findall(rf"turn {self._turn} began at ([\d.]+)", self._agent.running.errors())
            return float(found[-1]) if found else None

        return float(until(look, f"turn {self._turn} is in the log", 10))


def peer(program: str, count: int, path: Path, given: bytes) -> tuple[float, float, float]:
    """Run a peer; return the seconds for the first 95 %, and the CPU seconds of its sender and its receiver."""
    path.unlink(missing_ok=True)
    growth = Growth(path)
    command = [sys.executable, "-I", str(PEERS / program), str(count), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(given)
            process.stdin.close()
            while process.poll() is None:
                growth.look()
                time.sleep(LOOK_SECONDS)
            growth.look()
            begin, sender, receiver = map(float, process.stdout.read().split())
        finally:
            process.kill()
    return growth.share(begin), sender, receiver


class Measured:
    """What is collected over the turns."""

    def __init__(self) -> None:
        self.built = Series("built in the worker → file", "events/s")
        self.queue = Series("`multiprocessing.Queue`", "events/s")
        self.batches = Series("60 KB batches → file", "MB/s")
        self.pipe = Series("bare `os.pipe` copy", "MB/s")
        self.worker = Series("worker", "s")
        self.master = Series("master", "s")
        self.passing = Series("master, ready batches", "s")
        self.producer = Series("producer", "s")
        self.consumer = Series("consumer", "s")
        self.delivered = 0
        self.dropped = 0

    def take(self, turn: Turn) -> None:
        """Take the books of a turn."""
        self.delivered += turn.delivered
        self.dropped += turn.dropped


def run(context: Context) -> Report:
    """Measure in turns: the worker, the queue, the pusher, the bare pipe; then what lasts."""
    report, seen = Report("events"), Measured()
    count, deadline = context.count(10, 2), Deadline(context.seconds(60, 20))
    lines = [_line(number) for number in range(1000)]
    batch = b"".join(lines[: BATCH_BYTES // (len(lines[0]) + 4)])
    per_batch = batch.count(b"\n")
    folder = context.folder / "events"
    with ExitStack() as stack:
        agent = stack.enter_context(Agent(folder, WORKERS.format(python=sys.executable), "", AGGREGATE + SINK))
        agent.wait_running()
        (folder / "batch").write_bytes(batch)
        flow, path = Flow(agent), folder / "copy"
        order = {"count": BATCHES, "file": str(folder / "batch")}
        for turn in range(count):
            if deadline.over and turn:
                break
            context.noise.sample()
            time.sleep(REFILL_SECONDS)
            built = flow.run("source", {"count": EVENTS}, EVENTS)
            seen.take(built)
            seen.built.add(built.rate)
            seen.worker.add(built.sender / built.delivered * 1e6)
            seen.master.add(built.receiver / built.delivered * 1e6)
            seconds, sender, receiver = peer("queue_copy.py", EVENTS, path, b"".join(lines))
            seen.queue.add(EVENTS * SHARE / seconds)
            seen.producer.add(sender / EVENTS * 1e6)
            seen.consumer.add(receiver / EVENTS * 1e6)
            moved = flow.run("pusher", order, BATCHES * per_batch)
            seen.take(moved)
            seen.batches.add(moved.rate * len(batch) / per_batch / 1e6)
            seen.passing.add(moved.receiver / moved.delivered * 1e6)
            seconds, _, _ = peer("pipe_copy.py", BATCHES, path, batch)
            seen.pipe.add(BATCHES * len(batch) * SHARE / seconds / 1e6)
    _tell(report, seen, len(lines[0]))
    return report


def _tell(report: Report, seen: Measured, size: int) -> None:
    def row(what: str, ours: Series, theirs: Series, least: float, goal: str) -> Row:
        ratio = ours.p50 / theirs.p50
        return Row(what, ours, theirs, ratio, goal, ratio >= least)

    report.rows += [
        row(f"events, {EVENTS:,} in a row", seen.built, seen.queue, 1, "≥ 1×"),
        row(f"ready-encoded batches, {BATCHES:,} of {BATCH_BYTES // 1000} kB", seen.batches, seen.pipe, 0.5, "≥ 0.5×"),
    ]
    for ours, theirs in ((seen.worker, seen.producer), (seen.master, seen.consumer)):
        what = f"CPU per million events, {ours.name}"
        report.rows.append(Row(what, ours, theirs, theirs.p50 / ours.p50))
    report.rows.append(Row("CPU per million events, master, ready batches", seen.passing))
    share = 100 * seen.dropped / (seen.delivered + seen.dropped)
    report.notes.append(
        f"an event has {size} bytes where it leaves the worker and about 130 more in the file, the master's "
        "stamp; rates of batches count the bytes before it"
    )
    report.notes.append(
        "emitted = delivered + dropped held in every turn, and as many events stood in the file as were delivered: "
        f"{seen.delivered:,} delivered, {seen.dropped:,} tries refused by the full outbox and counted ({share:.1f} %)"
    )


def _line(number: int) -> bytes:
    """Return an event as the runtime would send it: the peer's bytes are the same."""
    document = execution(number)
    filled = {"module": "source", **document["event"], "sequence": 100_000 + number}
    whole = {"@timestamp": "2026-01-02T03:04:05.678Z", **document, "event": filled}
    return msgspec.json.encode(whole) + b"\n"
