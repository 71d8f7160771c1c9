"""(f) What a fleet costs its etcd: up to 1,000 simulated agents with real sessions, and one key that stops them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.context import Context
from benchmarks.etcd import Operator, Watcher
from benchmarks.proc import rss_mib, usage
from benchmarks.report import Report, Row
from benchmarks.stats import Series, number
from garrison.supervisor.keys import DEFAULT_PREFIX
from garrison.supervisor.stores.etcd import listing
from garrison.supervisor.stores.etcd.aim import Aim, aim_at
from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.store import REREAD_SECONDS
from tests.e2e._agent import until
from tests.etcd.cluster import Cluster

MEMBERS = 3
AGENTS = 1000
AGENTS_PER_CPU = 250
"""With more of them a machine starves the etcd that it measures: it lost its leader with 1,000 on two CPUs."""
PER_PROCESS = 50
"""Of each agent's threads not one computes anything, but all of a process share one interpreter lock."""
STARTS_PER_SECOND = 40.0
READY_SECONDS = 120.0
PROGRAM = Path(__file__).parent / "peers" / "swarm.py"

PREFIX = f"{DEFAULT_PREFIX}/server/config/"
STOP = f"{PREFIX}@all/worker/process"
KILLSWITCH = f"{PREFIX}@all/killswitch"
STATUS = f"{DEFAULT_PREFIX}/agent/status/"
STATUS_SECONDS = 66.0
"""What the whole fleet caused is written within 61 s, spread by host hash (supervisor/presence/publisher.py); and what
this machine is late."""
MILLION = 1_000_000


class Processes:
    """Simulated agents in as many processes as it takes.

    Args:
        cluster: Whose members they use, each the one that its hostname says.
        count: How many agents.
        log: File for what they log.
    """

    def __init__(self, cluster: Cluster, count: int, log: Path) -> None:
        self.count = count
        self._log = log
        firsts = range(0, count, PER_PROCESS)
        pace = len(firsts) / STARTS_PER_SECOND
        self._processes: list[subprocess.Popen[str]] = []
        for first in firsts:
            how = {
                "endpoints": cluster.endpoints,
                "first": first,
                "count": min(PER_PROCESS, count - first),
                "pace": pace,
            }
            with log.open("ab") as file:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-I", str(PROGRAM), json.dumps(how)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        text=True,
                    )
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Nobody is left to be told: their etcd is thrown away.
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid for process in self._processes]

    def ask(self, question: str) -> list[Any]:
        """Return what each process answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{question}\n")
            process.stdin.flush()
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                said = self._log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"a process of simulated agents has ended with {process.wait()}: {said}")
            answers.append(json.loads(line))
        return answers

    def ready(self) -> bool:
        """Tell whether all are connected and registered; not in a hurry, because they share the machine."""
        time.sleep(0.5)
        states = self.ask("state")
        return all(sum(state[name] for state in states) == self.count for name in ("connected", "registered"))

    def times(self, question: str) -> list[float]:
        """Wait until all have done something; return when each of them did, monotonic seconds, in order."""

        def look() -> list[float]:
            time.sleep(1.0)  # who asks them keeps them from working
            found = [at for answer in self.ask(question) for at in answer]
            return sorted(found) if None not in found else []

        done: list[float] = until(look, f"all {self.count} agents have seen it", READY_SECONDS)
        return done


def metrics(cluster: Cluster) -> dict[str, float]:
    """Return the members' metrics that are of interest here, summed up."""
    found: dict[str, float] = {}
    for member in cluster.members:
        with urllib.request.urlopen(f"{member.url}/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith(("etcd_debugging_mvcc_watch", "etcd_network_client_grpc_")) and "{" not in name:
                    found[name] = found.get(name, 0.0) + float(value)
    return found


class Load:
    """CPU time of some processes and the bytes of all clients between `begin` and `end`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pids = [member.pid for member in cluster.members]

    def over(self, work: Callable[[], None]) -> tuple[float, float, float, float]:
        """Return what a piece of work cost: CPU seconds of etcd, bytes received, bytes sent, seconds."""
        before, cpu, begin = metrics(self._cluster), usage(self._pids).cpu_seconds, time.perf_counter()
        work()
        seconds, used = time.perf_counter() - begin, usage(self._pids).cpu_seconds - cpu
        after = metrics(self._cluster)
        received, sent = (
            after[name] - before[name]
            for name in ("etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total")
        )
        return used, received, sent, seconds


def rereads(context: Context, cluster: Cluster, operator: Operator, report: Report) -> None:
    """Measure what a look behind the watch costs etcd, and a listing of everything."""
    aim = aim_at(DEFAULT_PREFIX, "host-000000", ("web", "paris"))
    for name in range(20):
        operator.connection.put(f"{PREFIX}@all/worker/worker{name}", b"start")
        operator.connection.put(f"{DEFAULT_PREFIX}/agent/config/@all/plugin/worker{name}/settings", b'{"interval": 60}')
    load, each = Load(cluster), 10 if context.quick else 100
    for what, read, every in (
        ("a look behind the watch", listing.tally, REREAD_SECONDS),
        ("a listing of 40 keys", listing.read_all, 0.0),
    ):

        def work(read: Callable[[Connection, Aim], object] = read) -> None:
            for _ in range(each):
                read(operator.connection, aim)

        cpu = Series(f"etcd's CPU for {what}", "µs")
        for _ in range(8):
            used, received, sent, _ = load.over(work)
            cpu.add(used / each * 1e6)
        report.rows.append(Row(f"{what}: CPU of all members, {len(listing.whole(aim))} prefixes", cpu))
        text = f"{what}: {received / each:.0f} bytes to etcd and {sent / each:.0f} back, without gRPC's headers"
        if every:
            rate = MILLION / every
            text += (
                f"; at {MILLION:,} hosts, each once in {every:g} s, {rate:.0f} looks a second: "
                f"{rate * cpu.p50 / 1e6:.2f} cores and {rate * (received + sent) / each / 1e6:.2f} MB/s of the whole "
                "cluster"
            )
        report.notes.append(text)


def run(context: Context) -> Report:
    """Measure etcd without clients, then with all of them, then one key for all."""
    report = Report("fleet")
    count = context.count(min(AGENTS, AGENTS_PER_CPU * (os.cpu_count() or 1)), 40)
    firsts, lasts, shown = Series("first", "ms"), Series("last", "ms"), Series("`etcdctl watch`", "ms")
    kill_firsts, kill_lasts, kill_shown = Series("first", "ms"), Series("last", "ms"), Series("`etcdctl watch`", "ms")
    memory, cpu = Series("etcd's memory for each agent", "KiB"), Series("etcd's CPU for each agent", "% of a core")
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(context.folder / "fleet", MEMBERS, wired=False))
        pids = [member.pid for member in cluster.members]
        operator = stack.enter_context(Operator(cluster.leader()))
        watcher = stack.enter_context(Watcher(cluster, cluster.members[0], PREFIX))
        watcher.begin(operator.connection, f"{PREFIX}nobody/worker/none")
        rereads(context, cluster, operator, report)
        slices, seconds = 3, context.seconds(5, 3)
        load = Load(cluster)
        quiet = [load.over(lambda: time.sleep(seconds))[0] for _ in range(slices)]
        before = sum(map(rss_mib, pids))
        begin = time.perf_counter()
        swarm = stack.enter_context(Processes(cluster, count, context.folder / "fleet.log"))
        until(swarm.ready, f"{count} agents are connected and registered", READY_SECONDS)
        report.notes.append(f"{count:,} agents connected and registered within {time.perf_counter() - begin:.0f} s")
        time.sleep(seconds)
        after = sum(map(rss_mib, pids))
        memory.add((after - before) * 1024 / count)
        own = usage(swarm.pids)
        for base in quiet:
            used, received, sent, took = load.over(lambda: time.sleep(seconds))
            cpu.add((used - base) / took / count * 100)
        mine = usage(swarm.pids) - own
        found = metrics(cluster)
        if not context.quick:
            statuses(swarm, operator, stack.enter_context(Watcher(cluster, cluster.members[-1], STATUS)), report)
        for turn in range(2 if context.quick else 4):  # the first one is thrown away
            for key, values, question, series in (
                (STOP, (b"stop", b"start"), "stops", (firsts, lasts, shown)),
                (KILLSWITCH, (b"on", b"off"), "kills", (kill_firsts, kill_lasts, kill_shown)),
            ):
                shoot(swarm, operator, watcher, key, values, question, series if turn else None)
    _rows(report, count, memory, cpu)
    report.rows += [
        Row(f"one stop key → the last of {count:,} agents has resolved it", lasts, shown),
        Row("the same, the first of them", firsts),
        Row(f"one killswitch key → the last of {count:,} agents has begun to kill", kill_lasts, kill_shown),
        Row("the same, the first of them", kill_firsts),
    ]
    streams, watches = found["etcd_debugging_mvcc_watch_stream_total"], found["etcd_debugging_mvcc_watcher_total"]
    report.notes.append(
        f"etcd {cluster.binaries.version}, {MEMBERS} members on loopback without fsync: {before:.0f} MiB of resident "
        f"memory together before and {after:.0f} MiB with {count:,} agents; {streams:.0f} watch streams, one of them "
        f"`etcdctl watch`, and {watches:.0f} watches"
    )
    up, down, share = received / took / count, sent / took / count, 100 / (seconds * slices) / count
    report.notes.append(
        f"with nothing to tell and a lease of 60 s an agent sends {up:.1f} bytes/s and receives {down:.1f}, without "
        f"gRPC's headers and pings; {PER_PROCESS} simulated agents to a process, each "
        f"{number(mine.cpu_seconds * share)} % of a core, on the machine of all {MEMBERS} members"
    )
    return report


def shoot(
    swarm: Processes,
    operator: Operator,
    watcher: Watcher,
    key: str,
    values: tuple[bytes, bytes],
    question: str,
    series: Sequence[Series] | None,
) -> None:
    """Put a key for all; note when the first and the last have seen it and when `etcdctl watch` did; take it back."""
    swarm.ask("forget")
    watcher.forget()
    begin, start = time.perf_counter(), time.monotonic()
    operator.connection.put(key, values[0])
    printed = watcher.wait(key)
    times = swarm.times(question)
    if series is not None:
        for one, seconds in zip(series, (times[0] - start, times[-1] - start, printed - begin), strict=True):
            one.add(seconds * 1000)
    operator.connection.put(key, values[1])
    time.sleep(1.0)


def statuses(swarm: Processes, operator: Operator, watcher: Watcher, report: Report) -> None:
    """Stop all, as a first change after a quiet time; see when each writes its status."""
    watcher.begin(operator.connection, f"{STATUS}nobody")
    begin = time.perf_counter()
    operator.connection.put(STOP, b"stop")
    time.sleep(STATUS_SECONDS)
    times = sorted(at - begin for at, line in watcher.lines() if line.startswith(f"{STATUS}host-"))
    operator.connection.put(STOP, b"start")
    busiest = max((sum(1 for other in times if 0 <= other - at < 1) for at in times), default=0)
    delays = Series("put of the stop key → a status in etcd", "s", times)
    report.rows.append(
        Row(
            "a stop key for all → each agent's status is written",
            delays,
            goal="one each, within 61 s at p99",
            met=len(times) == swarm.count and delays.p99 <= 61,
        )
    )
    report.notes.append(f"of {len(times):,} status writes at most {busiest} fall into one second")


def _rows(report: Report, count: int, memory: Series, cpu: Series) -> None:
    report.rows += [
        Row(f"memory of all members for each of {count:,} agents", memory),
        Row("CPU of all members for each idle agent", cpu),
    ]
