"""The doctor on the machine at hand, as a command and through the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor import doctor_kernel
from garrison.supervisor.cgroups.detect import describe_host
from garrison.supervisor.doctor import Finding, examine
from garrison.supervisor.settings import load
from tests.integration._control_support import DEADLINE, Answers, serving
from tests.unit._cli_reports import troubled


def config(tmp_path: Path, **agent: str) -> str:
    places = {name: str(tmp_path / name) for name in ("state_dir", "run_dir", "log_dir", "killswitch_file")} | agent
    file = tmp_path / "garrison.toml"
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in places.items()]
    file.write_text(f"[agent]\n{''.join(lines)}[store.directory]\npath = {json.dumps(str(tmp_path / 'store'))}\n")
    file.chmod(0o644)
    return str(file)


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "garrison.fleet.cli", *arguments], capture_output=True, text=True, timeout=DEADLINE
    )


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_it_agrees_with_the_agent_about_this_hosts_cgroups(tmp_path: Path) -> None:
    found = by_name(examine(load(config(tmp_path))))
    host = describe_host()
    assert found["mode"].status == ("ok" if host.mode else "fail")
    assert (found["cgroup.kill"].status == "ok") == host.cgroup_kill
    assert (found["pidfd"].status == "ok") == host.pidfd


def test_it_changes_nothing(tmp_path: Path) -> None:
    file = config(tmp_path)
    examine(load(file))
    assert os.listdir(tmp_path) == ["garrison.toml"]


def test_every_finding_has_a_group_and_every_failure_a_remedy(tmp_path: Path) -> None:
    for finding in examine(load(config(tmp_path))):
        assert finding.group
        assert finding.detail
        assert finding.status == "ok" or finding.remedy


def test_without_an_agent_it_says_how_to_start_one(tmp_path: Path) -> None:
    found = by_name(examine(load(config(tmp_path))))["agent"]
    assert (found.status, "systemctl start garrison" in found.remedy) == ("warn", True)


def test_with_an_agent_it_says_how_that_one_is(tmp_path: Path) -> None:
    file = config(tmp_path)
    with serving(str(tmp_path / "run_dir" / "control.sock"), Answers(status=troubled())):
        findings = examine(load(file))
    agent = [finding for finding in findings if finding.group == "Agent"]
    assert agent[0].detail == "0.1.0 runs as pid 812, cgroups hybrid"
    assert {finding.name for finding in agent[1:]} == {"killswitch", "worker network", "worker files", "worker login"}


def test_an_agent_that_hangs_is_a_failure(tmp_path: Path) -> None:
    import socket

    path = str(tmp_path / "hung.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        found = by_name(examine(load(config(tmp_path)), socket=path))["agent"]
    assert (found.status, "did not answer" in found.detail) == ("fail", True)


def test_a_check_that_breaks_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Finding:
        raise RuntimeError("odd machine")

    monkeypatch.setattr(doctor_kernel, "pidfd", broken)
    found = by_name(examine(load(config(tmp_path))))
    assert (found["pidfd"].status, "odd machine" in found["pidfd"].detail) == ("warn", True)
    assert "PSI" in found


def test_the_proc_connector_answers_root_and_refuses_others_with_a_reason() -> None:
    found = doctor_kernel.proc_connector()
    assert found.status in ("ok", "warn")
    if found.status == "warn":
        assert found.detail


def test_the_command_groups_its_findings_and_ends_with_0_or_1(tmp_path: Path) -> None:
    file = config(tmp_path)
    done = doctor("--config", file, "doctor")
    for group in ("Kernel", "Privileges and limits", "Cgroups", "Configuration and files", "Agent"):
        assert f"\n{group}\n" in f"\n{done.stdout}"
    assert done.returncode == (0 if done.stdout.rstrip().endswith(" 0 failed") else 1)
    assert "Traceback" not in done.stderr


def test_the_json_says_the_same(tmp_path: Path) -> None:
    done = doctor("--config", config(tmp_path), "doctor", "--json")
    document = json.loads(done.stdout)
    assert set(document) == {"status", "findings"}
    assert set(document["findings"][0]) == {"name", "status", "detail", "remedy", "group"}
    assert (done.returncode == 1) == (document["status"] == "fail")


def test_a_wrong_configuration_is_a_finding_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    file = config(tmp_path, hostnam="x")
    done = doctor("--config", file, "doctor")
    assert done.returncode == 1
    assert "hostnam" in done.stdout
    assert "controller cpu" in done.stdout
