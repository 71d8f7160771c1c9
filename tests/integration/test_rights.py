"""Rights of a real process: what a filter refuses, what a drop leaves, and what is handed over to another user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from garrison.ipc.rights import SYSTEM_CALLS, SystemCalls
from garrison.supervisor.rights import capabilities, seccomp, systemcalls
from garrison.supervisor.rights.accounts import Account
from garrison.supervisor.rights.drop import hand_over

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NOBODY = Account("nobody", 65534, 65534, (4, 60))

DROP = """
import json, os, sys
from garrison.supervisor.rights import capabilities
from garrison.supervisor.rights.accounts import Account
from garrison.supervisor.rights.drop import drop
keep, for_exec = sys.argv[1].split(",") if sys.argv[1] else [], sys.argv[2] == "exec"
account = Account("nobody", 65534, 65534, (4, 60)) if sys.argv[3] == "nobody" else None
drop(account, capabilities.bits(keep), for_exec=for_exec)
status = [line.split(":", 1) for line in open("/proc/self/status")]
if for_exec:
    os.execv("/bin/cat", ["cat", "/proc/self/status"])
print("".join(":".join(pair) for pair in status))
"""

ATTEMPTS = """
import ctypes, errno, fcntl, json, os, resource, signal, socket, struct, sys, threading
from garrison.supervisor.rights import seccomp
folder, level = sys.argv[1:]
path = os.path.join(folder, "mine")
open(path, "w").close()
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def thread():
    started = threading.Thread(target=lambda: None)
    started.start()
    started.join()
def fork():
    if os.fork() == 0:
        os._exit(0)
    os.wait()
def write():
    with open(os.path.join(folder, "new"), "w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    os.rename(os.path.join(folder, "new"), os.path.join(folder, "newer"))
    os.unlink(os.path.join(folder, "newer"))
x86 = os.uname().machine == "x86_64"
attempts = {
    "thread": thread,
    "write": write,
    "fork": fork,
    "program": lambda: os.posix_spawn("/bin/true", ["true"], {}) and os.wait(),
    "connector": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11).close(),
    "routes": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    "internet": lambda: socket.socket(socket.AF_INET).close(),
    "pair": lambda: [end.close() for end in socket.socketpair()],
    "datagrams": lambda: [end.close() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)],
    "chmod": lambda: os.chmod(path, 0o600),
    "times": lambda: os.utime(path, (1, 1)),
    "attribute": lambda: os.setxattr(path, "user.x", b"1"),
    "link": lambda: os.link(path, path + "2"),
    "kill": lambda: os.kill(os.getpid(), 0),
    "typed": lambda: fcntl.ioctl(0, 0x5412, b"x"),
    "isatty": lambda: os.isatty(0),
    "own-limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "others-limits": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE),
    "namespace": lambda: call(272 if x86 else 97, 0x10000000),
    "attach": lambda: call(101 if x86 else 117, 16, os.getppid(), 0, 0),
    "mount": lambda: call(165 if x86 else 40, 0, 0, 0, 0, 0),
    "uring": lambda: call(425, 0, 0),
    "bpf": lambda: call(321 if x86 else 280, 0, 0, 0),
    "clone3": lambda: call(435, 0, 0),
    "future": lambda: call(1000),
}
seccomp.install(level)
answers = {}
for name, attempt in attempts.items():
    try:
        attempt()
        answers[name] = "ok"
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno, str(error.errno))
with open("/proc/self/status") as file:
    answers["status"] = dict(line.split(":", 1) for line in file.read().splitlines())
print(json.dumps(answers))
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def status_of(keep: str, follows: str, user: str) -> dict[str, str]:
    lines = run(DROP, keep, follows, user).splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def answers(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    level: SystemCalls = request.param
    if reason := seccomp.why_not():
        pytest.skip(reason)
    found: dict[str, Any] = json.loads(run(ATTEMPTS, str(tmp_path), level))
    return found


@pytest.mark.parametrize("answers", ["observe"], indirect=True)
def test_a_worker_that_observes_reads_writes_and_has_threads_and_nothing_else(answers: dict[str, Any]) -> None:
    status = answers.pop("status")
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    fine = {"thread", "write", "connector", "pair", "isatty", "own-limits"}
    assert {name for name, answer in answers.items() if answer == "ok"} == fine
    missing = {"clone3", "future"}
    assert {name for name, answer in answers.items() if answer == "ENOSYS"} == missing
    assert {answer for name, answer in answers.items() if name not in fine | missing} == {"EPERM"}


@pytest.mark.parametrize("answers", ["usual"], indirect=True)
def test_any_other_worker_may_not_administer_the_machine(answers: dict[str, Any]) -> None:
    refused = {name for name, answer in answers.items() if answer == "EPERM"}
    assert refused >= {"namespace", "attach", "mount", "uring", "bpf"}
    assert {answers[name] for name in ("clone3", "future")} == {"ENOSYS"}
    usable = {"thread", "write", "fork", "program", "internet", "chmod", "times", "kill"}
    assert {name for name in usable if answers[name] != "ok"} == set()


@pytest.mark.parametrize("answers", ["any"], indirect=True)
def test_without_a_filter_only_the_kernel_itself_refuses(answers: dict[str, Any]) -> None:
    assert answers["status"]["Seccomp"].strip() == "0"
    assert answers["status"]["NoNewPrivs"].strip() == "1"
    assert answers["fork"] == answers["program"] == answers["internet"] == "ok"


@pytest.mark.parametrize(
    ("keep", "follows", "user"),
    [
        ("", "nothing", "nobody"),
        ("dac_read_search,sys_ptrace", "nothing", "nobody"),
        ("net_raw", "exec", "nobody"),
        ("", "exec", "nobody"),
        ("net_raw", "exec", ""),
        ("", "exec", ""),
        ("fowner", "nothing", ""),
    ],
)
def test_a_process_has_what_it_was_given_and_nothing_else(keep: str, follows: str, user: str) -> None:
    status = status_of(keep, follows, user)
    wanted = capabilities.bits(keep.split(",") if keep else ())
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) == wanted, name
    assert status["NoNewPrivs"] == "1"
    if user:
        assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
        assert status["Groups"].split() == ["4", "60"]
        assert int(status["CapAmb"], 16) == (wanted if follows == "exec" else 0)
    else:
        assert status["Uid"].split() == ["0"] * 4


def test_a_capability_is_borrowed_for_a_moment_and_only_by_one_thread() -> None:
    code = """
import threading
from garrison.supervisor.rights import capabilities, own
own.lower()
before = capabilities.held()
assert set(capabilities.names(before.effective)) <= set(own.MASTER), before
seen = []
with capabilities.borrowed("dac_override"):
    inside = capabilities.held()
    other = threading.Thread(target=lambda: seen.append(capabilities.held()))
assert "dac_override" in capabilities.names(inside.effective)
other.start()
other.join()
assert seen == [before]
assert capabilities.held() == before
"""
    run(code)


def test_kernels_without_the_newer_call_take_the_filter_through_the_older_one() -> None:
    if reason := seccomp.why_not():
        pytest.skip(reason)
    code = """
import os
from garrison.supervisor.rights import seccomp
seccomp._SYS_SECCOMP = dict.fromkeys(seccomp._SYS_SECCOMP, 100000)
seccomp.install("observe")
print(open("/proc/self/status").read())
try:
    os.fork()
except PermissionError:
    print("no fork")
"""
    said = run(code)
    assert "Seccomp:\t2" in said
    assert "no fork" in said


def test_a_filter_is_small_and_made_ahead() -> None:
    for machine in systemcalls.MACHINES:
        for level in SYSTEM_CALLS[1:]:
            # 4096 steps are the kernel's limit (BPF_MAXINSNS).
            assert len(seccomp.program(level, machine)) // 8 < 1024
            assert seccomp.program(level, machine) is seccomp.program(level, machine)


# Handing over


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "workers" / "x"


def test_a_folder_is_made_for_the_worker_alone_and_can_be_reached(folder: Path) -> None:
    assert hand_over(NOBODY, str(folder), ()) == ""
    found = folder.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (65534, 65534, 0o700)
    for above in (folder.parent, folder.parent.parent):
        assert (above.stat().st_uid, above.stat().st_mode & 0o7777) == (0, 0o711)


def test_what_an_earlier_agent_left_is_handed_over_once(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.parent.parent.chmod(0o700)
    folder.chmod(0o755)
    (folder / "deep").mkdir()
    for name in ("baseline.db", "deep/more"):
        (folder / name).write_text("x")
    assert hand_over(NOBODY, str(folder), ()) == ""
    assert {path.stat().st_uid for path in (folder, *folder.rglob("*"))} == {65534}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.parent.stat().st_mode & 0o777 == 0o711
    # From now on it is the worker's, who may have put anything there.
    (folder / "planted").write_text("x")
    assert hand_over(NOBODY, str(folder), ()) == ""
    assert (folder / "planted").stat().st_uid == 0


def test_nothing_outside_is_handed_over(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("linked", "pointed"):
        (outside / name).write_text("secret")
    folder.mkdir(parents=True)
    os.link(outside / "linked", folder / "hard")
    (folder / "soft").symlink_to(outside / "pointed")
    (folder / "away").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    assert hand_over(NOBODY, str(folder), ()) == ""
    assert {path.stat().st_uid for path in (outside, *outside.iterdir())} == {0}
    assert (folder / "fifo").stat().st_uid == 0


def test_a_folder_that_is_a_link_is_refused_and_nothing_changes(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    assert "cannot be handed over to user nobody" in hand_over(NOBODY, str(folder), ())
    assert outside.stat().st_uid == 0


def test_a_folder_with_too_much_in_it_is_left_to_the_operator(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(1100):
        (folder / f"f{number}").touch()
    assert "chown it by hand" in hand_over(NOBODY, str(folder), ())
    assert folder.stat().st_uid == 0


def test_a_worker_that_becomes_root_again_gets_its_folder_back(folder: Path) -> None:
    assert hand_over(NOBODY, str(folder), ()) == ""
    (folder / "x").write_text("x")
    os.chown(folder / "x", 65534, 65534)
    assert hand_over(Account("root", 0, 0), str(folder), ()) == ""
    assert {path.stat().st_uid for path in (folder, folder / "x")} == {0}
    # One that was never there is the module's to make.
    assert hand_over(Account("root", 0, 0), str(folder.parent / "other"), ()) == ""
    assert not (folder.parent / "other").exists()
