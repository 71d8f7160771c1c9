from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.supervisor.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(10)
        yield server


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    client = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    yield client
    client.close()


def test_each_message_is_one_datagram(manager: socket.socket, notifier: Notifier) -> None:
    assert notifier.enabled
    assert notifier.ready("1 worker")
    assert manager.recv(4096) == b"READY=1\nSTATUS=1 worker"
    assert notifier.watchdog()
    assert manager.recv(4096) == b"WATCHDOG=1"
    assert notifier.stopping()
    assert manager.recv(4096) == b"STOPPING=1"
    assert notifier.main_pid(77)
    assert manager.recv(4096) == b"MAINPID=77"
    assert notifier.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]+", manager.recv(4096))
    assert notifier.failures == 0


def test_a_status_cannot_smuggle_in_another_assignment(manager: socket.socket, notifier: Notifier) -> None:
    assert notifier.status("bad\nREADY=1\x1b[0m " + "x" * 5000)
    datagram = manager.recv(65536)
    assert datagram.startswith(b"STATUS=bad READY=1 [0m x")
    assert b"\n" not in datagram
    assert len(datagram) < 1024


def test_ready_is_not_lost_where_the_manager_is_slow_to_read(manager: socket.socket, notifier: Notifier) -> None:
    sent = 0
    while notifier.status("busy"):
        sent += 1
    assert not notifier.ready("all run")
    for _ in range(sent):
        assert manager.recv(4096) == b"STATUS=busy"
    assert notifier.watchdog()
    assert manager.recv(4096) == b"READY=1\nWATCHDOG=1"
    assert notifier.watchdog()
    assert manager.recv(4096) == b"WATCHDOG=1"


def test_an_abstract_socket_is_understood() -> None:
    name = f"garrison-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name)
        server.settimeout(10)
        client = Notifier({"NOTIFY_SOCKET": "@" + name})
        assert client.ready()
        assert server.recv(100) == b"READY=1"
        client.close()


def test_without_a_manager_nothing_happens() -> None:
    client = Notifier({})
    assert not client.enabled
    assert not client.ready("x")
    assert client.failures == 0
    client.close()


@pytest.mark.parametrize("name", ["relative", "@", "/", "vsock:2:1234", "/" + "x" * 200])
def test_an_address_that_cannot_be_used_is_counted(name: str) -> None:
    client = Notifier({"NOTIFY_SOCKET": name})
    assert not client.enabled
    assert client.failures == 1
    assert name[:10] in client.last_error


def test_a_manager_that_is_gone_is_counted_and_harms_nobody(manager: socket.socket, notifier: Notifier) -> None:
    os.unlink(manager.getsockname())
    assert not notifier.watchdog()
    assert notifier.failures == 1
    assert notifier.last_error


def test_a_manager_that_does_not_read_never_blocks(manager: socket.socket, notifier: Notifier) -> None:
    sent = 0
    while notifier.status("x" * 500):
        sent += 1
        assert sent < 100_000
    assert notifier.failures == 1
    manager.recv(65536)
    assert notifier.watchdog()


def test_the_environment_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    client = Notifier()
    client.ready()
    client.close()
    assert os.environ["NOTIFY_SOCKET"] == "/nonexistent/notify"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_wants_a_sign_in_half_its_time(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ, pid=42).watchdog_interval() == seconds
