"""Bad input and bad surroundings: a clear message, the right exit code, and what worked before goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e._agent import BIN, RunningAgent, alive, module, needs_cgroups, until

pytestmark = needs_cgroups

QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
Make = Callable[..., RunningAgent]


def garrisond(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "garrisond", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("addition", "named"),
    [
        ("[agnt]\n", ["agnt", "agent"]),
        ("[workers.quiet.budget]\ncpu_quota = 5\n", ["workers.quiet.budget.cpu_quota", "cpu_quota_percent"]),
        ("[workers.quiet.budget]\nmemory_max = 'lots'\n", ["workers.quiet.budget.memory_max", "lots"]),
        ("[workers.quiet.budget]\npids_max = 0\n", ["workers.quiet.budget.pids_max"]),
        ("[workers.Quiet]\n", ["Quiet"]),
        ("[workers.proces]\n", ["proces", "process"]),
        ("[log]\nlevel = 'loud'\n", ["log.level", "loud"]),
        ("[workers.quiet\n", ["line"]),
    ],
)
def test_a_wrong_configuration_is_refused_with_78_and_names_the_key(
    make_agent: Make, addition: str, named: list[str]
) -> None:
    agent = make_agent(QUIET, more=addition)
    for arguments in (("--config", agent.config, "--check"), ("--config", agent.config)):
        result = garrisond(*arguments)
        assert result.returncode == 78
        for word in named:
            assert word in result.stderr
        assert "Traceback" not in result.stderr


def test_check_looks_into_the_modules_and_their_settings(make_agent: Make) -> None:
    agent = make_agent(QUIET + '[workers.quiet.settings]\ngreetin = "x"\n[workers.gone]\nmodules = ["/no/such.py:X"]\n')
    result = garrisond("--config", agent.config, "--check")
    assert result.returncode == 78
    assert "greetin" in result.stderr
    assert "greeting" in result.stderr
    assert "/no/such.py" in result.stderr
    assert garrisond("--config", make_agent(QUIET).config, "--check").returncode == 0


def test_an_unknown_option_is_a_usage_error() -> None:
    result = garrisond("--conifg", "x")
    assert result.returncode == 64
    assert "--conifg" in result.stderr


def test_a_second_instance_ends_with_75_and_touches_nothing(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    pid = agent.wait_worker("quiet", state="running")["pid"]
    result = garrisond("--config", agent.config)
    assert result.returncode == 75
    assert str(agent.pid) in result.stderr
    # Another run_dir, the same cgroups: still nobody's workers are killed.
    other = make_agent(QUIET)
    other.config.write_text(other.config.read_text().replace(other.root, agent.root))
    result = garrisond("--config", other.config)
    assert result.returncode == 75
    assert "cgroup" in result.stderr
    assert garrisond("--config", agent.config, "--cleanup").returncode == 75
    assert agent.worker("quiet")["pid"] == pid
    assert alive(pid)


def test_a_mode_that_the_host_cannot_enforce_is_refused_with_71_and_a_remedy(make_agent: Make) -> None:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("this host has cgroup v2 with controllers")
    agent = make_agent(QUIET, agent='cgroup_mode = "unified"')
    result = garrisond("--config", agent.config)
    assert result.returncode == 71
    assert "unified" in result.stderr
    assert "memory" in result.stderr
    assert "unprivileged" in result.stderr


def test_an_unreadable_store_with_nothing_cached_ends_with_69(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.store.write_text("a file, not a directory")
    result = garrisond("--config", agent.config)
    assert result.returncode == 69
    assert str(agent.store) in result.stderr


def test_a_store_that_goes_away_changes_nothing(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.put("server/config/@all/worker/quiet", "start")
    agent.put("agent/config/@all/plugin/quiet/settings", json.dumps({"greeting": "cached"}))
    agent.start()
    agent.wait_event(message="cached")
    pid = agent.worker("quiet")["pid"]
    agent.store.rename(agent.folder / "away")
    agent.store.write_text("in the way")
    until(lambda: not agent.client.call("status")["agent"]["store"]["connected"], "the loss is shown")
    assert agent.worker("quiet")["pid"] == pid
    assert agent.stop() == 0
    agent.start()  # on the cache
    assert agent.wait_worker("quiet", state="running")["config"]["hash"]
    assert len([event for event in agent.events() if event.get("message") == "cached"]) == 2
    status = agent.client.call("status")["agent"]["store"]
    assert not status["connected"]
    agent.store.unlink()
    (agent.folder / "away").rename(agent.store)
    until(lambda: agent.client.call("status")["agent"]["store"]["connected"], "the store is back")


@pytest.mark.parametrize("content", [b"\xff\xfe garbage", b"x" * 2_000_000])
def test_a_killswitch_key_that_cannot_be_read_counts_as_engaged(make_agent: Make, content: bytes) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    agent.put("server/config/web1/killswitch", content)
    agent.wait_worker("quiet", state="killed")
    reason = agent.client.call("status")["agent"]["killswitch"]["reason"]
    assert "/hids/server/config/web1/killswitch" in reason


def test_a_directory_in_place_of_the_killswitch_file_counts_as_engaged(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.killfile.mkdir()
    agent.start()
    assert agent.worker("quiet")["state"] == "killed"


def test_a_torn_state_file_is_reported_and_the_agent_starts(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    assert agent.stop() == 0
    cache = agent.folder / "state" / "cache.json"
    cache.write_bytes(cache.read_bytes()[:-20])
    agent.start()
    agent.wait_worker("quiet", state="running")
    assert any("cache.json" in problem for problem in agent.client.call("status")["agent"]["problems"])


def test_a_torn_record_of_local_decisions_counts_as_an_engaged_killswitch(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    assert agent.garrison("kill").returncode == 0
    assert agent.stop() == 0
    local = agent.folder / "state" / "local.json"
    local.write_bytes(local.read_bytes()[:-20])
    agent.start()
    assert agent.worker("quiet")["state"] == "killed"
    assert "local.json" in agent.client.call("status")["agent"]["killswitch"]["reason"]
    assert agent.garrison("release").returncode == 0
    agent.wait_worker("quiet", state="running")
    assert agent.stop() == 0
    agent.start()  # the record is whole again
    assert agent.wait_worker("quiet", state="running")


def test_an_unknown_worker_is_answered_with_the_ones_there_are(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    result = agent.garrison("stop", "quite")
    assert result.returncode == 1
    assert "quiet" in result.stderr


def test_without_an_agent_the_command_line_says_how_to_start_it(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    result = agent.garrison("status")
    assert result.returncode == 69
    assert "garrisond" in result.stderr
    assert "run" in result.stderr


def test_the_killswitch_can_be_pulled_while_the_configuration_file_is_broken(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    agent.wait_worker("quiet", state="running")
    agent.config.write_text(agent.config.read_text() + "\n[oops]\n")
    result = agent.garrison("kill", "--reason", "now")
    assert result.returncode == 0, result.stderr
    assert "oops" in result.stderr
    assert not agent.pids()


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_state_directory_that_takes_nothing_costs_only_the_memory_of_the_state(
    make_agent: Make, tmp_path: Path, fault: str
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    try:
        if fault == "full":
            _fill(place / "ballast")
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        agent = make_agent(QUIET)
        agent.config.write_text(agent.config.read_text().replace(f"{agent.folder}/state", f"{place}/state"))
        agent.start()
        pid = agent.wait_worker("quiet", state="running")["pid"]
        result = agent.garrison("stop", "quiet")
        assert result.returncode in (0, 1)
        assert "would be lost in a restart" in result.stdout + result.stderr
        agent.wait_worker("quiet", state="stopped")
        assert not alive(pid)
        problems = agent.client.call("status")["agent"]["problems"]
        assert any(str(place) in problem for problem in problems), problems
        result = agent.garrison("kill")
        assert "would be lost in a restart" in result.stdout + result.stderr
        if fault == "full":
            (place / "ballast").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        until(lambda: not agent.client.call("status")["agent"]["problems"], "it comes back by itself", 90)
        agent.cleanup()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


def test_an_event_disk_that_is_full_drops_the_least_important_and_says_so(make_agent: Make, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
    try:
        _fill(place / "ballast")
        agent = make_agent(QUIET, more=f'[sink.file]\npath = "{place}/events.ndjson"\n')
        agent.start()
        agent.wait_worker("quiet", state="running")
        until(lambda: str(place) in str(agent.client.call("status")["agent"]["problems"]), "the full disk is shown")
        assert agent.worker("quiet")["events"]["emitted"] == 1
        assert agent.worker("quiet")["events"]["delivered"] == 0
        (place / "ballast").unlink()
        until(lambda: agent.worker("quiet")["events"]["delivered"] == 1, "it is delivered once there is room")
        until(lambda: not agent.client.call("status")["agent"]["problems"], "the problem is over")
        assert agent.stop() == 0
        agent.cleanup()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_master_that_was_stopped_for_a_while_goes_on_and_trips_nobody(make_agent: Make) -> None:
    agent = make_agent(QUIET + "[workers.process]\n")
    agent.start()
    pids = {name: agent.wait_worker(name, state="running")["pid"] for name in ("quiet", "process")}
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        agent.put("server/config/web1/worker/quiet", "stop")
        until(lambda: Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stands")
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    agent.wait_worker("quiet", state="stopped")
    assert agent.worker("process")["pid"] == pids["process"]
    assert agent.worker("process")["breaker"]["trips"] == 0
