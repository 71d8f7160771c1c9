"""The same agent in each cgroup mode that this host has, and without any."""

from __future__ import annotations

import os
import shlex
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e._agent import BIN, RunningAgent, alive, module, needs_cgroups, until
from tests.e2e._hogs import ROOMY, Yard, hog

Make = Callable[..., RunningAgent]

WORKERS = (
    f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
    f'[workers.memory-hog]\nmodules = ["{module("memory_hog", "MemoryHog")}"]\n'
    f'[workers.stubborn]\nmodules = ["{module("stubborn", "Stubborn")}"]\n'
)


def exercise(agent: RunningAgent) -> None:
    """Start, memory hog, freeze, stop with a stubborn grandchild, kill, release, orderly stop."""
    agent.put("server/config/web1/worker/memory-hog", "stop")
    agent.start()
    quiet = agent.wait_worker("quiet", state="running")["pid"]
    agent.put("server/config/web1/worker/memory-hog", "start")
    if agent.status()["agent"]["cgroup_mode"] == "unprivileged":
        # A resource limit makes the allocation fail, and the module with it: nobody is killed.
        until(lambda: "MemoryError" in str(agent.worker("memory-hog")["last_error"]), "the allocation fails")
        assert agent.worker("memory-hog")["memory_bytes"] < 96 * 2**20
        agent.put("server/config/web1/worker/memory-hog", "stop")
    else:
        assert agent.wait_worker("memory-hog", state="tripped")["breaker"]["cause"] == "oom"
    grandchild = agent.wait_event(event__action="grandchild")["process"]["pid"]
    agent.put("server/config/web1/worker/quiet", "freeze")
    agent.wait_worker("quiet", state="frozen", pid=quiet)
    assert agent.garrison("stop", "stubborn").returncode == 0
    until(lambda: not alive(grandchild), "the grandchild is gone")
    killed = agent.garrison("kill")
    assert killed.returncode == 0, killed.stderr
    assert not alive(quiet)  # it was frozen, and died all the same
    assert agent.garrison("release").returncode == 0
    agent.put("server/config/web1/worker/quiet", "start")
    pid = agent.wait_worker("quiet", state="running")["pid"]
    assert agent.stop() == 0
    assert not alive(pid)


@needs_cgroups
@pytest.mark.parametrize("mode", ["legacy", "hybrid", "unified"])
def test_the_agent_does_everything_in_each_mode_of_the_kernel(make_agent: Make, mode: str) -> None:
    agent = make_agent(WORKERS, agent=f'cgroup_mode = "{mode}"')
    probe = subprocess.run(
        [BIN / "garrisond", "--config", agent.config, "--cleanup"], capture_output=True, text=True, check=False
    )
    if probe.returncode == 71:
        pytest.skip(f"this host has no {mode} mode: {probe.stderr.strip()[:200]}")
    exercise(agent)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_unprivileged_does_by_polling_what_it_can(make_agent: Make) -> None:
    agent = make_agent(WORKERS, agent='cgroup_mode = "unprivileged"')
    exercise(agent)
    assert agent.nodes() == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_unprivileged_holds_the_memory_cap_also_while_the_policy_is_only_tried_out(make_agent: Make) -> None:
    # A resource limit holds each process alone; here four of them are too much together.
    brood = hog("brood", "brood", external=True, memory_max=96 * 2**20, **ROOMY)
    agent = make_agent(
        brood.toml(), agent='cgroup_mode = "unprivileged"\ndry_run = true\nbudget = {cpu_quota_percent = 200}'
    )
    yard = Yard(agent)
    yard.start(None)
    pid = agent.wait_worker("brood", state="running")["pid"]
    yard.loose("brood")
    event = agent.wait_event(event__action="worker-tripped")
    yard.call_back()
    told = event["garrison"]
    assert (told["cause"], told["resource"], told["limit"]) == ("memory", "memory_max", 96 * 2**20), told
    assert told["value"] > told["limit"]
    assert "polled" in told["reason"]
    assert not alive(pid)
    assert agent.wait_worker("brood", state="tripped")["pid"] == 0


AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]


def interpreter_for_nobody(folder: Path) -> str:
    """Return an interpreter with this installation that user 65534 can run, or skip."""

    def usable(python: str) -> bool:
        # By way of a shell, since setpriv still has root's rights when it runs its program.
        probe = [*AS_NOBODY, "/bin/sh", "-c", f"exec {shlex.quote(python)} -I -c 'import garrison.ipc'"]
        return subprocess.run(probe, check=False, cwd="/", capture_output=True).returncode == 0

    if usable(sys.executable):
        return sys.executable
    # The interpreter may be in root's home. The distribution's own, if it is of the same version, can use our packages.
    python = folder / "venv" / "bin" / "python"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(folder / "venv")], check=False)
    for packages in (folder / "venv").glob("lib/python3.*/site-packages"):
        (packages / "ours.pth").write_text(f"import site; site.addsitedir({site.getsitepackages()[0]!r})\n")
    if not (python.exists() and usable(str(python))):
        pytest.skip("user 65534 can run no interpreter that has this installation")
    return str(python)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_without_root_the_agent_wants_to_be_asked_for_running_unprivileged(tmp_path: Path) -> None:
    """As user 65534: refused with 71 and the remedy; with the remedy taken it runs."""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(path.stat().st_mode | 0o011)
    quiet = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
    agent = RunningAgent(tmp_path / "nobody", quiet)
    subprocess.run(["chown", "-R", "65534:65534", str(agent.folder)], check=True)
    python = interpreter_for_nobody(tmp_path)
    garrisond = [*AS_NOBODY, python, "-m", "garrison.supervisor", "--config", str(agent.config)]
    try:
        refused = subprocess.run(garrisond, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert refused.returncode == 71
        assert 'cgroup_mode = "unprivileged"' in refused.stderr
        agent.write_config(quiet, 'cgroup_mode = "unprivileged"')
        agent.start(wait=False, command=garrisond)
        until((agent.folder / "run" / "control.sock").exists, "it answers")
        worker = agent.wait_worker("quiet", state="running")
        assert Path(f"/proc/{worker['pid']}").stat().st_uid == 65534
        assert agent.stop() == 0
        assert not alive(worker["pid"])
    finally:
        agent.cleanup()
