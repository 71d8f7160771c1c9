"""What must be seen: the whole agent, on the real kernel."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent, alive, module, needs_cgroups, until

pytestmark = needs_cgroups

QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
OTHER = f'[workers.other]\nmodules = ["{module("quiet", "Quiet")}"]\n'
MEMORY_HOG = f'[workers.memory-hog]\nmodules = ["{module("memory_hog", "MemoryHog")}"]\n'
CPU_HOG = f'[workers.cpu-hog]\nmodules = ["{module("cpu_hog", "CpuHog")}"]\n'
STUBBORN = f'[workers.stubborn]\nmodules = ["{module("stubborn", "Stubborn")}"]\n'
CRASHER = f'[workers.crasher]\nmodules = ["{module("crasher", "Crasher")}"]\n'

Make = Callable[..., RunningAgent]


def cgroup_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def test_a_worker_runs_in_its_own_cgroup_under_the_caps_of_its_budget(make_agent: Make) -> None:
    agent = make_agent(QUIET + "[workers.quiet.budget]\ncpu_quota_percent = 7\nmemory_max = '80 MiB'\npids_max = 9\n")
    agent.start()
    worker = agent.wait_worker("quiet", state="running")
    lines = [line for line in cgroup_of(worker["pid"]).splitlines() if agent.root in line]
    assert lines
    assert all(line.endswith(f"/{agent.root}/workers/quiet") for line in lines)
    assert worker["limits"] == {
        "cpu_quota_percent": 7.0,
        "memory_high": 64 * 2**20,
        "memory_max": 80 * 2**20,
        "pids_max": 9,
    }
    assert (Path("/proc") / str(worker["pid"]) / "comm").read_text().startswith("garrison")
    assert b"garrison: quiet" in Path(f"/proc/{worker['pid']}/cmdline").read_bytes()


def test_a_worker_has_no_descriptor_but_its_five_and_dies_with_its_parent(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    pid = agent.wait_worker("quiet", state="running")["pid"]
    links = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    beyond = [link for fd, link in links.items() if int(fd) > 4 and "eventfd" not in link]
    assert links["0"] == "/dev/null"
    assert all(links[fd].startswith("pipe:") for fd in "1234")
    assert not beyond, links
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "900"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max core file size")).split()[4:6] == [
        "0",
        "0",
    ]
    assert os.getsid(pid) == pid


def test_memory_past_the_cap_costs_the_worker_its_life_and_nobody_else(make_agent: Make) -> None:
    agent = make_agent(QUIET + OTHER + MEMORY_HOG)
    agent.put("server/config/web1/worker/memory-hog", "stop")
    agent.start()
    before = {name: agent.wait_worker(name, state="running")["pid"] for name in ("quiet", "other")}
    agent.put("server/config/web1/worker/memory-hog", "start")
    hog = agent.wait_worker("memory-hog", state="tripped")
    assert hog["breaker"]["cause"] == "oom"
    assert hog["breaker"]["trips"] == 1
    assert 20 < hog["breaker"]["retry_in_seconds"] <= 30
    assert {name: agent.worker(name)["pid"] for name in before} == before
    assert agent.worker("quiet")["restarts"] == 0
    assert agent.pids("workers/memory-hog") == set()
    trip = agent.wait_event(event__action="worker-tripped")
    assert trip["garrison"]["cause"] == "oom"
    assert trip["garrison"]["worker"] == "memory-hog"


def test_a_spinning_worker_gets_its_quota_and_no_more(make_agent: Make) -> None:
    agent = make_agent(CPU_HOG + "[workers.cpu-hog.budget]\ncpu_quota_percent = 8\n")
    agent.start()
    agent.wait_worker("cpu-hog", state="running")
    node = next(node for node in agent.nodes() if node.endswith("workers/cpu-hog") and "cpuacct" in node)
    usage = Path(node, "cpuacct.usage")
    first, begin = int(usage.read_text()), time.monotonic()
    time.sleep(5)  # the contract measures over 5 s
    used, passed = int(usage.read_text()) - first, time.monotonic() - begin
    # One period of slack on each side: 100 ms periods, 8 ms of quota in each.
    assert used / 1e9 <= 0.08 * (passed + 0.2)
    assert used > 0
    shown = agent.worker("cpu-hog")
    assert shown["cpu_percent"] <= 9


def test_after_kill_9_of_the_master_nothing_lives_a_second_later_and_a_new_start_finds_a_clean_house(
    make_agent: Make,
) -> None:
    agent = make_agent(QUIET + CPU_HOG + STUBBORN)
    agent.start()
    for name in ("quiet", "cpu-hog", "stubborn"):
        agent.wait_worker(name, state="running")
    agent.wait_event(event__action="grandchild")
    left = agent.pids("") - {agent.pid}
    assert len(left) >= 5  # nursery, three workers, a grandchild
    agent.kill()
    time.sleep(1)
    assert not {pid for pid in left if alive(pid)}
    agent.start()
    assert not {node for node in agent.nodes() if "workers/" in node} - {
        node for node in agent.nodes() if node.rpartition("/")[2] in ("quiet", "cpu-hog", "stubborn")
    }
    agent.wait_worker("quiet", state="running")
    agent.stop()


def test_what_a_master_and_its_nursery_left_behind_together_is_gone_after_the_next_start(make_agent: Make) -> None:
    agent = make_agent(STUBBORN)
    agent.start()
    agent.wait_worker("stubborn", state="running")
    grandchild = agent.wait_event(event__action="grandchild")["process"]["pid"]
    nursery = next(pid for pid in agent.pids("supervisor") if pid != agent.pid)
    os.kill(agent.pid, signal.SIGSTOP)
    os.kill(nursery, signal.SIGKILL)
    agent.kill()
    assert alive(grandchild)  # nobody was left to kill it
    agent.start()
    assert not alive(grandchild)
    assert "were killed and removed" in agent.errors()


def test_kill_9_of_the_nursery_brings_all_workers_back_and_counts_no_failure(make_agent: Make) -> None:
    agent = make_agent(QUIET + OTHER)
    agent.start()
    before = {name: agent.wait_worker(name, state="running")["pid"] for name in ("quiet", "other")}
    nursery = next(pid for pid in agent.pids("supervisor") if pid != agent.pid)
    os.kill(nursery, signal.SIGKILL)
    for name, pid in before.items():
        until(lambda name=name, pid=pid: agent.worker(name)["pid"] not in (0, pid), f"{name} is back")
        worker = agent.wait_worker(name, state="running")
        good = {"state": "closed", "trips": 0, "level": 0, "cause": None, "retry_in_seconds": None}
        assert worker["breaker"].items() >= good.items()
        assert not alive(pid)
    assert not [event for event in agent.events() if event["event"]["action"] == "worker-failed"]


def test_stop_leaves_nothing_of_a_worker_whose_grandchild_ignores_term(make_agent: Make) -> None:
    agent = make_agent(STUBBORN)
    agent.start()
    agent.wait_worker("stubborn", state="running")
    grandchild = agent.wait_event(event__action="grandchild")["process"]["pid"]
    assert "/workers/stubborn" in cgroup_of(grandchild)
    result = agent.garrison("stop", "stubborn")
    assert result.returncode == 0, result.stderr
    assert not alive(grandchild)
    assert agent.pids() == set()
    assert not [node for node in agent.nodes() if node.endswith("/stubborn")]


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_is_an_orderly_stop(make_agent: Make, signo: signal.Signals) -> None:
    agent = make_agent(QUIET + OTHER + "[workers.process]\n")
    agent.start()
    for name in ("quiet", "other", "process"):
        agent.wait_worker(name, state="running")
    os.killpg(agent.pid, signo)  # as Ctrl-C in a terminal does
    assert agent.process is not None
    assert agent.process.wait(30) == 0
    events = list(agent.events())
    ended = [event["garrison"] for event in events if event["event"]["action"] == "worker-stopped"]
    assert sorted(state["worker"] for state in ended) == ["other", "process", "quiet"]
    assert all(state["exit"] == "exit status 0" and "lost_at_exit" not in str(state.get("reason")) for state in ended)
    assert not [event for event in events if event["event"]["action"] in ("worker-failed", "worker-tripped")]
    # Nothing is left in flight: the numbers of each worker and priority run on without a gap.
    numbers: dict[tuple[str, str], list[int]] = {}
    for event in events:
        key = (event["agent"]["worker"], event["agent"]["priority"])
        numbers.setdefault(key, []).append(event["event"]["sequence"])
    assert all(sequence == list(range(1, len(sequence) + 1)) for sequence in numbers.values())
    assert events[-1]["event"]["action"] == "agent-stopped"
    agent.wait_notified("STOPPING=1")


def test_a_crashing_worker_trips_after_its_third_crash_and_the_others_do_not_notice(make_agent: Make) -> None:
    agent = make_agent(QUIET + CRASHER)
    agent.start()
    quiet = agent.wait_worker("quiet", state="running")["pid"]
    crasher = agent.wait_worker("crasher", state="tripped")
    assert crasher["breaker"]["cause"] == "crash"
    assert "SIGABRT" in crasher["last_error"]
    assert crasher["restarts"] == 2
    assert agent.worker("quiet")["pid"] == quiet
    agent.client.call("reset", worker="crasher")
    until(lambda: agent.worker("crasher")["restarts"] > 2, "it was started again")


def test_the_nursery_is_a_single_thread_without_asyncio_grpc_or_kafka(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    nursery = next(pid for pid in agent.pids("supervisor") if pid != agent.pid)
    assert len(os.listdir(f"/proc/{nursery}/task")) == 1
    assert b"garrison: nursery" in Path(f"/proc/{nursery}/cmdline").read_bytes()
    os.kill(nursery, signal.SIGTERM)
    os.kill(nursery, signal.SIGINT)
    assert alive(nursery)
    assert agent.worker("quiet")["state"] == "running"


def test_the_keys_of_the_directory_store_steer_a_worker_by_scope(make_agent: Make) -> None:
    agent = make_agent(QUIET, agent='groups = ["web"]')
    agent.start()
    agent.wait_worker("quiet", state="running")
    agent.put("server/config/@all/worker/quiet", "stop\n")
    assert agent.wait_worker("quiet", state="stopped")["desired_by"] == "/hids/server/config/@all/worker/quiet"
    agent.put("server/config/@group/web/worker/quiet", "start\n")
    agent.wait_worker("quiet", state="running")
    agent.put("server/config/web1/worker/quiet", "freeze\n")
    frozen = agent.wait_worker("quiet", state="frozen")
    assert frozen["desired"] == "freeze"
    agent.delete("server/config/web1/worker/quiet")
    agent.wait_worker("quiet", state="running", pid=frozen["pid"])
    agent.put("server/config/web1/worker/quiet", "explode\n")
    until(lambda: "explode" in str(agent.client.call("status")["agent"]["problems"]), "the refusal is shown")
    assert agent.worker("quiet")["state"] == "running"
    agent.put("server/config/web10/worker/quiet", "stop\n")  # another host
    agent.put("server/config/web1/worker/nonsuch", "stop\n")
    until(lambda: "nonsuch" in str(agent.client.call("status")["agent"]["problems"]), "the unknown worker is named")
    assert agent.worker("quiet")["state"] == "running"


def test_settings_and_budget_of_a_running_worker_change_by_key_and_bad_ones_are_refused(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    pid = agent.wait_worker("quiet", state="running")["pid"]
    key = "agent/config/@all/plugin/quiet"
    agent.put(f"{key}/settings", json.dumps({"greeting": "good morning"}))
    until(lambda: agent.worker("quiet")["config"]["revision"] > 0, "the settings arrive")
    good = agent.wait_worker("quiet", state="running")["config"]
    until(lambda: agent.worker("quiet")["config"]["status"] == "applied", "the settings are applied")
    agent.put(f"{key}/settings", json.dumps({"greetings": "typo"}))
    until(lambda: agent.worker("quiet")["config"]["status"] == "rejected", "the typo is refused")
    refused = agent.worker("quiet")["config"]
    assert "greetings" in refused["error"]
    assert "greeting" in refused["error"].replace("greetings", "")
    assert refused["hash"] != good["hash"]
    agent.put(f"{key}/budget", json.dumps({"memory_max": 70 * 2**20, "cpu_quota_percent": 6}))
    until(lambda: agent.worker("quiet")["limits"]["cpu_quota_percent"] == 6, "the quota is lowered")
    assert agent.worker("quiet")["limits"]["memory_max"] == 70 * 2**20
    agent.put(f"{key}/budget", json.dumps({"memory_max": 2**50}))
    until(lambda: "memory_max" in str(agent.client.call("status")["agent"]["problems"]), "the budget is refused")
    assert agent.worker("quiet")["limits"]["memory_max"] == 70 * 2**20
    assert agent.worker("quiet")["pid"] == pid


def test_a_budget_that_does_not_fit_is_refused_and_forgotten_when_it_is_taken_back(make_agent: Make) -> None:
    agent = make_agent(QUIET + "[workers.quiet.settings]\nballast_mib = 20\n")
    agent.start()
    pid = agent.wait_worker("quiet", state="running")["pid"]
    key = "agent/config/web1/plugin/quiet/budget"
    # Allowed by its range, and less than the process has in use.
    agent.put(key, json.dumps({"memory_max": 4 * 2**20, "memory_high": 4 * 2**20}))
    refused = until(lambda: (w := agent.worker("quiet"))["last_error"] and w, "the refusal is shown")
    if refused["pid"] != pid:
        pytest.skip("this kernel shrinks the worker below the new cap instead of refusing it")
    assert "the old one stays" in refused["last_error"]
    assert refused["limits"]["memory_max"] == 96 * 2**20
    agent.delete(key)
    until(lambda: agent.worker("quiet")["last_error"] is None, "the refusal is forgotten")
    assert agent.worker("quiet")["pid"] == pid


def test_a_refused_configuration_does_not_come_back_with_a_restart(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    key = "agent/config/@all/plugin/quiet/settings"
    agent.put(key, json.dumps({"greeting": "good morning"}))
    agent.start()
    agent.wait_event(message="good morning")
    agent.put(key, json.dumps({"greeting": "x" * 100}))
    until(lambda: agent.worker("quiet")["config"]["status"] == "rejected", "the long greeting is refused")
    old = agent.worker("quiet")["pid"]
    os.kill(old, signal.SIGKILL)
    until(lambda: agent.worker("quiet")["pid"] not in (0, old), "it is back")
    agent.wait_worker("quiet", state="running")
    until(
        lambda: sum(event.get("message") == "good morning" for event in agent.events()) >= 2, "with the good greeting"
    )
    assert agent.worker("quiet")["config"]["status"] == "rejected"


@pytest.mark.parametrize("way", ["key", "file", "cli"])
def test_the_killswitch_empties_the_node_and_its_release_brings_the_workers_back(make_agent: Make, way: str) -> None:
    agent = make_agent(QUIET + OTHER + CPU_HOG, agent="release_spread_seconds = 0")
    agent.start()
    for name in ("quiet", "other", "cpu-hog"):
        agent.wait_worker(name, state="running")
    if way == "key":
        agent.put("server/config/@all/killswitch", "on\n")
    elif way == "file":
        agent.killfile.touch()
    else:
        result = agent.garrison("kill", "--reason", "drill")
        assert result.returncode == 0, result.stderr
    until(lambda: not agent.pids(), "no worker lives")
    for name in ("quiet", "other", "cpu-hog"):
        agent.wait_worker(name, state="killed")
    assert agent.status()["agent"]["killswitch"]["engaged"]
    until(lambda: agent.pids("supervisor") == {agent.pid}, "the nursery is gone too")
    assert agent.garrison("start", "quiet").returncode != 0
    assert not agent.pids()
    if way == "key":
        agent.put("server/config/@all/killswitch", "off\n")
    elif way == "file":
        agent.killfile.unlink()
    else:
        result = agent.garrison("release")
        assert result.returncode == 0, result.stderr
    for name in ("quiet", "other", "cpu-hog"):
        agent.wait_worker(name, state="running")
    assert not agent.status()["agent"]["killswitch"]["engaged"]
    node = next(node for node in agent.nodes() if node.endswith("/workers") and "/cpu/" in node)
    assert int(Path(node, "cpu.cfs_quota_us").read_text()) == 20_000  # lifted by the kill, and back


def test_an_engaged_killswitch_survives_a_restart_and_an_emptied_store(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    agent.put("server/config/@all/killswitch", "on\n")
    agent.wait_worker("quiet", state="killed")
    assert agent.stop() == 0
    agent.delete("server/config/@all/killswitch")
    agent.start()
    assert agent.worker("quiet")["state"] == "killed"
    assert not agent.pids()
    result = agent.garrison("release")
    assert result.returncode == 0, result.stderr + result.stdout
    agent.wait_worker("quiet", state="running")


def test_a_local_stop_persists_and_beats_a_start_by_key(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    assert agent.garrison("stop", "quiet").returncode == 0
    agent.put("server/config/web1/worker/quiet", "start")
    assert agent.stop() == 0
    agent.start()
    worker = agent.worker("quiet")
    assert (worker["state"], worker["desired_by"]) == ("stopped", "local")
    assert agent.garrison("start", "quiet").returncode == 0
    agent.wait_worker("quiet", state="running")
    agent.put("server/config/web1/worker/quiet", "stop")
    agent.wait_worker("quiet", state="stopped")
    result = agent.garrison("start", "quiet")
    assert result.returncode == 1
    assert "/hids/server/config/web1/worker/quiet" in result.stdout + result.stderr


def test_hup_rereads_the_file_and_one_with_errors_changes_nothing(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    pid = agent.wait_worker("quiet", state="running")["pid"]
    good = agent.config.read_text()
    agent.config.write_text(good + "\n[workers.quiet.budgett]\n")
    os.kill(agent.pid, signal.SIGHUP)
    until(lambda: "budgett" in str(agent.client.call("status")["agent"]["problems"]), "the error is shown")
    assert agent.worker("quiet")["pid"] == pid
    agent.write_config(QUIET + OTHER)
    os.kill(agent.pid, signal.SIGHUP)
    until(
        lambda: {worker["name"] for worker in agent.client.call("status")["workers"]} == {"quiet", "other"},
        "the new worker",
    )
    agent.wait_worker("other", state="running")
    assert agent.worker("quiet")["pid"] == pid
    assert not agent.client.call("status")["agent"]["problems"]
    agent.config.write_text(good)
    os.kill(agent.pid, signal.SIGHUP)
    until(
        lambda: {worker["name"] for worker in agent.client.call("status")["workers"]} == {"quiet"}, "the worker is gone"
    )
    until(lambda: not agent.pids("workers/other"), "its process too")


def test_usr1_opens_log_and_event_files_anew(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_event(event__action="agent-started")
    log = agent.folder / "log"
    for path in log.iterdir():
        path.rename(log / f"moved-{path.name}")
    os.kill(agent.pid, signal.SIGUSR1)
    agent.garrison("stop", "quiet")
    until(lambda: list(log.glob("events.*.ndjson")) and list(log.glob("garrison.*.log")), "new files")
    assert agent.wait_event(event__action="worker-stopped")


def test_the_status_document_is_the_contract_field_by_field(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    status: dict[str, Any] = agent.status()
    assert list(status) == ["host", "agent", "workers"]
    shape: dict[str, Any] = {
        "pid": int,
        "version": str,
        "uptime_seconds": int,
        "cgroup_mode": str,
        "killswitch": {"engaged": bool, "scopes": list, "reason": str},
        "store": {
            "backend": str,
            "connected": bool,
            "endpoint": str,
            "revision": int,
            "lease_id": str,
            "stale_seconds": int,
            "connected_seconds": int,
            "error": str,
        },
        "problems": list,
    }
    worker_shape: dict[str, Any] = {
        "name": str,
        "desired": str,
        "state": str,
        "pid": int,
        "cgroup": str,
        "cpu_percent": float,
        "memory_bytes": int,
        "limits": dict,
        "breaker": {
            "state": str,
            "trips": int,
            "cause": type(None),
            "retry_in_seconds": type(None),
            "level": int,
            **dict.fromkeys(("reason", "resource", "value", "limit", "window_seconds"), type(None)),
            **dict.fromkeys(("throttled_to_percent", "throttled_for_seconds", "probation_for_seconds"), type(None)),
            "dry_run": bool,
        },
        "config": {"revision": int, "hash": str, "status": str, "error": type(None)},
        "events": {"emitted": int, "delivered": int, "dropped": dict, "in_flight": int},
        "restarts": int,
        "desired_by": str,
        "last_error": type(None),
        "held": str,
    }

    def check(document: dict[str, Any], expected: dict[str, Any]) -> None:
        assert list(document) == list(expected)
        for key, kind in expected.items():
            if isinstance(kind, dict):
                check(document[key], kind)
            else:
                assert isinstance(document[key], kind), (key, document[key])

    check(status["agent"], shape)
    check(status["workers"][0], worker_shape)
    assert status["host"] == "web1"
    assert status["agent"]["pid"] == agent.pid
    assert status["agent"]["cgroup_mode"] in ("hybrid", "legacy", "unified")
    assert status["workers"][0]["state"] == "running"
