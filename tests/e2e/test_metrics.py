"""The metrics of a real agent: all that is promised, true, and never at the cost of the agent."""

from __future__ import annotations

import grp
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from garrison.supervisor.metrics import catalogue
from tests.e2e._agent import RunningAgent, alive, module, needs_cgroups, until
from tests.e2e._etcd_agent import store_toml
from tests.e2e._metrics import Series, free_port, parse, scrape_text, value
from tests.etcd.cluster import Cluster

pytestmark = needs_cgroups

Make = Callable[..., RunningAgent]
QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
CRASHER = f'[workers.crasher]\nmodules = ["{module("crasher", "Crasher")}"]\n'

CONDITIONAL = {
    catalogue.STORE_REGISTERED,  # with etcd
    catalogue.EVENTS_DROPPED,  # once something was
}


def test_everything_in_the_catalogue_is_exported_and_agrees_with_the_status(make_agent: Make) -> None:
    port = free_port()
    agent = make_agent(QUIET + CRASHER, more=f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    agent.start()
    agent.wait_worker("quiet", state="running")
    agent.wait_worker("crasher", state="tripped")
    series = parse(scrape_text(port))
    exported = {name for name, _ in series}
    assert {metric.name for metric in catalogue.METRICS if metric not in CONDITIONAL} <= exported
    assert exported <= {metric.name for metric in catalogue.METRICS}
    status = agent.status()
    quiet = agent.worker("quiet")
    assert value(series, "agent_info", host="web1", version=status["agent"]["version"],
                 cgroup_mode=status["agent"]["cgroup_mode"]) == 1  # fmt: skip
    assert abs(time.time() - value(series, "metrics_collected_timestamp_seconds")) < 60
    assert value(series, "killswitch_engaged") == 0
    assert value(series, "store_connected") == 1
    assert value(series, "sink_up") == 1
    states = {dict(labels)["state"]: v for (name, labels), v in series.items()
              if name == "garrison_worker_state" and dict(labels)["worker"] == "quiet"}  # fmt: skip
    assert states.pop("running") == 1
    assert set(states.values()) == {0}
    assert value(series, "worker_trips_total", worker="crasher", cause="crash") == 1
    assert value(series, "worker_trips_total", worker="quiet", cause="crash") == 0
    assert value(series, "worker_breaker_phase", worker="crasher", phase="open") == 1
    assert 0 < value(series, "worker_breaker_retry_seconds", worker="crasher") <= 30
    assert value(series, "worker_starts_total", worker="crasher") == 3
    assert value(series, "worker_memory_limit_bytes", worker="quiet") == quiet["limits"]["memory_max"]
    assert value(series, "worker_cpu_limit_cores", worker="quiet") == quiet["limits"]["cpu_quota_percent"] / 100
    assert 0 < value(series, "worker_memory_bytes", worker="quiet") < quiet["limits"]["memory_max"]
    assert value(series, "worker_open_fds", worker="quiet") == len(os.listdir(f"/proc/{quiet['pid']}/fd"))
    assert value(series, "worker_cpu_seconds_total", worker="quiet") > 0
    assert value(series, "agent_cpu_seconds_total") > 0
    assert 0 < value(series, "agent_memory_bytes") < 128 * 2**20
    assert 0 < value(series, "agent_open_fds") < value(series, "agent_max_fds")
    assert value(series, "events_emitted_total", worker="quiet") >= 1
    for worker in ("quiet", "crasher", "agent"):
        dropped = sum(v for (name, labels), v in series.items()
                      if name == "garrison_events_dropped_total" and ("worker", worker) in labels)  # fmt: skip
        numbers = [value(series, f"events_{name}", worker=worker) for name in ("delivered_total", "in_flight")]
        assert value(series, "events_emitted_total", worker=worker) == sum(numbers) + dropped


def test_counters_only_grow_and_the_killswitch_shows(make_agent: Make) -> None:
    port = free_port()
    agent = make_agent(QUIET, more=f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    agent.start()
    agent.wait_worker("quiet", state="running")
    before = parse(scrape_text(port))
    assert agent.garrison("kill", "--reason", "test").returncode == 0
    after = until(
        lambda: (series := parse(scrape_text(port))) and value(series, "killswitch_engaged") and series, "it shows"
    )
    assert value(after, "worker_state", worker="quiet", state="killed") == 1
    kinds = {metric.name: metric.kind for metric in catalogue.METRICS}
    for key, number in after.items():
        if kinds[key[0]] == "counter" and key in before:
            assert number >= before[key], key


def test_with_etcd_the_registration_shows_and_drops_are_told_by_reason(make_agent: Make, etcd: Cluster) -> None:
    port = free_port()
    talker = f'[workers.talker]\nmodules = ["{module("talker", "Talker")}"]\n'
    talker += "[workers.talker.budget]\nevents_per_second = 1\n"
    agent = make_agent(talker, more=store_toml(etcd) + f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    agent.start()

    def look() -> Series | None:
        series = parse(scrape_text(port))
        found = series.get(("garrison_events_dropped_total", (("reason", "rate_limit"), ("worker", "talker"))), 0)
        return series if found and value(series, "store_registered") else None

    series = until(look, "it is registered, and events were dropped", 60)
    assert value(series, "store_connected") == 1
    assert value(series, "store_revision") > 0
    infos = [dict(labels) for name, labels in series if name == "garrison_store_info"]
    assert [info["backend"] for info in infos] == ["etcd"]


def test_both_ways_out_follow_the_settings_at_run_time(make_agent: Make, tmp_path: Path) -> None:
    one, two, prom = free_port(), free_port(), tmp_path / "garrison.prom"
    agent = make_agent(QUIET)
    agent.start()

    def reload(more: str) -> None:
        agent.write_config(QUIET, more=more)
        os.kill(agent.pid, signal.SIGHUP)

    def answers(port: int) -> bool:
        try:
            return bool(scrape_text(port))
        except OSError:
            return False

    assert not answers(one)
    reload(f'[metrics]\nlisten = "127.0.0.1:{one}"\ntextfile = "{prom}"\ntextfile_seconds = 5\n')
    until(lambda: answers(one) and prom.exists(), "both are there")
    assert "garrison_agent_info" in {name for name, _ in parse(prom.read_text())}
    first = prom.stat().st_mtime_ns
    until(lambda: prom.exists() and prom.stat().st_mtime_ns > first, "it is written again")
    reload(f'[metrics]\nlisten = "127.0.0.1:{two}"\n')
    until(lambda: answers(two) and not answers(one) and not prom.exists(), "another port, and no file")
    reload(f'[metrics]\ntextfile = "{prom}"\n')
    until(lambda: prom.exists() and not answers(two), "the file only")
    assert agent.stop() == 0
    assert not prom.exists()


def test_an_address_that_is_taken_is_a_problem_and_no_obstacle(make_agent: Make, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        more = f'[metrics]\nlisten = "127.0.0.1:{port}"\ntextfile = "{tmp_path}/no/x.prom"\n'
        agent = make_agent(QUIET, more=more)
        agent.start()
        agent.wait_worker("quiet", state="running")
        until(lambda: len(agent.status()["agent"]["problems"]) == 2, "both are shown")
        assert f"127.0.0.1:{port}" in " ".join(agent.status()["agent"]["problems"])
    until(lambda: "metrics endpoint" not in " ".join(agent.status()["agent"]["problems"]), "it is tried again")
    assert parse(scrape_text(port))


def test_a_unix_socket_is_for_a_group_that_is_there(make_agent: Make) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    agent = make_agent(QUIET, more='[metrics]\nlisten = "@/run/m.sock"\nsocket_group = "no-such-group"\n')
    agent.start()
    until(lambda: "no-such-group" in " ".join(agent.status()["agent"]["problems"]), "it says what is wrong")
    path = agent.folder / "run" / "m.sock"
    assert not path.exists()
    agent.write_config(QUIET, more=f'[metrics]\nlisten = "@/run/m.sock"\nsocket_group = "{group}"\n')
    os.kill(agent.pid, signal.SIGHUP)
    until(lambda: path.exists() and stat.S_IMODE(path.stat().st_mode) == 0o660, "it is there, for the group")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")[2].decode()
    assert value(parse(text), "killswitch_engaged") == 0
    assert agent.status()["agent"]["problems"] == []
    assert agent.stop() == 0
    assert not path.exists()


def test_a_siege_of_the_endpoint_costs_the_agent_little_and_the_killswitch_nothing(make_agent: Make) -> None:
    """Slow clients on every place, garbage, and as many scrapes as come: a kill still works at once."""
    port = free_port()
    agent = make_agent(QUIET, more=f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    agent.start()
    worker = agent.wait_worker("quiet", state="running")
    stop = threading.Event()

    def besiege(data: bytes, patience: float) -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(data)
                sock.settimeout(patience)
                sock.recv(1)

    threads = [
        threading.Thread(target=besiege, args=(data, patience))
        for data, patience in [(b"G", 3.0)] * 6
        + [(b"GET /metrics HTTP/1.1\r\n\r\n", 0.1)] * 6
        + [(os.urandom(9000), 0.1)] * 4
    ]
    for thread in threads:
        thread.start()
    try:
        fds = until(lambda: len(os.listdir(f"/proc/{agent.pid}/fd")), "its descriptors can be counted")
        until(agent.status, "it answers")
        time.sleep(3)
        assert len(os.listdir(f"/proc/{agent.pid}/fd")) <= fds + 10
        assert agent.garrison("kill", "--reason", "siege").returncode == 0
        assert not alive(worker["pid"])
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    until(lambda: _answers(port), "it serves again")
    assert agent.stop() == 0


def _answers(port: int) -> bool:
    try:
        return bool(scrape_text(port))
    except OSError:
        return False
