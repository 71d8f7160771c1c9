"""Rights in the whole agent: what master, nursery and workers have, read from the kernel, and that it is enough."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from garrison.ipc.rights import CAPABILITIES
from garrison.supervisor.rights import capabilities, own, seccomp
from tests.e2e._agent import BIN, RunningAgent, alive, needs_cgroups, until

pytestmark = needs_cgroups

Make = Callable[..., RunningAgent]

AS_NOBODY = 'worker_user = "nobody"'
"""Every Linux has this user; the one that the packages make is not there where tests run."""

FOUR = """
[workers.process]
[workers.files.settings]
presets = []
alert_paths = ["@/tree"]
settle_seconds = 0.1
[workers.quiet]
modules = ["@/modules/quiet.py:Quiet"]
[workers.outside]
command = ["/bin/sleep", "1000"]
capabilities = ["net_raw"]
"""


def status(pid: int, task: int | None = None) -> dict[str, str]:
    path = f"/proc/{pid}/status" if task is None else f"/proc/{pid}/task/{task}/status"
    return {
        name: value.strip() for name, _, value in (line.partition(":") for line in Path(path).read_text().splitlines())
    }


def held(pid: int, which: str = "CapEff", task: int | None = None) -> set[str]:
    return set(capabilities.names(int(status(pid, task)[which], 16)))


def available() -> set[str]:
    """Return what this test can give: a container may lack some."""
    return held(os.getpid(), "CapBnd")


def under_the_unit(agent: RunningAgent) -> list[str]:
    """Return a command that gives the agent what systemd/garrison.service gives it, and no more."""
    program = shutil.which("setpriv")
    if program is None:
        pytest.skip("setpriv (util-linux) is not installed")
    bounds = ",".join(["-all", *(f"+{name[4:].lower()}" for name in own.needed() if name[4:].lower() in available())])
    return [
        program,
        "--no-new-privs",
        f"--bounding-set={bounds}",
        str(BIN / "garrisond"),
        "--config",
        str(agent.config),
    ]


def nursery_of(agent: RunningAgent, worker: str) -> int:
    return int(status(agent.worker(worker)["pid"])["PPid"])


def test_every_process_has_what_it_uses_and_nothing_else(make_agent: Make) -> None:
    agent = make_agent(FOUR, AS_NOBODY)
    (agent.folder / "tree").mkdir()
    agent.start(command=under_the_unit(agent))
    for name in ("process", "files", "quiet"):
        agent.wait_worker(name, state="running")
    given = available() & {name[4:].lower() for name in own.needed()}

    # Every thread of the master, those of libraries too.
    for task in map(int, os.listdir(f"/proc/{agent.pid}/task")):
        assert held(agent.pid, "CapEff", task) == set(own.MASTER) & given
        assert held(agent.pid, "CapPrm", task) == held(agent.pid, "CapBnd", task) == given
    nursery = nursery_of(agent, "files")
    assert held(nursery, "CapEff") == held(nursery, "CapBnd") == given

    expected = {
        "process": {"net_admin", "sys_ptrace", "dac_read_search"},
        "files": {"dac_read_search", "fowner"},
        "quiet": set(),
    }
    for name, wanted in expected.items():
        pid = agent.worker(name)["pid"]
        for task in map(int, os.listdir(f"/proc/{pid}/task")):
            for which in ("CapEff", "CapPrm", "CapBnd"):
                assert held(pid, which, task) == wanted & available(), (name, which)
            for which in ("CapInh", "CapAmb"):
                assert held(pid, which, task) == set(), (name, which)
            found = status(pid, task)
            assert found["Uid"].split() == found["Gid"].split() == ["65534"] * 4, name
            assert found["Groups"] == "", name
            assert found["NoNewPrivs"] == "1", name
            assert found["Seccomp"] == ("0" if seccomp.why_not() else "2"), name
    until(lambda: "not started" in agent.errors(), "what the unit does not give is not demanded in vain")
    assert "add it to the unit" in agent.errors()
    assert "CAP_NET_RAW" in agent.errors()


def test_a_program_has_the_user_and_the_capabilities_of_its_settings(make_agent: Make) -> None:
    if "net_raw" not in available():
        pytest.skip("this test has no CAP_NET_RAW to give")
    agent = make_agent(FOUR + 'user = "daemon"\n', AS_NOBODY)
    (agent.folder / "tree").mkdir()
    agent.start()
    outside = agent.wait_worker("outside", state="starting")
    until(lambda: Path(f"/proc/{outside['pid']}/comm").read_text() == "sleep\n", "the program runs")
    found = status(outside["pid"])
    assert found["Uid"].split() == ["1"] * 4
    for which in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert held(outside["pid"], which) == {"net_raw"}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "0" if seccomp.why_not() else "2")
    pid = outside["pid"]
    # Other rights are another process, as soon as they are asked for.
    agent.write_config(FOUR.replace('["net_raw"]', '["none"]'), AS_NOBODY)
    os.kill(agent.pid, signal.SIGHUP)
    until(lambda: (agent.worker("outside")["pid"] or pid) != pid, "it is started anew")
    again = agent.worker("outside")["pid"]
    until(lambda: held(again) == set(), "it has nothing")


def test_a_user_that_does_not_exist_is_a_worker_that_does_not_start(make_agent: Make) -> None:
    agent = make_agent('[workers.quiet]\nmodules = ["@/modules/quiet.py:Quiet"]\nuser = "nobody-of-that-name"\n')
    agent.start()
    worker = agent.wait_worker("quiet", state="failed")
    assert not worker["pid"]
    until(lambda: "not started: there is no user nobody-of-that-name in /etc/passwd" in agent.errors(), "it says why")


def test_a_right_that_cannot_be_given_is_a_worker_that_does_not_start(make_agent: Make, tmp_path: Path) -> None:
    program = shutil.which("setpriv")
    if program is None:
        pytest.skip("setpriv (util-linux) is not installed")
    agent = make_agent('[workers.quiet]\nmodules = ["@/modules/quiet.py:Quiet"]\n', AS_NOBODY)
    command = [
        program,
        "--bounding-set=-setuid",
        "--no-new-privs",
        str(BIN / "garrisond"),
        "--config",
        str(agent.config),
    ]
    agent.start(command=command)
    until(lambda: agent.worker("quiet")["state"] in ("failed", "tripped"), "it does not run")
    until(lambda: "it cannot become user nobody (uid 65534)" in agent.errors(), "it says what")
    assert "CAP_SETUID" in agent.errors()
    assert "quiet: starting -> running" not in agent.errors()


def test_an_agent_that_may_not_change_users_runs_workers_as_itself_where_it_is_told_to(make_agent: Make) -> None:
    program = shutil.which("setpriv")
    if program is None:
        pytest.skip("setpriv (util-linux) is not installed")
    agent = make_agent('[workers.quiet]\nmodules = ["@/modules/quiet.py:Quiet"]\n', 'worker_user = "root"')
    # As a container may be: also without the right to give files away, and with root's own group listed once more.
    bounds = "-setuid,-setgid,-setpcap,-chown"
    agent.start(
        command=[
            *(program, f"--bounding-set={bounds}", "--groups=0", "--no-new-privs"),
            *(str(BIN / "garrisond"), "--config", str(agent.config)),
        ]
    )
    found = status(agent.wait_worker("quiet", state="running")["pid"])
    assert found["Uid"].split() == found["Gid"].split() == ["0"] * 4
    assert (int(found["CapPrm"], 16), int(found["CapEff"], 16), found["NoNewPrivs"]) == (0, 0, "1")


def test_modules_see_less_where_the_agent_has_less_and_say_so(make_agent: Make) -> None:
    program = shutil.which("setpriv")
    if program is None:
        pytest.skip("setpriv (util-linux) is not installed")
    agent = make_agent("[workers.process]\n", "# worker_user: automatic")
    command = [
        program,
        "--bounding-set=-sys_ptrace",
        "--no-new-privs",
        str(BIN / "garrisond"),
        "--config",
        str(agent.config),
    ]
    agent.start(command=command)
    worker = agent.wait_worker("process", state="running")
    until(lambda: "does not have sys_ptrace to give" in agent.errors(), "it says so")
    assert held(worker["pid"]) == {"net_admin", "dac_read_search"} & available()
    # As nobody it would see less still.
    assert status(worker["pid"])["Uid"].split()[0] == "0"


def test_workers_of_another_user_stop_die_and_are_killed_like_any_other(make_agent: Make) -> None:
    agent = make_agent(FOUR, AS_NOBODY)
    (agent.folder / "tree").mkdir()
    agent.start(command=under_the_unit(agent))
    for name in ("process", "files", "quiet"):
        agent.wait_worker(name, state="running")
    stopped = agent.worker("quiet")["pid"]
    assert agent.garrison("stop", "quiet").returncode == 0
    until(lambda: not alive(stopped), "a stop ends it")
    crashed = agent.worker("process")["pid"]
    os.kill(crashed, signal.SIGKILL)
    until(lambda: agent.worker("process")["pid"] not in (None, crashed), "a crash starts it anew")
    agent.wait_worker("process", state="running")
    nursery = nursery_of(agent, "files")
    orphan = agent.worker("files")["pid"]
    os.kill(nursery, signal.SIGKILL)
    until(lambda: not alive(orphan), "without the nursery nobody lives on")
    agent.wait_worker("files", state="running")
    assert agent.garrison("kill", "--reason", "test").returncode == 0
    until(lambda: agent.pids() == set(), "the killswitch leaves nobody")
    assert agent.garrison("release").returncode == 0
    agent.wait_worker("files", state="running")
    survivors = agent.pids()
    assert survivors
    agent.kill()
    until(lambda: not any(alive(pid) for pid in survivors), "nothing survives the master")


def test_state_that_an_agent_without_users_left_is_used_on(make_agent: Make) -> None:
    agent = make_agent(FOUR)
    tree = agent.folder / "tree"
    tree.mkdir()
    (tree / "x").write_text("before")
    agent.start()
    agent.wait_event(event__action="baseline-complete")
    agent.garrison("stop", "files")
    assert agent.stop() == 0
    (tree / "x").write_text("changed meanwhile")
    agent.write_config(FOUR, AS_NOBODY)
    agent.start()
    agent.garrison("start", "files")
    agent.wait_event(event__action="modified", file__path=str(tree / "x"))
    database = agent.folder / "state" / "workers" / "files" / "baseline.db"
    assert (database.stat().st_uid, database.stat().st_mode & 0o777) == (65534, 0o600)
    assert database.parent.stat().st_mode & 0o777 == 0o700
    assert not [event for event in agent.events() if event["event"]["action"] == "baseline-volatile"]
    # The rest of the agent's state stays the agent's alone.
    others = {path for path in (agent.folder / "state").iterdir() if path.is_file()}
    assert others
    assert {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in others} == {(0, 0)}


# What each capability is for


def without(names: Iterable[str], missing: str) -> str:
    return ", ".join(f'"{name}"' for name in names if name != missing) or '"none"'


PROCESS = ("net_admin", "sys_ptrace", "dac_read_search")


@pytest.mark.parametrize("missing", ["", "sys_ptrace", "dac_read_search"])
def test_what_the_process_worker_sees_of_roots_processes(make_agent: Make, tmp_path: Path, missing: str) -> None:
    if not set(PROCESS) <= available():
        pytest.skip("this test does not have all of these to give")
    agent = make_agent(f"[workers.process]\ncapabilities = [{without(PROCESS, missing)}]\n", AS_NOBODY)
    agent.start()
    agent.wait_worker("process", state="running")
    until(lambda: "watching" in agent.errors(), "the first look is over")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as session:
        accepted, _ = server.accept()
        with accepted, subprocess.Popen(["/bin/sh"], stdin=accepted, stdout=accepted, cwd=private) as shell:
            try:
                exec_ = agent.wait_event(event__action="exec", process__pid=shell.pid)
                if missing == "":
                    agent.wait_event(event__kind="alert", process__pid=shell.pid)
                else:
                    time.sleep(4)  # nothing can be awaited: no alert is to come
            finally:
                session.shutdown(socket.SHUT_WR)
                shell.kill()
    alerts = {event["event"]["action"] for event in agent.events() if _of(event, shell.pid, "alert")}
    seen = (exec_["process"].get("working_directory"), bool(exec_["process"].get("executable")))
    assert exec_["process"]["args"] == ["/bin/sh"]
    if missing == "sys_ptrace":
        assert seen == (None, False)
    else:
        assert seen == (str(private), True)
    # Whether its input is a connection shows in the list of its descriptors, and in what they are.
    assert alerts == (set() if missing else {"process-reverse-shell-socket"})


def _of(event: dict[str, Any], pid: int, kind: str) -> bool:
    return event["event"]["kind"] == kind and event.get("process", {}).get("pid") == pid


FILES = ("dac_read_search", "fowner")


@pytest.mark.parametrize("missing", ["", "dac_read_search", "fowner"])
def test_what_the_files_worker_sees_and_leaves_behind(make_agent: Make, tmp_path: Path, missing: str) -> None:
    if not set(FILES) <= available():
        pytest.skip("this test does not have all of these to give")
    tree = tmp_path / "tree"
    tree.mkdir(mode=0o700)
    secret = tree / "secret"
    secret.write_bytes(b"x" * 300_000)
    secret.chmod(0o600)
    os.utime(secret, (1, secret.stat().st_mtime))
    # Without the right to read everything root reads what is root's, so here it is somebody else's.
    os.chown(secret, 1, 1)
    os.chown(tree, 1, 1)
    agent = make_agent(
        f"""
[workers.files]
capabilities = [{without(FILES, missing)}]
[workers.files.settings]
presets = []
alert_paths = ["{tree}"]
settle_seconds = 0.1
""",
        'worker_user = "root"' if missing == "dac_read_search" else AS_NOBODY,
    )
    agent.start()
    told = agent.wait_event(event__action="baseline-complete")["message"]
    # The folder alone, or the file too.
    assert f"the baseline has {1 if missing == 'dac_read_search' else 2} entries" in told
    if missing == "dac_read_search":
        return
    assert (secret.stat().st_atime == 1) == (missing == "")
    secret.write_bytes(b"y" * 300_000)
    changed = agent.wait_event(event__action="modified", file__path=str(secret))
    assert changed["file"]["hash"]["sha256"]


def test_names_of_capabilities_are_those_of_this_kernel() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert len(CAPABILITIES) > last, "a capability of this kernel has no name here yet"
