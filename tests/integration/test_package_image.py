"""Both packages where no systemd runs, as when the image of a container or a machine is built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration._package_support import Built
from tests.integration._throwaway_root import need_copy, run_in_copy

pytestmark = pytest.mark.timeout(600)

LIST = "find / -xdev -name '*garrison*' -not -path '/var/lib/dpkg/info/*' | sort"
DEB = {
    "install": "dpkg --install /shared/*.deb",
    "remove": "dpkg --remove garrison",
    "known": "dpkg-query --status garrison",
}
# Debian's rpm knows nothing of what dpkg has installed.
RPM = {
    "install": "rpm --upgrade --force --nodeps /shared/*.rpm",
    "remove": "rpm --erase garrison",
    "known": "rpm --query garrison",
}


def said(built: Built, folder: Path, script: str) -> str:
    """Run a script as root in a copy of this machine's root, with the packages in /shared; it must end well."""
    need_copy()
    done = run_in_copy(folder, built.folder, script)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(params=["deb", "rpm"])
def family(request: pytest.FixtureRequest) -> dict[str, str]:
    need_copy()
    if shutil.which("dpkg" if request.param == "deb" else "rpm") is None:
        pytest.skip(f"the {request.param} tools are not installed")
    return DEB if request.param == "deb" else RPM


def test_it_installs_and_says_what_it_did_not_do(built: Built, family: dict[str, str], tmp_path: Path) -> None:
    told = said(
        built,
        tmp_path,
        f"set -e; {family['install']}; garrisond --check; garrison --help > /dev/null;"
        " cd /opt/garrison && sha256sum --check --quiet MANIFEST; grep ^garrison-worker: /etc/passwd;"
        " systemctl is-enabled garrison; echo all done",
    )
    assert "systemd does not run here, so the agent was not started" in told
    assert "settings are in /etc/garrison/garrison.toml" in told
    assert "\nenabled\nall done\n" in told


def test_a_helper_of_an_old_release_does_not_leave_it_disabled(built: Built, tmp_path: Path) -> None:
    told = said(
        built,
        tmp_path,
        "set -e; printf '#!/bin/sh\\nexit 1\\n' > /usr/bin/deb-systemd-helper;"
        f" {DEB['install']}; systemctl is-enabled garrison; systemctl disable garrison; {DEB['install']};"
        " systemctl is-enabled garrison || true",
    )
    assert "\nenabled\n" in told
    assert told.endswith("disabled\n"), told


def test_an_upgrade_keeps_the_configuration_and_what_was_disabled(
    built: Built, family: dict[str, str], tmp_path: Path
) -> None:
    told = said(
        built,
        tmp_path,
        f"set -e; {family['install']}; echo '# mine' >> /etc/garrison/garrison.toml; systemctl disable garrison;"
        " mkdir -p /etc/garrison/store/hids; echo key > /etc/garrison/store/hids/key;"
        f" echo upgrade; {family['install']}; tail -n 1 /etc/garrison/garrison.toml; cat /etc/garrison/store/hids/key;"
        " systemctl is-enabled garrison || true; ls -A /opt | grep garrison",
    )
    assert told.endswith("# mine\nkey\ndisabled\ngarrison\n"), told
    assert "systemd does not run here: whoever runs an agent restarts it" in told


def test_removal_leaves_configuration_state_and_events_and_nothing_else(
    built: Built, family: dict[str, str], tmp_path: Path
) -> None:
    told = said(
        built,
        tmp_path,
        f"set -e; {LIST} > /before; {family['install']}; echo '# mine' >> /etc/garrison/garrison.toml;"
        " mkdir -p /var/lib/garrison /var/log/garrison /run/garrison /opt/garrison/left; touch /opt/garrison/left/over;"
        f" {family['remove']}; echo removed; {LIST} | comm -13 /before -;"
        " tail -n 1 /etc/garrison/garrison.toml; ls -A /run/garrison 2> /dev/null || true",
    )
    left = told.partition("removed\n")[2].splitlines()
    assert left == [
        *("/etc/garrison", "/etc/garrison/garrison.toml", "/var/lib/garrison", "/var/log/garrison", "# mine")
    ], told


def test_a_purge_leaves_nothing_at_all(built: Built, tmp_path: Path) -> None:
    told = said(
        built,
        tmp_path,
        f"set -e; {LIST} > /before; {DEB['install']};"
        " mkdir -p /var/lib/garrison /var/log/garrison /run/garrison;"
        f" echo key > /etc/garrison/store/key; dpkg --purge garrison; {LIST} > /after; diff /before /after;"
        " ! grep garrison /etc/passwd /etc/group; ! dpkg-query --status garrison; echo clean",
    )
    assert told.endswith("clean\n"), told


def test_a_purge_empties_a_folder_that_is_mounted_and_goes_on(built: Built, tmp_path: Path) -> None:
    told = said(
        built,
        tmp_path,
        f"set -e; {DEB['install']}; mkdir -p /var/log/garrison; mount -t tmpfs tmpfs /var/log/garrison;"
        " touch /var/log/garrison/events.0.ndjson; dpkg --purge garrison; ls -A /var/log/garrison; ! ls /etc/garrison;"
        " ! grep garrison-worker /etc/passwd; ! dpkg-query --status garrison; echo clean",
    )
    assert "garrison: /var/log/garrison cannot be removed whole" in told
    assert told.endswith("clean\n"), told


def test_a_removal_leaves_nothing_where_the_folder_is_a_link(
    built: Built, family: dict[str, str], tmp_path: Path
) -> None:
    done = run_in_copy(
        tmp_path,
        built.folder,
        f"set -e; mkdir /srv/place; ln -s /srv/place /opt/garrison; {family['install']}; garrisond --check;"
        f" echo note > /opt/garrison/.refused; {family['remove']}; find /srv/place /opt/garrison; echo removed",
    )
    assert "cannot" not in done.stdout.partition("find")[0], done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("/srv/place/")] == [], done.stdout


def test_installing_again_after_a_removal_finds_the_configuration(
    built: Built, family: dict[str, str], tmp_path: Path
) -> None:
    told = said(
        built,
        tmp_path,
        f"set -e; {family['install']}; echo '# mine' >> /etc/garrison/garrison.toml; {family['remove']};"
        f" {family['install']}; tail -n 1 /etc/garrison/garrison.toml; {family['known']} > /dev/null;"
        " systemctl is-enabled garrison",
    )
    assert told.endswith("# mine\nenabled\n"), told


def test_a_full_disk_stops_the_upgrade_before_it_begins(built: Built, family: dict[str, str], tmp_path: Path) -> None:
    # /opt on a file system of its own that is full: no room for what is kept, none for what is new.
    told = said(
        built,
        tmp_path,
        f"set -e; mkdir /small; mount -t tmpfs -o size=260M tmpfs /opt; {family['install']};"
        f" head -c 300M /dev/zero > /opt/filler || true; ! {family['install']}; rm /opt/filler;"
        f" cd /opt/garrison && sha256sum --check --quiet MANIFEST; garrisond --check; {family['install']}; ls -A /opt",
    )
    assert told.endswith("garrison\n"), told
