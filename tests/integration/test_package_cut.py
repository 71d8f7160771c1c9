"""Upgrades that are cut off, and administrators who have stopped, masked or changed something, under a real systemd."""

from __future__ import annotations

import pytest

from tests.integration._versions import INSTALL, REMOVE, Host, deb_first, deb_only, thorough

pytestmark = pytest.mark.timeout(600)

KEPT = "/opt/.garrison-before"


def cut_off(host: Host, name: str) -> None:
    """Begin to install a version, and kill the package manager as soon as the one that runs is kept."""
    host.versions.need(name, host.family)
    install = INSTALL[host.family].format(name)
    done = host.box.run(
        f"{install} > /tmp/cut 2>&1 & manager=$!; tries=0;"
        f" until [ -e {KEPT}/state ] || [ $tries = 2000 ]; do sleep 0.02; tries=$((tries + 1)); done;"
        f" kill -9 $manager $(pgrep -P $manager); wait $manager; cat /tmp/cut; [ -e {KEPT}/state ] &&"
        # rpm names its temporary files by the second, and does not go over those of another try.
        " sleep 1.1"
    )
    assert done.returncode == 0, done.stdout


def again(host: Host, name: str, *, fails: bool = False) -> str:
    """Install over what was cut off; rpm has it in its books already, maybe."""
    return host.install(name, fails=fails, options="--force" if host.family == "rpm" else "")


def unpack(host: Host, name: str) -> None:
    host.versions.need(name, "deb")
    done = host.box.run(f"dpkg --unpack /shared/{name}.deb")
    assert done.returncode == 0, done.stdout


def configure(host: Host, *, fails: bool = False) -> str:
    done = host.box.run("GARRISON_TAKEOVER_SECONDS=30 dpkg --configure --pending")
    assert done.returncode == int(fails), done.stdout
    return done.stdout


@thorough
def test_after_an_upgrade_that_was_cut_off_the_version_that_ran_is_still_the_way_back(host: Host) -> None:
    before = host.status()["agent"]["version"]
    cut_off(host, "good")
    told = again(host, "module-fails", fails=True)
    assert "an upgrade before this one did not come to its end" in told
    assert "the version before was put back and runs" in told
    assert host.status()["agent"]["version"] == before
    assert host.running() == ["files", "process"]
    host.check_tree()


@deb_first
def test_an_upgrade_that_was_cut_off_is_finished_by_another_try(host: Host) -> None:
    cut_off(host, "good")
    assert "version 9.0.0 has taken over" in again(host, "good")
    assert host.status()["agent"]["version"].startswith("9.")
    host.check_tree()


@deb_only
@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=thorough)])
def test_a_put_back_that_was_cut_off_goes_on(host: Host, in_place: bool) -> None:
    before = host.status()["agent"]["version"]
    unpack(host, "module-fails")
    # As put_back leaves it when it is killed before and after its second rename.
    host.box.run(f"printf '9.2.0\\nit was tried\\n' > {KEPT}/refused; mv /opt/garrison {KEPT}/new")
    if in_place:
        host.box.run(f"mv {KEPT}/opt /opt/garrison")
    told = configure(host, fails=True)
    assert "putting the version before back was cut off; it goes on" in told
    assert "the version before was put back and runs" in told
    assert host.status()["agent"]["version"] == before
    host.check_tree()
    assert "version 9.2.0 did not work here, the version before runs: it was tried" in configure(host)
    assert host.running() == ["files", "process"]


@deb_only
@thorough
def test_a_full_disk_does_not_keep_the_version_before_from_coming_back(host: Host) -> None:
    before = host.status()["agent"]["version"]
    mounted = "mkdir /tmp/opt && cp -a /opt/garrison /tmp/opt && mount -t tmpfs -o size=260M,mode=755 tmpfs /opt"
    done = host.box.run(f"set -e; {mounted}; mv /tmp/opt/garrison /opt; rmdir /tmp/opt; systemctl restart garrison")
    assert done.returncode == 0, done.stdout
    try:
        unpack(host, "module-fails")
        host.box.run("head -c 300M /dev/zero > /opt/filler")
        told = configure(host, fails=True)
        assert "the version before was put back and runs" in told
        assert host.status()["agent"]["version"] == before
        assert host.running() == ["files", "process"]
        host.box.run("rm /opt/filler")
        host.check_tree()
        assert "the version before runs: " in configure(host)
    finally:
        host.box.run("systemctl stop garrison; umount --lazy /opt")


@thorough
def test_what_an_older_life_has_left_is_no_upgrade(host: Host) -> None:
    host.box.run(f"{REMOVE[host.family]}; mkdir -p {KEPT}/opt/bin; echo active > {KEPT}/state")
    told = host.install("first")
    assert "settings are in /etc/garrison/garrison.toml" in told
    assert host.running() == ["files", "process"]
    host.check_tree()


@deb_only
@thorough
def test_an_agent_that_is_stopped_while_others_are_unpacked_stays_so(host: Host) -> None:
    unpack(host, "good")
    host.box.run("systemctl stop garrison")
    assert "the agent was not running, so it was not started" in configure(host)
    assert host.box.run("systemctl is-active garrison").stdout.strip() == "inactive"


@deb_only
def test_a_unit_that_is_masked_is_left_alone(host: Host) -> None:
    before = host.status()["agent"]["pid"]
    host.box.run("systemctl mask garrison")
    try:
        assert "the unit is masked, so the agent was neither started nor restarted" in host.install("good")
        assert host.status()["agent"]["pid"] == before
        host.check_tree()
    finally:
        host.box.run("systemctl unmask garrison")


@deb_only
@thorough
def test_a_unit_that_failed_and_is_disabled_is_not_started(host: Host) -> None:
    host.box.run(
        "echo 'no_such_setting = 1' >> /etc/garrison/garrison.toml; systemctl restart garrison;"
        " systemctl disable garrison"
    )
    assert host.box.run("systemctl is-active garrison").stdout.strip() == "failed"
    assert "so it was not started" in host.install("good", options="--force-confold")
    assert host.box.run("systemctl is-active garrison").stdout.strip() == "failed"


@thorough
def test_a_drop_in_with_another_configuration_is_heeded(host: Host) -> None:
    drop_in = "/etc/systemd/system/garrison.service.d"
    done = host.box.run(
        f"set -e; mkdir -p {drop_in} /srv/other; sed 's,^.agent.$,[agent]\\nrun_dir = \"/run/garrison/other\",'"
        " /etc/garrison/garrison.toml > /srv/other/garrison.toml;"
        " printf '[Service]\\nExecStart=\\nExecStart=/usr/sbin/garrisond --config /srv/other/garrison.toml\\n'"
        f" > {drop_in}/other.conf; systemctl daemon-reload; systemctl restart garrison;"
        " garrison --config /srv/other/garrison.toml status"
    )
    try:
        assert done.returncode == 0, done.stdout
        assert "has taken over" in host.install("good")
        assert host.box.run("garrison --config /srv/other/garrison.toml status").returncode == 0
    finally:
        host.box.run(f"rm -r {drop_in} /srv/other; systemctl daemon-reload")
