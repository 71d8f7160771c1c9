"""Pure parsers of the process module: stat, status, cmdline, cgroup, passwd, socket tables."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.workers.process.containers import container_of
from garrison.workers.process.events import iso, text
from garrison.workers.process.procfs import ARGS_BYTES, parse_args, parse_stat, parse_uids, tty_name
from garrison.workers.process.sockets import Row, decode_address, find_row, inode_of, parse_row
from garrison.workers.users import Users, parse_passwd

HEX = "4f0a0c8a5d6a1f6f7e2e6f1d2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e"

STAT = (
    b"1234 (a) b (c) S 1 1200 1100 34816 1234 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 100 18446744073709551615 "
    b"94000000 94001000 140700000 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 1 2 3 4 5 6 7 0\n"
)


def test_a_stat_line_with_parentheses_in_the_name() -> None:
    stat = parse_stat(STAT)
    assert stat is not None
    assert stat.name == "a) b (c"
    assert (stat.ppid, stat.group, stat.session, stat.tty) == (1, 1200, 1100, 34816)
    assert stat.start_ticks == 98765
    assert stat.stamp != 0
    assert not stat.kernel


@given(st.binary(max_size=600))
def test_any_bytes_are_a_stat_line_or_none(data: bytes) -> None:
    stat = parse_stat(data)
    assert stat is None or isinstance(stat.ppid, int)


@given(st.binary(max_size=300))
def test_any_bytes_as_status_raise_nothing(data: bytes) -> None:
    parse_uids(data)
    parse_uids(b"\nUid:" + data)


def test_real_and_effective_user() -> None:
    assert parse_uids(b"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t1\t1\t1\t1\n") == (1000, 0)


@given(st.lists(st.binary(max_size=30).map(lambda arg: arg.replace(b"\0", b"")), min_size=1, max_size=8))
def test_arguments_come_back_byte_for_byte(args: list[bytes]) -> None:
    found, truncated = parse_args(b"".join(arg + b"\0" for arg in args))
    assert not truncated
    assert [os.fsencode(arg) for arg in found] == args


def test_long_arguments_are_cut() -> None:
    found, truncated = parse_args(b"sh\0" + b"x" * 600)
    assert truncated
    assert sum(map(len, found)) + len(found) - 1 == ARGS_BYTES


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0, ""),
        (34816, "pts/0"),
        (34817, "pts/1"),
        (0x8800 | 0x1000 << 8 & 0xFFF00000 | 5, "pts/261"),
        (1025, "tty1"),
        (1088, "ttyS0"),
        (1281, "console"),
        (0xE500, "hvc0"),
        (0xCC40, "ttyAMA0"),
        (0x0305, "3:5"),
    ],
)
def test_terminals_have_names(device: int, name: str) -> None:
    assert tty_name(device) == name


@given(st.integers(-(2**31), 2**32 - 1))
def test_any_terminal_number_has_a_name(device: int) -> None:
    assert tty_name(device) or device == 0


@pytest.mark.parametrize(
    ("line", "runtime"),
    [
        (f"0::/system.slice/docker-{HEX}.scope", "docker"),
        (f"12:memory:/docker/{HEX}", "docker"),
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-pod1_2.slice/cri-containerd-{HEX}.scope", "containerd"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/crio-{HEX}.scope", "cri-o"),
        (f"0::/machine.slice/libpod-{HEX}.scope", "podman"),
        (f"0::/machine.slice/libpod-{HEX}.scope/container", "podman"),
        (f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{HEX}.scope", "podman"),
        (f"4:cpu:/kubepods/besteffort/pod2a7c1b9e-0000-1111-2222-333344445555/{HEX}", ""),
        (f"0::/system.slice/nerdctl-{HEX}.scope", "containerd"),
        (f"5:cpu:/system.slice/containerd.service/kubepods-burstable-pod1.slice:cri-containerd:{HEX}", "containerd"),
        (f"3:cpu:/ecs/0123/{HEX}", "docker"),
    ],
)  # fmt: skip
def test_containers_by_id(line: str, runtime: str) -> None:
    assert container_of(f"1:name=systemd:/\n{line}\n") == (HEX, runtime)


def test_the_innermost_container_is_given() -> None:
    inner = HEX[::-1]
    assert container_of(f"0::/docker/{HEX}/docker/{inner}\n") == (inner, "docker")


@pytest.mark.parametrize(
    ("line", "name", "runtime"),
    [
        ("0::/lxc.payload.web1/init.scope", "web1", "lxc"),
        ("4:cpu:/lxc/web1", "web1", "lxc"),
        ("0::/machine.slice/machine-deb\\x2d12.scope/payload", "deb-12", "systemd-nspawn"),
        ("0::/machine.slice/systemd-nspawn@web.service/payload", "web", "systemd-nspawn"),
        ("4:cpu:/ecs/55091c13b8cf4801b527f9601742204d/15b3a5b56b2d4f6a8e1c2d3e4f5a6b7c-1234567890",
         "15b3a5b56b2d4f6a8e1c2d3e4f5a6b7c-1234567890", "containerd"),
    ],
)  # fmt: skip
def test_containers_by_name(line: str, name: str, runtime: str) -> None:
    assert container_of(line + "\n") == (name, runtime)


@pytest.mark.parametrize(
    "line",
    [
        "0::/",
        "0::/init.scope",
        "0::/system.slice/docker.service",
        "0::/user.slice/user-0.slice/session-1.scope",
        f"0::/machine.slice/libpod-conmon-{HEX}.scope",
        f"0::/kubepods.slice/crio-conmon-{HEX}.scope",
        "0::/machine.slice/machine-qemu\\x2d1\\x2dvm.scope",
        f"0::/system.slice/app-{HEX}0.service",
        "4:memory:/process_api/70c7de049007efb25b80f004810367dc",
        "",
        "no colons",
    ],
)
def test_what_is_no_container(line: str) -> None:
    assert container_of(line) is None


@given(st.text(max_size=300))
def test_any_text_as_cgroup_raises_nothing(data: str) -> None:
    container_of(data)
    container_of(f"0::{data}")


def test_users_are_read_again_when_the_file_changes(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/:/bin/sh\nbad line\n::5:\nx:y:-3:\nsecond:x:0:0:::\n")
    users = Users(str(passwd), check_seconds=2)
    assert users.name(0, 10.0) == "root"
    assert users.name(7, 10.0) is None
    passwd.write_text("root:x:0:0::/:/bin/sh\nseven:x:7:7:::\n")
    assert users.name(7, 11.0) is None
    assert users.name(7, 12.0) == "seven"
    passwd.unlink()
    assert users.name(7, 20.0) == "seven"


@given(st.binary(max_size=500))
def test_any_bytes_as_passwd_are_bounded(data: bytes) -> None:
    assert len(parse_passwd(data, limit=3)) <= 3


@given(st.binary(min_size=4, max_size=4), st.integers(0, 65535), st.sampled_from(["little", "big"]))
def test_ipv4_addresses(raw: bytes, port: int, order: str) -> None:
    shown = (raw[::-1] if order == "little" else raw).hex().upper()
    assert decode_address(f"{shown}:{port:04X}".encode(), order) == (socket.inet_ntop(socket.AF_INET, raw), port)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 65535))
def test_ipv6_addresses(raw: bytes, port: int) -> None:
    words = [raw[at : at + 4] for at in range(0, 16, 4)]
    shown = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words).hex().upper()
    address, found = decode_address(f"{shown}:{port:04X}".encode())
    assert found == port
    if not raw.startswith(bytes(10) + b"\xff\xff"):
        assert socket.inet_pton(socket.AF_INET6, address) == raw


def test_ipv4_in_ipv6_is_given_as_ipv4() -> None:
    assert decode_address(b"0000000000000000FFFF00000100007F:0050", "little") == ("127.0.0.1", 80)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_address_or_a_value_error(data: bytes) -> None:
    try:
        decode_address(data)
    except ValueError:
        return


HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(number: int, local: int, remote: int, state: str, inode: int) -> bytes:
    far = "0100007F" if remote else "00000000"
    return (
        f"{number:4}: 0100007F:{local:04X} {far}:{remote:04X} {state} 00000000:00000000 00:00000000 00000000     0"
        f"        0 {inode} 1 0000000000000000 20 4 30 10 -1\n"
    ).encode()


def reader(data: bytes, step: int):  # type: ignore[no-untyped-def]
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        part = data[at : at + min(size, step)]
        at += len(part)
        return part

    return read


@given(st.integers(20, 700), st.integers(2, 40), st.booleans())
def test_a_row_is_found_wherever_the_reads_are_cut(step: int, count: int, listening: bool) -> None:
    table = HEAD
    if listening:
        table += row(0, 1, 0, "0A", 900)
    for number in range(1, count):
        table += row(number, number, 80, "01", 1000 + number)
    found, inbound, cut = find_row(reader(table, step), 1001)
    assert found == Row("127.0.0.1", 1, "127.0.0.1", 80, b"01", 1001)
    assert inbound == listening
    assert not cut
    assert find_row(reader(table, step), 5)[0] is None


def test_a_search_is_bounded() -> None:
    table = HEAD + b"".join(row(number, 1, 80, "01", 1000 + number) for number in range(100))
    assert find_row(reader(table, 500), 1099, limit=1000) == (None, False, True)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_as_table_raise_nothing(data: bytes, step: int) -> None:
    find_row(reader(data, step), 7)
    for line in data.split(b"\n"):
        parse_row(line)


@pytest.mark.parametrize(
    ("link", "inode"), [("socket:[12]", 12), ("pipe:[12]", None), ("socket:[x]", None), ("", None)]
)
def test_the_inode_of_a_link(link: str, inode: int | None) -> None:
    assert inode_of(link) == inode


@given(st.text() | st.binary().map(os.fsdecode))
def test_text_for_events_is_always_valid(value: str) -> None:
    try:
        text(value).encode("utf-8")
    except UnicodeEncodeError:
        # Only bytes that came through surrogateescape are expected; other lone surrogates cannot come from the kernel.
        assert any("\ud800" <= char <= "\udfff" for char in value)


def test_times_have_milliseconds() -> None:
    assert iso(1700000000.25) == "2023-11-14T22:13:20.250Z"
