"""(f) What a fleet costs its etcd: 1,000 simulated agents with real sessions, and one key that stops them all."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.context import Context
from benchmarks.etcd import Operator, Watcher
from benchmarks.proc import rss_mib, usage
from benchmarks.report import Report, Row
from benchmarks.stats import Series, number
from benchmarks.swarm import PER_PROCESS, STARTS_PER_SECOND, Processes
from garrison.supervisor.keys import DEFAULT_PREFIX
from garrison.supervisor.presence.publisher import FLEET_GAP_SECONDS
from garrison.supervisor.stores.etcd import listing
from garrison.supervisor.stores.etcd.aim import Aim, aim_at, whole
from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.store import REREAD_SECONDS
from tests.e2e._agent import until
from tests.etcd.cluster import Cluster

MEMBERS = 3
AGENTS = 1000
READY_SECONDS = 300.0
SETTLE_SECONDS = 5.0
OPTIONS = ("--heartbeat-interval", "500", "--election-timeout", "5000")
"""Five times etcd's defaults: with all agents on the members' own machine a beat may be late."""
PRIORITY = "-15"

PREFIX = f"{DEFAULT_PREFIX}/server/config/"
STOP = f"{PREFIX}@all/worker/process"
KILLSWITCH = f"{PREFIX}@all/killswitch"
STATUS = f"{DEFAULT_PREFIX}/agent/status/"
QUIET_SECONDS = FLEET_GAP_SECONDS + 5
"""After the last agent has come: with a status that was just written the next one waits longer."""
STATUS_SECONDS = 62.0
LATEST_SECONDS = 90.0
"""What the whole fleet caused is written within 61 s, spread by host hash (supervisor/presence/publisher.py); what this
machine is late is waited for and told."""
MILLION = 1_000_000


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

        cpu, received, sent = Series(f"etcd's CPU for {what}", "µs"), 0.0, 0.0
        for _ in range(8):
            used, received, sent, _ = load.over(work)
            cpu.add(used / each * 1e6)
        report.rows.append(Row(f"{what}: CPU of all members, {len(whole(aim))} prefixes", cpu))
        text = f"{what}: {received / each:.0f} bytes to etcd and {sent / each:.0f} back, without gRPC's headers"
        if every:
            rate = MILLION / every
            text += (
                f"; at {MILLION:,} hosts, each once in {every:g} s, {rate:.0f} looks a second: "
                f"{rate * cpu.p50 / 1e6:.2f} cores and {rate * (received + sent) / each / 1e6:.2f} MB/s of the whole "
                "cluster"
            )
        report.notes.append(text)


@dataclass
class Shots:
    """One key for all, put again and again, and what was seen of it.

    Attributes:
        key: Of etcd.
        values: What is put, and what is put back.
        question: What tells when the agents have seen it.
    """

    key: str
    values: tuple[bytes, bytes]
    question: str
    shown: Series = field(default_factory=lambda: Series(f"`etcdctl watch` at each of {MEMBERS}, the last one", "ms"))
    cpu: Series = field(default_factory=lambda: Series("etcd's CPU", "µs"))
    first: Series = field(default_factory=lambda: Series("first", "ms"))
    half: Series = field(default_factory=lambda: Series("half", "ms"))
    last: Series = field(default_factory=lambda: Series("last", "ms"))

    def rows(self, what: str, seen: str, count: int) -> list[Row]:
        """Return what etcd did, then what the agents did."""
        return [
            Row(f"etcd: one {what} key → {self.shown.name} has printed it", self.shown),
            Row(f"etcd: CPU of all members for telling it to each of {count:,} agents", self.cpu),
            Row(f"this machine: one {what} key → the first of {count:,} agents {seen}", self.first),
            Row("this machine: the same, half of them", self.half),
            Row("this machine: the same, **the last of them**", self.last, self.shown),
        ]


def run(context: Context) -> Report:
    """Measure etcd without clients, then with all of them, then one key for all."""
    report = Report("fleet")
    count = context.count(AGENTS, 40)
    memory, cpu = Series("etcd's memory for each agent", "KiB"), Series("etcd's CPU for each agent", "% of a core")
    stop = Shots(STOP, (b"stop", b"start"), "stops")
    kill = Shots(KILLSWITCH, (b"on", b"off"), "kills")
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(context.folder / "fleet", MEMBERS, wired=False, options=OPTIONS))
        pids = [member.pid for member in cluster.members]
        prefer(pids)
        operator = stack.enter_context(Operator(cluster.leader()))
        watchers = [stack.enter_context(Watcher(cluster, member, PREFIX)) for member in cluster.members]
        for watcher in watchers:
            watcher.begin(operator.connection, f"{PREFIX}nobody/worker/none")
        rereads(context, cluster, operator, report)
        slices, seconds = (3, 3.0) if context.quick else (6, 5.0)
        load = Load(cluster)
        quiet = [load.over(lambda: time.sleep(seconds))[0] for _ in range(slices)]
        before, term = sum(map(rss_mib, pids)), cluster.leader().status()["raftTerm"]
        swarm = stack.enter_context(Processes(cluster, count, context.folder / "fleet.log"))
        connecting = connect(swarm, load, report)
        time.sleep(SETTLE_SECONDS)
        after = sum(map(rss_mib, pids))
        memory.add((after - before) * 1024 / count)
        own, idle, up, down, lasted = usage(swarm.pids), 0.0, 0.0, 0.0, 0.0
        for base in quiet:
            used, received, sent, took = load.over(lambda: time.sleep(seconds))
            cpu.add((used - base) / took / count * 100)
            idle, up, down, lasted = idle + used, up + received, down + sent, lasted + took
        mine = usage(swarm.pids) - own
        found = metrics(cluster)
        if not context.quick:
            time.sleep(max(0.0, QUIET_SECONDS - SETTLE_SECONDS - lasted))
            statuses(swarm, operator, stack.enter_context(Watcher(cluster, cluster.members[-1], STATUS)), report)
        for turn in range(2 if context.quick else 11):  # the first one is thrown away: caches are cold
            for shots in (stop, kill):
                context.noise.sample()
                shoot(swarm, operator, watchers, pids, shots, idle / lasted, keep=turn > 0)
        state, elections = swarm.state(), cluster.leader().status()["raftTerm"] - term
    report.rows += [
        Row(f"etcd: memory of all members for each of {count:,} agents", memory),
        Row("etcd: CPU of all members for each idle agent", cpu),
        Row("etcd: CPU of all members for taking in each agent: dial, reads, watches, lease, registration", connecting),
        *stop.rows("stop", "has resolved it", count),
        *kill.rows("killswitch", "has begun to kill", count),
    ]
    streams, watches = found["etcd_debugging_mvcc_watch_stream_total"], found["etcd_debugging_mvcc_watcher_total"]
    share = 1 / lasted / count
    report.notes.append(
        f"in the end {state['connected']:,} of {count:,} agents were connected and {state['registered']:,} registered, "
        f"after {state['sessions']:,} sessions and {elections} elections"
    )
    report.notes.append(
        f"etcd {cluster.binaries.version}, {MEMBERS} members on loopback without fsync, {' '.join(OPTIONS)}: "
        f"{before:.0f} MiB of resident memory together before and {after:.0f} MiB with {count:,} agents; {streams:.0f} "
        f"watch streams, {MEMBERS} of them `etcdctl watch`, and {watches:.0f} watches"
    )
    report.notes.append(
        f"with nothing to tell and a lease of 60 s an agent sends {up * share:.1f} bytes/s and receives "
        f"{down * share:.1f}, without gRPC's headers and pings; {PER_PROCESS} simulated agents to a process, each "
        f"{number(mine.cpu_seconds * share * 100)} % of a core, on the machine of all {MEMBERS} members"
    )
    return report


def prefer(pids: Sequence[int]) -> None:
    """Let some processes, each a session of its own, run before others.

    Where the kernel schedules sessions as groups a nice value says nothing outside of its own; where it does not, the
    agents' policy is enough (peers/swarm.py).
    """
    for pid in pids:
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            group.write_text(PRIORITY)


def connect(swarm: Processes, load: Load, report: Report) -> Series:
    """Start all agents; return etcd's CPU for each."""
    swarm.state()  # answered when the program is loaded

    def work() -> None:
        swarm.ask("start")
        until(swarm.ready, f"{swarm.count} agents are connected and registered", READY_SECONDS)

    used, _, _, seconds = load.over(work)
    report.notes.append(
        f"{swarm.count:,} agents, started at {STARTS_PER_SECOND:g} a second, were connected and registered within "
        f"{seconds:.0f} s"
    )
    return Series("etcd's CPU for an agent that comes", "ms", [used / swarm.count * 1000])


def shoot(
    swarm: Processes,
    operator: Operator,
    watchers: Sequence[Watcher],
    pids: Sequence[int],
    shots: Shots,
    idle: float,
    *,
    keep: bool,
) -> None:
    """Put a key for all; note when the agents have seen it and when `etcdctl watch` did; take it back.

    `idle` is what etcd uses anyhow, CPU seconds a second.
    """
    swarm.ask("forget")
    for watcher in watchers:
        watcher.forget()
    cpu, begin, start = usage(pids).cpu_seconds, time.perf_counter(), time.monotonic()
    operator.connection.put(shots.key, shots.values[0])
    printed = max(watcher.wait(shots.key) for watcher in watchers)
    times = swarm.times(shots.question)
    used = usage(pids).cpu_seconds - cpu - idle * (time.perf_counter() - begin)
    if keep:
        shots.shown.add((printed - begin) * 1000)
        shots.cpu.add(used / swarm.count * 1e6)
        for series, at in ((shots.first, times[0]), (shots.half, times[len(times) // 2]), (shots.last, times[-1])):
            series.add((at - start) * 1000)
    operator.connection.put(shots.key, shots.values[1])
    time.sleep(2.0)


def statuses(swarm: Processes, operator: Operator, watcher: Watcher, report: Report) -> None:
    """Stop all, after a quiet time, and let them go on; see when each writes its status."""
    watcher.begin(operator.connection, f"{STATUS}nobody")
    delays, busiest, written, hosts = Series("put of the key → a status in etcd", "s"), 0, 0, 0
    for value in (b"stop", b"start"):
        watcher.forget()
        begin = time.perf_counter()
        operator.connection.put(STOP, value)
        lines: list[tuple[float, str]] = []

        def look(begin: float = begin, lines: list[tuple[float, str]] = lines) -> bool:
            time.sleep(0.5)
            lines += [(at - begin, line) for at, line in watcher.lines() if line.startswith(f"{STATUS}host-")]
            took = time.perf_counter() - begin
            whole = len({line for _, line in lines}) == swarm.count
            return took > LATEST_SECONDS or (took > STATUS_SECONDS and whole)

        until(look, "the statuses are written", LATEST_SECONDS + SETTLE_SECONDS)
        times = [at for at, _ in lines]
        busiest = max(busiest, *(sum(1 for other in times if 0 <= other - at < 1) for at in times), 0)
        written, hosts = written + len(lines), hosts + len({line for _, line in lines})
        delays.values += times
    report.rows.append(
        Row(
            f"a stop key for all, then a start key → each of {swarm.count:,} agents' status is written",
            delays,
            goal="one each, spread over 60 s: p99 within 61 s",
            met=written == hosts == 2 * swarm.count and delays.p99 <= 61,
        )
    )
    report.notes.append(
        f"{written:,} status writes where {2 * swarm.count:,} were due; at most {busiest} in one second, evenly spread "
        f"{swarm.count / 60:.0f}; the last one after {max(delays.values, default=0):.1f} s"
    )
