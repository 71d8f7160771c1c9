"""Children that are born in their cgroup, by a real clone3 in a process with one thread."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.supervisor.cgroups.hierarchy import UNIFIED_KEY, by_key, read_mounts
from garrison.supervisor.nursery import fork

PARENT = """
import json, os, sys, threading, time
from garrison.supervisor.nursery import fork
directory = sys.argv[1]
after = []
os.register_at_fork(before=lambda: after.append("before"), after_in_parent=lambda: after.append("parent"),
                    after_in_child=lambda: after.append("child"))
read, write = os.pipe()
pid, pidfd = fork.into(directory)
if pid == 0:
    try:
        thread = threading.Thread(target=lambda: after.append("thread"))
        thread.start()
        thread.join()
        # The clock's number holds the thread id that the C library believes in: ~id << 3 | 6.
        believed = ~(time.pthread_getcpuclockid(threading.get_ident()) >> 3)
        facts = dict(pid=os.getpid(), tid=threading.get_native_id(), believed=believed, after=list(after),
                     main=threading.current_thread() is threading.main_thread(), pidfd=pidfd,
                     cgroup=open("/proc/self/cgroup").read(), fds=len(os.listdir("/proc/self/fd")))
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(5)
        facts["grandchild"] = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        os.write(write, json.dumps(facts).encode())
    finally:
        os._exit(7)
os.close(write)
status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status
with open(read) as file:
    child = json.load(file)
print(json.dumps(dict(pid=pid, status=status, after=after, child=child,
                      inheritable=os.get_inheritable(pidfd), mine=len(os.listdir("/proc/self/fd")))))
"""


@pytest.fixture
def node() -> Iterator[tuple[str, str]]:
    """Yield a v2 node of our own: its directory and its path."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make cgroups")
    mount = by_key(read_mounts()).get(UNIFIED_KEY)
    if mount is None or not mount.writable:
        pytest.skip("no writable cgroup v2 tree")
    if reason := fork.why_not():
        pytest.skip(f"no clone3 into a cgroup: {reason}")
    path = mount.path(f"/garrison-test-{os.getpid()}-{secrets.token_hex(3)}")
    directory = mount.directory(path)
    assert directory is not None
    os.mkdir(directory)
    try:
        yield directory, path
    finally:
        os.rmdir(directory)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_child_is_born_in_the_node_and_is_a_whole_python_process(node: tuple[str, str]) -> None:
    directory, path = node
    result = run(PARENT, directory)
    assert result.returncode == 0, result.stderr
    parent = json.loads(result.stdout)
    child = parent["child"]
    assert f"0::{path}\n" in child["cgroup"]
    assert child["pid"] == child["tid"] == child["believed"] == parent["pid"]
    assert child["main"]
    assert child["pidfd"] is None
    assert child["grandchild"] == 5
    assert child["after"] == ["before", "child", "thread"]
    assert parent["after"] == ["before", "parent"]
    assert (parent["status"], parent["inheritable"]) == (7, False)
    assert result.stderr == ""


def test_a_thousand_children_leave_no_descriptor_and_no_process(node: tuple[str, str]) -> None:
    code = """
    import os, sys
    from garrison.supervisor.nursery import fork
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        pid, pidfd = fork.into(sys.argv[1])
        if pid == 0:
            os._exit(0)
        os.close(pidfd)
        assert os.waitpid(pid, 0) == (pid, 0)
    assert len(os.listdir("/proc/self/fd")) == before
    """
    result = run(code, node[0])
    assert (result.returncode, result.stderr) == (0, "")


def test_a_node_that_is_gone_is_refused_and_the_process_can_fork_on(node: tuple[str, str]) -> None:
    code = """
    import os, sys
    from garrison.supervisor.nursery import fork
    inner = sys.argv[1] + "/inner"
    os.mkdir(inner)
    held = os.open(inner, os.O_PATH)
    os.rmdir(inner)
    for directory in (inner, f"/proc/self/fd/{held}", "/tmp"):
        try:
            if fork.into(directory)[0] == 0:
                os._exit(3)
        except OSError as error:
            print(type(error).__name__)
    pid, pidfd = fork.plain()
    if pid == 0:
        os._exit(4)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    result = run(code, node[0])
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.split()) == 4, result.stdout
    assert result.stdout.split()[-1] == "4"


def test_a_kill_of_the_node_ends_a_child_that_was_just_born_there(node: tuple[str, str]) -> None:
    if not os.path.exists(f"{node[0]}/cgroup.kill"):
        pytest.skip("no cgroup.kill before Linux 5.14")
    code = """
    import os, signal, sys, time
    from garrison.supervisor.nursery import fork
    for _ in range(100):
        pid, _pidfd = fork.into(sys.argv[1])
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        with open(sys.argv[1] + "/cgroup.kill", "w") as file:
            file.write("1")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        os.close(_pidfd)
    """
    result = run(code, node[0])
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("library", ["", "musl 1.2.4", "glibc 2.17", "glibc 2.x"])
def test_other_c_libraries_get_a_plain_fork(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr(os, "confstr", lambda _name: library)
    assert "glibc" in fork.why_not()


SECCOMP = """
import ctypes, errno, os, struct, sys
# A filter that answers a system call (its number in argv) with an error, and lets all others through.
number, answer = int(sys.argv[1]), int(sys.argv[2])
def statement(code, k, jt=0, jf=0):
    return struct.pack("=HBBI", code, jt, jf, k)
program = b"".join((statement(0x20, 0), statement(0x15, number, 0, 1), statement(0x06, 0x00050000 | answer),
                    statement(0x06, 0x7FFF0000)))
buffer = ctypes.create_string_buffer(program)
head = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, ctypes.create_string_buffer(head), 0, 0) != 0:
    sys.exit(f"no seccomp: {os.strerror(ctypes.get_errno())}")
from garrison.supervisor.nursery import fork
print(fork.why_not())
pid, pidfd = fork.plain()
if pid == 0:
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(("error", "text"), [(38, "Function not implemented"), (1, "Operation not permitted")])
def test_a_container_that_forbids_clone3_gets_a_plain_fork(error: int, text: str) -> None:
    if fork.why_not():
        pytest.skip("no clone3 into a cgroup here anyway")
    result = run(SECCOMP, "435", str(error))
    if "no seccomp" in result.stderr:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"clone3: {text}\n4\n"


def test_asking_makes_no_process() -> None:
    before = set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())
    fork.why_not()
    assert set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()) == before
