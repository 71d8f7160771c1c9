"""The agent's own log, end to end: levels at run time, whole lines under a flood, files that come and go."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e._agent import RunningAgent, module, needs_cgroups, until
from tests.integration._tmpfs_support import MountRefusedError, tmpfs

pytestmark = needs_cgroups

Make = Callable[..., RunningAgent]
QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
GOSSIP = f'[workers.gossip]\nmodules = ["{module("gossip", "Gossip")}"]\n'
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|notice|warning|err|crit|alert|emerg) "
    r"[\w.\\-]+: [^\x00-\x1f\x7f-\x9f]*"
)


def lines(agent: RunningAgent) -> list[str]:
    """Return the lines in the log files, split where a reader of bytes would."""
    found: list[str] = []
    for path in sorted((agent.folder / "log").glob("garrison.*.log"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        found += data.decode().removesuffix("\n").split("\n") if data else []
    return found


def levels(agent: RunningAgent, source: str) -> set[str]:
    """Return the levels of the lines that come from a source from now on, for at least ten of them or two seconds."""
    before = len(lines(agent))
    agent.garrison("status")
    with suppress(AssertionError):  # it may well be silent
        until(lambda: sum(f" {source}: " in line for line in lines(agent)[before:]) >= 10, "it talks", 3)
    return {line.split(" ")[1] for line in lines(agent)[before:] if f" {source}: " in line}


def test_the_level_of_one_worker_changes_while_it_runs(make_agent: Make) -> None:
    agent = make_agent(GOSSIP + QUIET)
    agent.start()
    pid = agent.wait_worker("gossip", state="running")["pid"]
    key = "server/config/web1/worker/gossip/log_level"
    until(lambda: any(" warning worker.gossip: shout" in line for line in lines(agent)), "it talks")
    assert levels(agent, "worker.gossip") == {"info", "warning"}
    for level, expected in (("debug", {"debug", "info", "warning"}), ("warning", {"warning"}), ("crit", set())):
        agent.put(key, level)
        agent.wait_worker("gossip", desired="start")
        until(lambda expected=expected: levels(agent, "worker.gossip") == expected, f"only {expected}", 60)
    agent.delete(key)
    until(lambda: levels(agent, "worker.gossip") == {"info", "warning"}, "the file's again", 60)
    assert agent.worker("gossip")["pid"] == pid
    assert not any(" debug worker.quiet: " in line for line in lines(agent))
    assert all(LINE.fullmatch(line) for line in lines(agent))
    assert any(r"innocent\n2030-01-01" in line for line in lines(agent))
    assert not any(line.startswith("2030") for line in lines(agent))


def test_a_flood_of_lines_from_five_workers_keeps_lines_whole_files_bounded_and_others_heard(make_agent: Make) -> None:
    flooders = "".join(
        f'[workers.flood{number}]\ncommand = ["{sys.executable}", "-S", "@/modules/log_flooder.py"]\n'
        for number in range(5)
    )
    agent = make_agent(QUIET + flooders, more='[log]\nmax_bytes = "64 KiB"\n')
    agent.start()
    agent.wait_worker("quiet", state="running")
    seen: set[str] = set()
    sizes: set[int] = set()

    def turned() -> bool:
        files = list((agent.folder / "log").glob("garrison.*.log"))
        sizes.update(path.stat().st_size for path in files)
        seen.update(lines(agent))
        return len(files) == 2 and any("were suppressed" in line for line in seen)

    until(turned, "both files are in use, and what is left out is counted", 60)
    for _ in range(5):
        assert agent.garrison("freeze", "quiet").returncode == 0
        assert agent.garrison("thaw", "quiet").returncode == 0
        turned()
    until(lambda: turned() or True, "another look")
    assert max(sizes) <= 64 * 1024
    bad = [line for line in seen if not LINE.fullmatch(line)]
    # A file may be read in the middle of a line's write; a line that is in there for good is whole.
    assert not [line for line in bad if line in lines(agent)]
    assert any(" info worker.quiet: running -> frozen" in line for line in seen)
    for number in range(5):
        assert any(f" worker.flood{number}" in line for line in seen)
    assert agent.stop() == 0
    assert all(LINE.fullmatch(line) for line in lines(agent))


def test_a_log_folder_that_is_removed_comes_back(make_agent: Make) -> None:
    agent = make_agent(GOSSIP)
    agent.start()
    agent.wait_worker("gossip", state="running")
    until(lambda: lines(agent), "there is a log")
    shutil.rmtree(agent.folder / "log")
    until(lambda: len(lines(agent)) > 3, "there is one again", 60)
    assert agent.garrison("stop", "gossip").returncode == 0
    until(lambda: list((agent.folder / "log").glob("events.*")), "and the events' files too", 60)
    assert all(LINE.fullmatch(line) for line in lines(agent))


def test_a_full_disk_under_the_log_stops_nothing_and_is_told_afterwards(make_agent: Make, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    try:
        with tmpfs(disk, 512 * 1024):
            more = f'[sink.file]\npath = "{tmp_path}/events.ndjson"\n'
            agent = make_agent(GOSSIP, more=more)
            agent.config.write_text(agent.config.read_text().replace(f"{agent.folder}/log", f"{disk}/log"))
            agent.start()
            agent.wait_worker("gossip", state="running")
            (disk / "ballast").write_bytes(b"")
            with open(disk / "ballast", "ab", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(b"x" * 4096)
                except OSError:
                    until(lambda: "the log files cannot be written" in agent.errors(), "it is said", 60)
            assert agent.worker("gossip")["state"] == "running"
            assert agent.garrison("status").returncode == 0
            (disk / "ballast").unlink()
            until(lambda: "the log files can be written again" in agent.errors(), "it goes on", 60)
            text = b"".join(path.read_bytes() for path in (disk / "log").glob("garrison.*.log")).decode()
            assert "lines are missing here" in text
            agent.stop()
    except MountRefusedError as error:
        pytest.skip(f"this machine refuses to mount a tmpfs: {error}")


def test_files_and_their_size_follow_the_settings_at_run_time(make_agent: Make) -> None:
    agent = make_agent(GOSSIP, more="[log]\nfiles = false\n")
    agent.start()
    agent.wait_worker("gossip", state="running")
    assert lines(agent) == []

    def reload(log: str) -> None:
        agent.write_config(GOSSIP, more=f"[log]\n{log}\n")
        os.kill(agent.pid, signal.SIGHUP)

    reload("")
    until(lambda: len(lines(agent)) > 5, "there are files")
    reload("files = false")
    until(lambda: "configuration was reloaded" in agent.errors(), "it is read")
    until(lambda: (n := len(lines(agent))) and not until_more(agent, n), "and none is written any more", 60)


def until_more(agent: RunningAgent, number: int) -> bool:
    """Tell whether the files grow within a second."""
    try:
        return bool(until(lambda: len(lines(agent)) > number, "more", 1))
    except AssertionError:
        return False


def test_warnings_become_events_where_that_is_wanted(make_agent: Make) -> None:
    agent = make_agent(GOSSIP, more="[log]\nevents = true\n")
    agent.start()
    event = agent.wait_event(event__action="log", log__logger="worker.gossip")
    assert event["log"]["level"] == "warning"
    assert event["event"]["kind"] == "event"
    assert event["agent"]["worker"] == "agent"
    assert event["message"].startswith(("shout", "innocent"))
    left_out = until(
        lambda: [e for e in agent.events() if e.get("garrison", {}).get("lines_left_out")],
        "what is left out is told",
        60,
    )
    assert left_out[0]["garrison"]["lines_left_out"] > 0
    agent.write_config(GOSSIP)
    os.kill(agent.pid, signal.SIGHUP)
    until(lambda: "configuration was reloaded" in agent.errors(), "it is read")
    count = sum(e["event"]["action"] == "log" for e in agent.events())
    until(lambda: sum(" warning worker.gossip: " in line for line in lines(agent)) > 80, "it talks on", 60)
    assert sum(e["event"]["action"] == "log" for e in agent.events()) <= count + 1


def test_a_sink_that_fails_makes_no_events_of_its_own_failure(make_agent: Make, tmp_path: Path) -> None:
    """The events' folder goes: the lines that say so are no events, not even when it is back."""
    folder = tmp_path / "events"
    folder.mkdir()
    agent = make_agent(QUIET, more=f'[log]\nevents = true\n[sink.file]\npath = "{folder}/events.ndjson"\n')
    agent.start()
    shutil.rmtree(folder)
    folder.write_text("in the way")
    agent.garrison("freeze", "quiet")
    until(lambda: " err agent.sink: " in agent.errors(), "it is said")
    agent.garrison("thaw", "quiet")
    folder.unlink()
    folder.mkdir()
    until(lambda: " notice agent.sink: " in agent.errors(), "it is over", 60)
    agent.garrison("freeze", "quiet")
    found = until(lambda: "worker-frozen" in (text := _read(folder)) and text, "events flow again", 60)
    assert '"action":"log"' not in found


def _read(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("events.*"))
