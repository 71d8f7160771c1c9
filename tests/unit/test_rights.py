"""Rights, the pure part: what is granted, whose account it is, and what the filters of system calls answer."""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from garrison.ipc.rights import CAPABILITIES, SYSTEM_CALLS
from garrison.supervisor.nursery.protocol import Rights
from garrison.supervisor.rights import capabilities, own, seccomp, systemcalls
from garrison.supervisor.rights.accounts import Account, NoAccountError, find, lookup
from garrison.supervisor.rights.grant import RightsError, grant, told
from garrison.supervisor.settings import Settings, Worker
from garrison.supervisor.settings.load import loads
from garrison.supervisor.settings.places import surroundings
from garrison.supervisor.settings.problems import ConfigurationError
from garrison.supervisor.worker.rights import WORKER_USER, rights_of
from garrison.workers.runtime.loader import builtins, load

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "garrison.service"
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
ALL = (1 << len(CAPABILITIES)) - 1

names = st.sets(st.sampled_from(CAPABILITIES))
machines = st.sampled_from(sorted(systemcalls.MACHINES))


@given(names)
def test_names_and_bits_of_capabilities_are_each_others_inverse(some: set[str]) -> None:
    assert set(capabilities.names(capabilities.bits(some))) == some


def test_capabilities_have_the_numbers_of_the_kernel() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    found = re.findall(r"^#define CAP_([A-Z_]+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    assert len(found) > 36
    for name, number in found:
        assert CAPABILITIES[int(number)] == name.lower()


def test_a_capability_of_a_newer_kernel_has_a_name_too() -> None:
    assert capabilities.names(1 << 63 | 1) == ("chown", "cap_63")


# Grants


@given(names, names)
def test_what_modules_declare_is_given_as_far_as_there_is(declared: set[str], had: set[str]) -> None:
    given_ = grant(declared, None, capabilities.bits(had), user_is_chosen=False)
    found = set(capabilities.names(given_.capabilities))
    assert found == declared & had
    assert set(given_.missing) == declared - had
    assert given_.keeps_user == bool(declared - had)


@given(names, names, names)
def test_what_the_settings_demand_is_had_or_nothing_starts(declared: set[str], wanted: set[str], had: set[str]) -> None:
    if wanted <= had:
        given_ = grant(declared, tuple(wanted), capabilities.bits(had), user_is_chosen=False)
        assert set(capabilities.names(given_.capabilities)) == wanted
        assert not given_.keeps_user
        return
    with pytest.raises(RightsError, match="CapabilityBoundingSet=") as error:
        grant(declared, tuple(wanted), capabilities.bits(had), user_is_chosen=False)
    for name in wanted - had:
        assert f"CAP_{name.upper()}" in str(error.value)


def test_a_chosen_user_is_never_another_one() -> None:
    assert not grant({"net_admin"}, None, 0, user_is_chosen=True).keeps_user


def test_what_is_told_of_a_grant() -> None:
    given_ = grant({"net_admin", "sys_ptrace"}, None, ALL, user_is_chosen=False)
    assert (
        told("nobody", given_, "observe") == "user nobody, capabilities: net_admin, sys_ptrace, system calls: observe"
    )
    assert told("x", grant((), None, 0, user_is_chosen=False), "usual").startswith("user x, capabilities: none,")


# Accounts

PASSWD = """root:x:0:0:root:/root:/bin/bash
# a comment
broken
short:x:1
letters:x:a:b:::
wörker:x:998:997:Ünicode:/nonexistent:/usr/sbin/nologin
worker:x:998:997::/nonexistent:/usr/sbin/nologin
worker:x:0:0:a second entry::
"""
GROUP = "root:x:0:\nadm:x:4:syslog,worker\nsystemd-journal:x:101:worker\nbad:x:z:worker\nother:x:7:workers,xworker\n"


def test_an_account_is_the_first_entry_with_its_groups() -> None:
    assert find("worker", PASSWD, GROUP) == Account("worker", 998, 997, (4, 101))
    assert find("root", PASSWD, GROUP) == Account("root", 0, 0, ())
    for name in ("short", "letters", "broken", "", "#", "nobody"):
        assert find(name, PASSWD, GROUP) is None


@given(st.text(max_size=8), st.text(max_size=200), st.text(max_size=200))
@example("a", "a:x:1:1", "g:x:" + "9" * 3 + ":a")
def test_an_account_of_any_text_is_none_or_has_that_name(name: str, passwd: str, group: str) -> None:
    found = find(name, passwd, group)
    assert found is None or (found.name == name and found.uid >= 0)


def test_a_missing_user_says_where_it_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(PASSWD)
    with pytest.raises(NoAccountError, match="group cannot be read"):
        lookup("worker", str(tmp_path))
    (tmp_path / "group").write_text(GROUP)
    with pytest.raises(NoAccountError, match=f"no user nobody in {tmp_path}/passwd"):
        lookup("nobody", str(tmp_path))
    assert lookup("worker", str(tmp_path)).uid == 998


def test_the_rights_of_a_worker_follow_from_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "group").write_text(GROUP)
    (tmp_path / "passwd").write_text(PASSWD)
    assert rights_of(Worker(modules=("files",)), str(tmp_path)) == Rights()
    chosen = rights_of(Worker(user="worker", capabilities=("none",), system_calls="any"), str(tmp_path))
    assert chosen == Rights(
        user="worker", uid=998, gid=997, groups=(4, 101), user_is_chosen=True, capabilities=(), system_calls="any"
    )
    (tmp_path / "passwd").write_text(f"{WORKER_USER}:x:990:991::/nonexistent:/usr/sbin/nologin\n")
    assert rights_of(Worker(), str(tmp_path)) == Rights(user=WORKER_USER, uid=990, gid=991)
    with pytest.raises(NoAccountError):
        rights_of(Worker(user="worker"), str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert rights_of(Worker(), str(tmp_path)) == Rights()


# Settings


def settings_of(workers: str) -> Settings:
    return loads(workers.encode(), "a test", surroundings())


def test_settings_name_users_capabilities_and_filters() -> None:
    settings = settings_of(
        """
        [agent]
        worker_user = "nobody"
        [workers.files]
        [workers.outside]
        command = ["/bin/true"]
        user = "daemon"
        capabilities = ["net_raw", "sys_ptrace"]
        system_calls = "any"
        """
    )
    assert settings.workers["files"].user == "nobody"
    outside = settings.workers["outside"]
    assert (outside.user, outside.capabilities, outside.system_calls) == ("daemon", ("net_raw", "sys_ptrace"), "any")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('capabilities = ["none", "net_raw"]', 'has "none" among others'),
        ('capabilities = ["CAP_NET_RAW"]', 'did you mean "net_raw"'),
        ('capabilities = ["net_row"]', 'did you mean "net_raw"'),
        ('capabilities = ["&%"]', "capabilities(7)"),
        ('system_calls = "observe"', "no program can start under"),
        ('system_calls = "some"', "allowed is declared, any, usual, observe"),
        ('user = "../etc"', "a user's name"),
    ],
)
def test_rights_that_cannot_be_are_refused_with_a_reason(line: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        settings_of(f'[workers.outside]\ncommand = ["/bin/true"]\n{line}\n')
    assert f"workers.outside.{line.split(maxsplit=1)[0]}" in str(error.value)
    assert expected in str(error.value)


# System calls


@pytest.mark.parametrize("machine", sorted(systemcalls.MACHINES))
def test_system_calls_have_the_numbers_of_the_kernel(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    known = {
        name: int(number)
        for name, number in re.findall(r"^#define\s+__NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    }
    column = systemcalls.MACHINES[machine].column
    for table in (systemcalls.ADMINISTRATIVE, systemcalls.CHANGING, systemcalls.PARTLY):
        for name, numbers in table.items():
            number = numbers[column]
            assert number is None or number <= systemcalls.NEWEST
            if name in known:
                assert number == known[name], name
            elif number is not None:
                # Newer than these headers, or gone from them.
                assert number > max(known.values()) or name in ("create_module", "nfsservctl"), name


def answer(code: bytes, machine_audit: int, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """Run a filter as the kernel would, and return what it returns; every jump goes forward."""
    data = struct.pack("=iIQ6Q", number if number < 2**31 else number - 2**32, machine_audit, 0, *arguments)
    steps = list(struct.iter_unpack("=HBBI", code))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, value = steps[at]
        at += 1
        if operation == 0x20:
            assert value % 4 == 0
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            at += value
        elif operation == 0x06:
            return value
        else:
            test = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            at += yes if test[operation] else no


ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026


@given(st.sampled_from(SYSTEM_CALLS[1:]), machines, st.integers(0, 1024))
def test_a_filter_refuses_what_is_listed_and_nothing_else(level: str, machine: str, number: int) -> None:
    audit, column = systemcalls.MACHINES[machine]
    tables = [systemcalls.ADMINISTRATIVE] + ([systemcalls.CHANGING] if level == "observe" else [])
    refused = {numbers[column] for table in tables for numbers in table.values()}
    partly = {numbers[column] for numbers in systemcalls.PARTLY.values()}
    if number in partly:
        return
    expected = UNKNOWN if number > systemcalls.NEWEST else REFUSE if number in refused else ALLOW
    assert answer(seccomp.program(level, machine), audit, number) == expected  # type: ignore[arg-type]


@given(st.sampled_from(SYSTEM_CALLS[1:]), machines, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_call_of_another_machine_is_refused(level: str, machine: str, other: int, number: int) -> None:
    audit = systemcalls.MACHINES[machine].audit
    if other != audit:
        assert answer(seccomp.program(level, machine), other, number) == REFUSE  # type: ignore[arg-type]


def test_x32_numbers_are_unknown() -> None:
    audit = systemcalls.MACHINES["x86_64"].audit
    assert answer(seccomp.program("usual", "x86_64"), audit, 0x40000000 + 101) == UNKNOWN


@pytest.mark.parametrize("machine", sorted(systemcalls.MACHINES))
def test_what_depends_on_arguments(machine: str) -> None:
    audit, column = systemcalls.MACHINES[machine]

    def asked(level: str, name: str, *arguments: int) -> int:
        number = systemcalls.PARTLY[name][column]
        assert number is not None
        code = seccomp.program(level, machine)  # type: ignore[arg-type]
        return answer(code, audit, number, (*arguments, *(0,) * (6 - len(arguments))))

    thread, fork = 0x3D0F00, 0x1200011
    for level in SYSTEM_CALLS[1:]:
        assert asked(level, "clone3") == UNKNOWN
        assert asked(level, "clone", thread) == ALLOW
        for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            assert asked(level, "clone", thread | flag) == REFUSE
    assert asked("usual", "clone", fork) == ALLOW
    assert asked("observe", "clone", fork) == REFUSE
    for family, protocol, expected in (
        *((16, 11, ALLOW), (16, 4, REFUSE), (16, 0, REFUSE), (16, 12, REFUSE)),
        *((1, 0, REFUSE), (2, 6, REFUSE), (10, 11, REFUSE), (17, 4, REFUSE)),
    ):
        assert asked("observe", "socket", family, 2, protocol) == expected
        assert asked("usual", "socket", family, 2, protocol) == ALLOW
    stream, datagram, record = 1, 2, 5
    for kind, expected in ((stream, ALLOW), (record, ALLOW), (datagram, REFUSE)):
        for flags in (0, 0x80000, 0x800):
            assert asked("observe", "socketpair", 1, kind | flags) == expected
            assert asked("usual", "socketpair", 1, kind | flags) == ALLOW
    for request, expected in (
        (0x5401, ALLOW),
        (0x5451, ALLOW),
        (0x541B, ALLOW),
        (0x5412, REFUSE),
        (0x40086602, REFUSE),
    ):
        assert asked("observe", "ioctl", 0, request) == expected
    assert asked("observe", "prlimit64", 0) == ALLOW
    assert asked("observe", "prlimit64", 1) == REFUSE


def test_the_loosest_filter_lets_all_modules_work() -> None:
    assert seccomp.loosest(("observe", "usual")) == "usual"
    assert seccomp.loosest(("observe", "any", "usual")) == "any"
    assert seccomp.loosest(()) == "usual"
    assert seccomp.loosest(("observe",)) == "observe"


def test_an_unknown_machine_has_no_filter_and_says_so() -> None:
    assert "s390x" in seccomp.why_not("s390x")


@pytest.mark.parametrize(
    ("answer", "reason"), [(errno.EFAULT, ""), (errno.EACCES, ""), (errno.EINVAL, "has no filters of system calls")]
)
def test_a_kernel_with_the_strict_mode_alone_has_no_filters(
    answer: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prctl(*_: int) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(seccomp, "prctl", prctl)
    found = seccomp.why_not("x86_64")
    assert reason in found
    assert bool(found) == bool(reason)


# The unit


def test_the_workers_table_is_what_the_modules_declare() -> None:
    declared: set[str] = set()
    for name in builtins():
        kind = load(name, name)
        assert set(kind.capabilities) <= set(CAPABILITIES)
        assert kind.system_calls == "observe", "a worker of our own changes nothing of the host"
        declared.update(kind.capabilities)
    assert declared == set(own.WORKERS)


def test_the_unit_gives_what_is_needed_and_nothing_else() -> None:
    line = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert line is not None
    assert sorted(line[1].split()) == sorted(own.needed())


def test_the_unit_has_the_score_that_it_states() -> None:
    stated = re.search(r"of systemd 252 says (\d+\.\d)", UNIT.read_text())
    assert stated is not None
    program = shutil.which("systemd-analyze")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True) if program else None
    if version is None or not version.stdout.startswith("systemd 252"):
        pytest.skip("no systemd-analyze of systemd 252")
    shown = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"exposure level for garrison.service: (\d+\.\d)", shown.stdout)
    assert found is not None, shown.stderr
    assert found[1] == stated[1]
