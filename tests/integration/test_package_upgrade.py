"""Upgrades under a real systemd: the new version takes over, or the one before is put back."""

from __future__ import annotations

import pytest

from tests.integration._versions import REMOVE, Host, deb_first, deb_only

pytestmark = pytest.mark.timeout(600)


def test_a_newer_version_takes_over_and_an_older_one_again(host: Host) -> None:
    before = host.status()["agent"]
    told = host.install("good")
    assert "version 9.0.0 has taken over; everything ran again" in told
    after = host.status()["agent"]
    assert (after["version"], after["problems"]) == (f"9.{before['version']}", [])
    assert after["pid"] != before["pid"]
    assert host.running() == ["files", "process"]
    host.check_tree()
    assert "has taken over" in host.install("first")
    assert host.status()["agent"]["version"] == before["version"]
    host.check_tree()


@deb_first
def test_a_version_whose_worker_fails_is_taken_back(host: Host) -> None:
    before = host.status()["agent"]
    told = host.install("module-fails", fails=True)
    assert "version 9.2.0 is not healthy: worker files: " in told
    assert "broken by the test" in told
    assert "the version before was put back and runs" in told
    after = host.status()["agent"]
    assert after["version"] == before["version"]
    assert [text for text in after["problems"] if "the upgrade to 9.2.0 was taken back" in text]
    assert host.running() == ["files", "process"]
    host.check_tree()
    # The next upgrade starts from what was put back, and leaves nothing of it.
    assert "has taken over" in host.install("good")
    assert host.status()["agent"]["problems"] == []
    assert host.box.run("ls /opt/garrison/.refused").returncode != 0
    host.check_tree()


@deb_only
@pytest.mark.parametrize(
    ("name", "why"),
    [("dies", "has died"), ("unit", "it did not start (Result=exit-code ExecMainStatus=203)")],
)
def test_a_version_that_does_not_stay_up_is_taken_back(host: Host, name: str, why: str) -> None:
    before = host.status()["agent"]["version"]
    assert why in host.install(name, fails=True)
    assert host.status()["agent"]["version"] == before
    assert host.running() == ["files", "process"]
    host.check_tree()


@deb_only
def test_a_version_that_refuses_the_configuration_never_ends_the_running_one(host: Host) -> None:
    before = host.status()["agent"]["pid"]
    told = host.install("refuses", fails=True)
    assert "version 9.1.0 cannot take over here, the version before runs on without a gap" in told
    assert "no such library" in told
    after = host.status()["agent"]
    assert after["pid"] == before
    assert [text for text in after["problems"] if "the upgrade to 9.1.0 was taken back" in text]
    host.check_tree()
    # It has failed once, loudly; whoever installs something else next must not fail for it.
    again = host.box.run("dpkg --configure -a")
    assert again.returncode == 0, again.stdout
    assert "version 9.1.0 did not work here" in again.stdout
    assert host.status()["agent"]["pid"] == before


@deb_first
def test_an_agent_that_was_stopped_stays_so(host: Host) -> None:
    host.box.run("systemctl stop garrison")
    assert "the agent was not running, so it was not started" in host.install("good")
    assert host.box.run("systemctl is-active garrison").stdout.strip() == "inactive"
    assert host.box.run("systemctl is-enabled garrison").stdout.strip() == "enabled"
    host.box.run("systemctl start garrison")
    assert host.running() == ["files", "process"]


@deb_first
def test_an_upgrade_under_the_killswitch_starts_no_worker(host: Host) -> None:
    host.box.run("garrison kill --reason test")
    assert "has taken over" in host.install("good")
    assert host.running() == []
    assert host.status()["agent"]["killswitch"]["engaged"]


def test_removal_leaves_no_process_cgroup_or_socket(host: Host) -> None:
    done = host.box.run(REMOVE[host.family])
    assert done.returncode == 0, done.stdout
    assert "garrison" not in host.box.run("ls -l /proc/[0-9]*/exe 2> /dev/null").stdout
    left = host.box.run("find /sys/fs/cgroup -name '*garrison*'; ls -d /run/garrison /opt/garrison /opt/.garrison*")
    assert [line for line in left.stdout.splitlines() if "No such file" not in line] == []
    assert "could not be found" in host.box.run("systemctl status garrison garrison.slice").stdout
