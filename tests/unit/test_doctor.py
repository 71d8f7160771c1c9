"""The doctor's judgements: what is good, what costs something, what has to be mended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from garrison.supervisor import doctor, doctor_cgroups, doctor_files, doctor_kernel
from garrison.supervisor.cgroups.detect import HostFacts
from garrison.supervisor.doctor import Finding

POINTS = ("cpu", "cpuacct", "memory", "pids", "freezer")


def facts(**changes: Any) -> HostFacts:
    given: dict[str, Any] = {
        "mode": "hybrid",
        "controllers": {name: f"/cg/{name}" for name in POINTS},
        "unified_mount": "/cg/unified",
        "cgroup_kill": True,
        "cgroup_freeze": True,
        "psi": True,
        "pidfd": True,
        "writable": {f"/cg/{name}": True for name in (*POINTS, "unified")},
        "why_not": {"unified": ("no cpu",), "hybrid": (), "legacy": ()},
    }
    return HostFacts(**(given | changes))


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-fc", (6, 18)), ("3.10.0-1160.el7.x86_64", (3, 10)), ("5.4", (5, 4)), ("linux", None), ("", None)],
)
def test_a_release_is_read(release: str, version: tuple[int, int] | None) -> None:
    assert doctor_kernel.parse_release(release) == version


@pytest.mark.parametrize(("release", "status"), [("6.1.0", "ok"), ("3.10.0", "ok"), ("3.2.0", "fail"), ("odd", "warn")])
def test_the_kernel_has_to_be_new_enough(release: str, status: str) -> None:
    assert doctor_kernel.kernel_version(release).status == status


def test_all_capabilities_are_good_and_each_missing_one_is_named() -> None:
    assert doctor_kernel.judge_capabilities(2**41 - 1).status == "ok"
    for name, bit, purpose in doctor_kernel.CAPABILITIES:
        found = doctor_kernel.judge_capabilities((2**41 - 1) & ~(1 << bit))
        assert found.status == "warn"
        assert name in found.detail
        assert purpose in found.detail


def test_the_worker_user_has_to_be_there_and_not_be_root(tmp_path: Path) -> None:
    (tmp_path / "group").write_text("")
    for passwd, status, expected in (
        ("root:x:0:0::/root:/bin/sh\n", "warn", "no user garrison-worker"),
        ("garrison-worker:x:0:0::/:/bin/sh\n", "warn", "is root"),
        ("garrison-worker:x:990:990::/:/bin/false\n", "ok", "uid 990"),
    ):
        (tmp_path / "passwd").write_text(passwd)
        found = doctor_kernel.worker_user(str(tmp_path))
        assert (found.status, expected in found.detail) == (status, True)
        assert found.status == "ok" or found.remedy


def test_missing_pressure_information_names_the_fallback(tmp_path: Path) -> None:
    found = doctor_kernel.pressure(str(tmp_path))
    assert found.status == "warn"
    assert "fallback in use" in found.detail
    assert "psi=1" in found.remedy


@pytest.mark.parametrize(("source", "status"), [("tsc", "ok"), ("kvm-clock", "ok"), ("hpet", "warn")])
def test_a_slow_clock_is_a_warning(tmp_path: Path, source: str, status: str) -> None:
    folder = tmp_path / "devices/system/clocksource/clocksource0"
    folder.mkdir(parents=True)
    (folder / "current_clocksource").write_text(source + "\n")
    assert doctor_kernel.clock_source(str(tmp_path)).status == status


def test_low_inotify_limits_come_with_the_command_that_raises_them(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/inotify"
    folder.mkdir(parents=True)
    for name, value in (("max_user_instances", 8), ("max_user_watches", 100000), ("max_queued_events", 16384)):
        (folder / name).write_text(f"{value}\n")
    found = doctor_kernel.inotify(str(tmp_path))
    assert found.status == "warn"
    assert found.remedy == "sysctl -w fs.inotify.max_user_instances=64"


def test_the_mode_that_auto_takes_is_shown() -> None:
    assert doctor_cgroups.mode(facts(), "auto") == Finding("mode", "ok", "hybrid")


def test_a_host_that_cannot_enforce_caps_fails_with_the_reasons() -> None:
    host = facts(mode=None, why_not={"unified": ("no tree",), "hybrid": ("no cpu",), "legacy": ("no cpu",)})
    found = doctor_cgroups.mode(host, "auto")
    assert found.status == "fail"
    assert "no tree" in found.detail
    assert "unprivileged" in found.remedy


def test_a_configured_mode_that_is_not_possible_fails() -> None:
    found = doctor_cgroups.mode(facts(), "unified")
    assert found.status == "fail"
    assert "no cpu" in found.detail
    assert doctor_cgroups.mode(facts(), "legacy").status == "ok"


def test_unprivileged_is_a_warning_even_where_it_was_asked_for() -> None:
    assert doctor_cgroups.mode(facts(), "unprivileged").status == "warn"


@pytest.mark.parametrize("name", ["cpu", "memory", "pids"])
def test_a_missing_or_read_only_controller_fails(name: str) -> None:
    controllers = {one: point for one, point in facts().controllers.items() if one != name}
    assert doctor_cgroups.controller(facts(controllers=controllers), name, "caps", "get it").status == "fail"
    assert doctor_cgroups.controller(facts(writable={}), name, "caps", "get it").status == "fail"
    assert doctor_cgroups.controller(facts(), name, "caps", "get it").status == "ok"


def test_each_way_to_freeze_is_told_apart() -> None:
    assert "cgroup.freeze (v2)" in doctor_cgroups.freezer(facts()).detail
    assert "v1" in doctor_cgroups.freezer(facts(cgroup_freeze=False)).detail
    assert doctor_cgroups.freezer(facts(cgroup_freeze=False, controllers={})).status == "fail"


def test_a_kernel_without_cgroup_kill_names_the_fallback() -> None:
    found = doctor_cgroups.kill(facts(cgroup_kill=False))
    assert found.status == "warn"
    assert "fallback in use" in found.detail


def test_swap_that_is_not_counted_is_a_warning(tmp_path: Path) -> None:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename Type\n")
    assert doctor_cgroups.swap(facts(), str(swaps)).status == "ok"
    swaps.write_text("Filename Type\n/dev/sda2 partition\n")
    host = facts(controllers={"memory": str(tmp_path)})
    assert doctor_cgroups.swap(host, str(swaps)).status == "warn"
    (tmp_path / "memory.memsw.limit_in_bytes").write_text("1")
    assert doctor_cgroups.swap(host, str(swaps)).status == "ok"


def test_a_directory_that_is_there_or_can_be_made_is_good(tmp_path: Path) -> None:
    assert doctor_files.directory("run_dir", str(tmp_path), 1).status == "ok"
    found = doctor_files.directory("run_dir", str(tmp_path / "a" / "b"), 1)
    assert (found.status, f"will be made in {tmp_path}" in found.detail) == ("ok", True)
    assert not (tmp_path / "a").exists()


def test_a_file_in_the_place_of_a_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        found = doctor_files.directory("run_dir", str(path), 1)
        assert found.status == "fail"
        assert f"{tmp_path / 'a'} is no directory" in found.detail


def test_a_directory_that_everybody_can_write_to_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    found = doctor_files.directory("run_dir", str(tmp_path), 1)
    assert (found.status, found.remedy) == ("fail", f"chmod 0755 {tmp_path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_directory_of_somebody_elses_is_nothing_for_an_agent_of_roots(tmp_path: Path) -> None:
    os.chown(tmp_path, 1, 1)
    found = doctor_files.directory("run_dir", str(tmp_path), 1)
    assert (found.status, f"chown root {tmp_path}" in found.remedy) == ("fail", True)


def test_too_little_space_is_a_warning(tmp_path: Path) -> None:
    found = doctor_files.directory("log_dir", str(tmp_path), 2**60)
    assert found.status == "warn"
    assert "make room" in found.remedy


def test_a_store_that_everybody_can_write_to_fails(tmp_path: Path) -> None:
    assert doctor_files.store_directory(str(tmp_path)).status == "ok"
    tmp_path.chmod(0o777)
    assert doctor_files.store_directory(str(tmp_path)).status == "fail"
    assert doctor_files.store_directory(str(tmp_path / "none")).status == "ok"


def test_a_killswitch_file_is_a_warning_that_says_how_to_release(tmp_path: Path) -> None:
    file = tmp_path / "killswitch"
    assert doctor_files.killswitch_file(str(file)).status == "ok"
    file.symlink_to("/nowhere")
    found = doctor_files.killswitch_file(str(file))
    assert (found.status, f"rm {file}" in found.remedy) == ("warn", True)


def test_a_configuration_that_everybody_can_change_fails(tmp_path: Path) -> None:
    file = tmp_path / "garrison.toml"
    file.write_text("[")
    os.chmod(file, 0o666)
    found = list(doctor_files.configuration(None, "line 1: bad", str(file)))
    assert [finding.status for finding in found] == ["fail", "fail"]
    assert "line 1: bad" in found[0].detail
    assert found[1].remedy == f"chmod o-w {file}"


def test_the_worst_status_counts() -> None:
    good, bad = Finding("a", "ok", ""), Finding("b", "fail", "")
    assert doctor.worst([]) == "ok"
    assert doctor.worst([good, Finding("c", "warn", "")]) == "warn"
    assert doctor.worst([bad, good]) == "fail"
