"""Mount tables and memberships as recorded on hosts of each kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.cgroups.hierarchy import (
    Mount,
    by_key,
    parse_membership,
    parse_mountinfo,
    path_of,
    unescape,
)

V2_ONLY = """\
24 30 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
29 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""
V2_MEMBER = "0::/system.slice/garrison.service\n"

SYSTEMD_HYBRID = """\
26 20 0:23 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
27 26 0:24 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup rw,nsdelegate
28 26 0:25 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
32 26 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:16 - cgroup cgroup rw,cpu,cpuacct
33 26 0:30 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:17 - cgroup cgroup rw,memory
34 26 0:31 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:18 - cgroup cgroup rw,pids
35 26 0:32 / /sys/fs/cgroup/freezer rw,nosuid,nodev,noexec,relatime shared:19 - cgroup cgroup rw,freezer
"""
HYBRID_MEMBER = """\
6:freezer:/
5:pids:/system.slice/garrison.service
4:memory:/system.slice/garrison.service
3:cpu,cpuacct:/system.slice/garrison.service
1:name=systemd:/system.slice/garrison.service
0::/system.slice/garrison.service
"""

OLD_V1 = """\
20 1 0:18 / /cgroup rw,relatime - cgroup none rw,seclabel,cpuset,cpu,cpuacct,memory,devices,freezer,release_agent=/x
"""

CONTAINER = r"""
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro,nosuid master:11 - cgroup cgroup rw,cpu
33 31 0:29 / /my\040cgroups/cpu rw,relatime - cgroup cgroup rw,cpu
34 31 0:29 /docker/abc /other/cpu rw - cgroup cgroup rw,cpu
36 31 0:31 /../.. /outside rw - cgroup cgroup rw,memory
"""


def test_a_v2_only_host_has_one_hierarchy() -> None:
    mounts = parse_mountinfo(V2_ONLY)
    assert mounts == (Mount(2, frozenset(), "", "/", "/sys/fs/cgroup"),)
    membership = parse_membership(V2_MEMBER)
    assert path_of(mounts[0], membership) == "/system.slice/garrison.service"
    assert mounts[0].directory("/system.slice/garrison.service") == "/sys/fs/cgroup/system.slice/garrison.service"


def test_comounted_controllers_share_a_mount_and_are_each_a_key() -> None:
    keyed = by_key(parse_mountinfo(SYSTEMD_HYBRID))
    assert keyed["cpu"] is keyed["cpuacct"]
    assert keyed["cpu"].point == "/sys/fs/cgroup/cpu,cpuacct"
    assert set(keyed) == {"", "name=systemd", "cpu", "cpuacct", "memory", "pids", "freezer"}
    assert keyed["name=systemd"].controllers == frozenset()
    membership = parse_membership(HYBRID_MEMBER)
    assert path_of(keyed["cpuacct"], membership) == "/system.slice/garrison.service"
    assert path_of(keyed["freezer"], membership) == "/"
    assert path_of(keyed["name=systemd"], membership) == "/system.slice/garrison.service"
    assert path_of(keyed[""], membership) == "/system.slice/garrison.service"


def test_all_controllers_in_one_old_mount_are_found_among_its_options() -> None:
    (mount,) = parse_mountinfo(OLD_V1)
    assert mount.controllers == {"cpuset", "cpu", "cpuacct", "memory", "devices", "freezer"}
    assert path_of(mount, parse_membership("2:cpuset,cpu,cpuacct,memory,devices,freezer:/a:b c\n")) == "/a:b c"


def test_of_several_mounts_the_writable_one_that_shows_most_is_used() -> None:
    mounts = parse_mountinfo(CONTAINER)
    assert by_key(mounts)["cpu"].point == "/my cgroups/cpu"
    assert [mount.writable for mount in mounts if "cpu" in mount.controllers] == [False, True, True]


def test_a_bind_mount_shows_what_is_below_its_root_only() -> None:
    (mount,) = [mount for mount in parse_mountinfo(CONTAINER) if mount.point == "/other/cpu"]
    assert mount.directory("/docker/abc") == "/other/cpu"
    assert mount.directory("/docker/abc/garrison") == "/other/cpu/garrison"
    assert mount.directory("/docker/abcdef") is None
    assert mount.directory("/") is None
    assert mount.path("/garrison") == "/docker/abc/garrison"


def test_a_group_outside_the_namespace_has_no_directory() -> None:
    (outside,) = [mount for mount in parse_mountinfo(CONTAINER) if mount.point == "/outside"]
    assert outside.directory("/garrison") is None
    (mount,) = parse_mountinfo(V2_ONLY)
    assert mount.directory("/../other") is None


def test_what_is_mounted_over_a_hierarchy_hides_it() -> None:
    over = V2_ONLY + "50 29 0:40 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert parse_mountinfo(over) == ()
    again = over + "51 50 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
    assert [mount.writable for mount in parse_mountinfo(again)] == [False]


def test_a_removed_group_is_nobodys() -> None:
    (mount,) = parse_mountinfo(V2_ONLY)
    path = path_of(mount, parse_membership("0::/garrison/workers/w (deleted)\n"))
    assert path is not None
    assert mount.directory(path) != "/sys/fs/cgroup/garrison/workers/w"


def test_a_process_of_another_namespace_is_not_listed() -> None:
    assert path_of(Mount(1, frozenset({"cpu"}), "", "/", "/x"), {}) is None


@given(st.text())
def test_no_text_upsets_the_parsers(text: str) -> None:
    parse_mountinfo(text)
    parse_membership(text)


@given(st.text(alphabet=" \t\n\\abc#", min_size=1))
def test_escaped_mount_points_come_back(point: str) -> None:
    escaped = "".join(f"\\{ord(mark):03o}" if mark in " \t\n\\#" else mark for mark in point)
    (mount,) = parse_mountinfo(f"1 2 0:1 / /{escaped} rw - cgroup cgroup rw,cpu\n")
    assert mount.point == f"/{point}"
    assert unescape(escaped) == point


names = st.text(alphabet="abc-._", min_size=1).filter(lambda name: name not in (".", ".."))


@given(st.lists(names, max_size=3), st.lists(names, max_size=3))
def test_path_and_inside_are_inverse(root: list[str], relative: list[str]) -> None:
    mount = Mount(2, frozenset(), "", "/" + "/".join(root), "/m")
    path = mount.path("/".join(relative))
    assert mount.inside(path) == "/".join(relative)
    assert mount.directory(path) == "/".join(["/m", *relative])


@pytest.mark.parametrize("line", ["", "1 2 3", "1 2 0:1 / /x rw - cgroup", "1 2 0:1 / /x rw cgroup cgroup rw,cpu"])
def test_lines_that_are_no_mounts_are_left_out(line: str) -> None:
    assert parse_mountinfo(line) == ()
