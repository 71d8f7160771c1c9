"""(e) From a put into etcd to what it does on a host, beside plain `etcdctl watch` printing the same event."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from benchmarks.agent import Agent, StateEvents, idle
from benchmarks.context import Context, Deadline
from benchmarks.proc import Gone, busy_percent
from benchmarks.report import Report, Row
from benchmarks.stats import Series
from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.endpoints import Address
from garrison.supervisor.stores.etcd.results import Delete, Op, Put
from tests.e2e._agent import until
from tests.etcd.cluster import Cluster, Member

WORKERS = 8
MEMBERS = 3
SECONDS = 30.0
SETTLE_SECONDS = 0.15
"""Between the last start and the put."""
REST_SECONDS = 6.0
APART_SECONDS = 0.6
"""Before the first change of a series, and between two of them. The store passes on a burst of ten snapshots and then
one in half a second: what is measured is the way of one change, not that bound. It does not hold for the killswitch."""
OUTAGE_SECONDS = 20.0
"""Longer than the longest wait between two rounds of endpoints."""
OUTAGE_PERCENT = 1.0
"""Most that the master may use while etcd is away, percent of a core."""
ABOVE_MS = 25.0
"""How much later than `etcdctl watch` has printed the event the last worker may be gone, both at p99."""

PREFIX = "/hids/server/config/"
KILLSWITCH = f"{PREFIX}@all/killswitch"
NAMES = [f"idle{number}" for number in range(WORKERS)]
TUNED = "tuned"


class Watcher:
    """Plain ``etcdctl watch``, and when it printed what.

    Args:
        cluster: With its programs.
        member: Which member it watches.
        prefix: Of the keys.
    """

    def __init__(self, cluster: Cluster, member: Member, prefix: str) -> None:
        self._process = subprocess.Popen(
            [cluster.binaries.etcdctl, "watch", "--prefix", prefix],
            env={"PATH": "/usr/bin:/bin", **cluster.environment(endpoints=[member.endpoint])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._seen: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="etcdctl watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join(SECONDS)

    def wait(self, key: str) -> float:
        """Return when a key was printed (perf_counter).

        Raises:
            queue.Empty: It was not, in time.
        """
        deadline = time.perf_counter() + SECONDS
        while True:
            at, line = self._seen.get(timeout=max(0.0, deadline - time.perf_counter()))
            if line == key:
                return at

    def lines(self) -> list[tuple[float, str]]:
        """Return what was printed since the last look, each line with its time."""
        found = []
        while not self._seen.empty():
            found.append(self._seen.get_nowait())
        return found

    def forget(self) -> None:
        """Forget what was printed so far."""
        self.lines()

    def begin(self, connection: Connection, key: str) -> None:
        """Wait until it watches: until it has printed a key that is put again and again."""
        deadline = time.perf_counter() + SECONDS
        while time.perf_counter() < deadline:
            connection.put(key, b"")
            time.sleep(0.1)
            if not self._seen.empty():
                break
        else:
            raise AssertionError("etcdctl watch prints nothing")
        connection.delete(key)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._seen.put((time.perf_counter(), line.decode(errors="replace").rstrip("\n")))


class Operator:
    """Writes keys as an operator's client does, over a connection that is open already."""

    def __init__(self, member: Member) -> None:
        ip, _, port = member.endpoint.rpartition(":")
        self.connection = Connection(Address(ip, int(port), ip))
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self.connection.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._thread.shutdown()
        self.connection.close()

    def shoot(self, agent: Agent, watcher: Watcher, operations: list[Op], last_key: str) -> tuple[float, float]:
        """Write; return how long the last worker lived, and when the watcher had printed the last key, ms."""
        pids = agent.wait_running()
        time.sleep(SETTLE_SECONDS)
        watcher.forget()
        with Gone(pids[name] for name in NAMES) as gone:
            begin = self._thread.submit(self._write, operations)
            end = gone.wait(SECONDS)
            began = begin.result(SECONDS)
        return (end - began) * 1000, (watcher.wait(last_key) - began) * 1000

    def _write(self, operations: list[Op]) -> float:
        begin = time.perf_counter()
        self.connection.txn((), operations)
        return begin


def tune(operator: Operator, events: StateEvents, turn: int) -> float:
    """Give a worker a setting; return when it has said that it uses it, as the agent's event stream tells, ms."""
    key = f"/hids/agent/config/{events.host}/plugin/{TUNED}/settings"
    events.begin()
    begin = time.perf_counter()
    operator.connection.put(key, json.dumps({"turn": turn + 1}).encode())
    return (events.wait(TUNED, "config-applied") - begin) * 1000


def run(context: Context) -> Report:
    """Measure: a setting, the killswitch of all hosts, a stop key for each worker, each some time after the last."""
    report = Report("etcd")
    tuned = Series("setting put", "ms")
    ours, shown, above = Series("killswitch put", "ms"), Series("`etcdctl watch`", "ms"), Series("above it", "ms")
    stops, stops_shown = Series("8 stop keys put", "ms"), Series("`etcdctl watch`, the 8th key", "ms")
    count = context.count(200, 10)
    folder = context.folder / "etcd"
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(folder / "cluster", MEMBERS, wired=False))
        workers = "".join(idle(name) for name in NAMES)
        workers += f'[workers.{TUNED}]\nmodules = ["@/modules/bench_modules.py:Source"]\n'
        agent = stack.enter_context(Agent(folder / "agent", workers, "release_spread_seconds = 0\n", _store(cluster)))
        agent.wait_running()
        until(lambda: _store_status(agent)["connected"], "the agent is connected", SECONDS)
        endpoint = _store_status(agent)["endpoint"]
        # All three at the member that the agent has: what lies between members is no part of the comparison.
        member = next(member for member in cluster.members if member.endpoint in endpoint)
        operator = stack.enter_context(Operator(member))
        watcher = stack.enter_context(Watcher(cluster, member, PREFIX))
        watcher.begin(operator.connection, f"{PREFIX}nobody/worker/none")
        events = StateEvents(agent)
        tune(operator, events, 0)
        for turn in range(max(4, count // 4)):
            time.sleep(APART_SECONDS)
            context.noise.sample()
            tuned.add(tune(operator, events, turn + 1))
        kill: list[Op] = [Put(KILLSWITCH, b"on")]
        deadline = Deadline(context.seconds(160, 30))
        for turn in range(count + 1):
            if turn > 1 and deadline.over:
                report.notes.append(f"the time was over after {turn - 1} of {count} turns")
                break
            context.noise.sample()
            gone, printed = operator.shoot(agent, watcher, kill, KILLSWITCH)
            operator.connection.delete(KILLSWITCH)
            if turn:  # the first shot is thrown away: caches are cold
                ours.add(gone)
                shown.add(printed)
                above.add(gone - printed)
        keys = [f"{PREFIX}{agent.running.host}/worker/{name}" for name in NAMES]
        time.sleep(REST_SECONDS)
        for _ in range(max(4, count // 8)):
            time.sleep(APART_SECONDS)
            context.noise.sample()
            gone, printed = operator.shoot(agent, watcher, [Put(key, b"stop") for key in keys], keys[-1])
            operator.connection.txn((), [Delete(key) for key in keys])
            stops.add(gone)
            stops_shown.add(printed)
        leader = "the leader" if cluster.leader() is member else "a follower"
        _check(agent)
        away, there = _outage(context, agent, cluster)
    report.rows += [
        Row(
            "etcd put of the killswitch of `@all` → last of 8 workers gone",
            ours,
            shown,
            shown.p50 / ours.p50,
            f"p99 at most {ABOVE_MS:g} ms above the one beside it",
            ours.p99 - shown.p99 <= ABOVE_MS,
        ),
        Row("the same, turn by turn above what `etcdctl watch` took", above),
        Row("8 stop keys in one transaction → last of 8 workers gone", stops, stops_shown, stops_shown.p50 / stops.p50),
        Row("a setting put → the worker's `applied`, at a consumer", tuned),
        Row(
            "CPU of the master while all members are down",
            away,
            there,
            there.p50 / away.p50,
            f"< {OUTAGE_PERCENT:g} % of a core",
            max(away.values) < OUTAGE_PERCENT,
        ),
    ]
    report.notes.append(
        f"etcd {cluster.binaries.version}, {MEMBERS} members on loopback without fsync; writer, `etcdctl watch` and "
        f"agent at the same member, {leader}; the killswitch's p99 is {ours.p99 - shown.p99:.1f} ms above the one "
        "beside it"
    )
    return report


def _outage(context: Context, agent: Agent, cluster: Cluster) -> tuple[Series, Series]:
    """Measure the master's CPU while it waits with etcd there, and while it tries to find one again."""
    there, away = Series("while they are there", "% of a core"), Series("master", "% of a core")
    slices, length = context.count(3, 1), context.seconds(OUTAGE_SECONDS, 5.0)
    for series in (there, away):
        if series is away:
            cluster.kill()
            until(lambda: not _store_status(agent)["connected"], "the agent has noticed", SECONDS)
        time.sleep(REST_SECONDS)
        for _ in range(slices):
            context.noise.sample()
            series.add(busy_percent([agent.running.pid], length))
    return away, there


def _store(cluster: Cluster) -> str:
    return f'[store]\nbackend = "etcd"\n[store.etcd]\nendpoints = {json.dumps(cluster.endpoints)}\n'


def _store_status(agent: Agent) -> dict[str, Any]:
    found: dict[str, Any] = agent.running.client.call("status")["agent"]["store"]
    return found


def _check(agent: Agent) -> None:
    """Raise if anything went on behind the measurement."""
    workers = agent.workers()
    trips = {name: worker["breaker"]["trips"] for name, worker in workers.items() if worker["breaker"]["trips"]}
    store = _store_status(agent)
    if trips or not store["connected"]:
        raise AssertionError(f"workers tripped: {trips}; the store: {store}")
