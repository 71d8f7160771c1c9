"""The control server on a real socket: what it serves, whom it refuses, and what clients cannot do to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from garrison.supervisor.control.client import (
    AgentNotRunningError,
    AgentTimeoutError,
    ControlClient,
    PermissionDeniedError,
    ProtocolMismatchError,
)
from garrison.supervisor.control.endpoint import ControlSocketError
from garrison.supervisor.control.protocol import MAX_REQUEST_BYTES, ControlError, Dropped
from garrison.supervisor.control.server import ControlLimits, ControlServer
from tests.integration._control_support import DEADLINE, Answers, serving, worker_unknown

SHORT = ControlLimits(connections=4, streams=2, request_seconds=0.3, handler_seconds=0.3, send_seconds=0.3)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "control.sock")


@contextlib.contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(path)
        yield sock


def read_all(sock: socket.socket) -> list[dict[str, Any]]:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            data += chunk
    return [json.loads(line) for line in data.splitlines()]


def ask(path: str, data: bytes, *, half_close: bool = True) -> list[dict[str, Any]]:
    """Send bytes and return every reply until the server closes."""
    with connected(path) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def values(items: list[Any]) -> list[Any]:
    return [item.count if isinstance(item, Dropped) else json.loads(bytes(item)) for item in items]


def test_a_call_is_answered(path: str) -> None:
    answers = Answers(kill=lambda reason: {"reason": reason})
    with serving(path, answers):
        assert ControlClient(path).call("kill", reason="drill") == {"reason": "drill"}
    assert answers.calls == [("kill", {"reason": "drill"})]
    assert answers.peers[0].pid == os.getpid()
    assert answers.peers[0].uid == os.getuid()


def test_several_requests_on_one_connection_are_answered_in_order(path: str) -> None:
    with serving(path, Answers(kill=lambda reason: reason)):
        lines = b"".join(b'{"op":"kill","args":{"reason":"%d"}}\n' % i for i in range(5))
        assert [reply["result"] for reply in ask(path, lines)] == ["0", "1", "2", "3", "4"]


def test_a_large_answer_arrives_whole(path: str) -> None:
    with serving(path, Answers(status={"text": "x" * 3_000_000})):
        assert len(ControlClient(path).call("status")["text"]) == 3_000_000


def test_an_answer_over_the_limit_is_an_error_and_not_sent(path: str) -> None:
    with serving(path, Answers(status="x" * 5_000_000)), pytest.raises(ControlError) as refused:
        ControlClient(path).call("status")
    assert refused.value.code == "reply_too_large"


def test_a_handlers_own_error_reaches_the_client_whole(path: str) -> None:
    with serving(path, Answers(start=worker_unknown)), pytest.raises(ControlError) as refused:
        ControlClient(path).call("start", worker="proces")
    assert refused.value.code == "unknown_worker"
    assert "did you mean 'process'" in refused.value.message


def test_a_handlers_crash_is_an_error_without_details_and_the_server_goes_on(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(path, Answers(status=RuntimeError("password is hunter2"), release="fine")):
        client = ControlClient(path)
        with pytest.raises(ControlError) as refused:
            client.call("status")
        assert client.call("release") == "fine"
    assert refused.value.code == "internal"
    assert "hunter2" not in str(refused.value)
    assert "hunter2" in caplog.text


def test_an_answer_that_json_cannot_carry_is_an_internal_error(path: str) -> None:
    with serving(path, Answers(status=object())), pytest.raises(ControlError) as refused:
        ControlClient(path).call("status")
    assert refused.value.code == "internal"


def test_a_handler_that_hangs_is_given_up(path: str) -> None:
    async def never(**args: Any) -> None:
        import asyncio

        await asyncio.Event().wait()

    with serving(path, Answers(status=never, release=1), limits=SHORT):
        with pytest.raises(ControlError) as refused:
            ControlClient(path).call("status")
        assert ControlClient(path).call("release") == 1
    assert refused.value.code == "timeout"


def test_wrong_arguments_never_reach_the_handler(path: str) -> None:
    answers = Answers()
    with serving(path, answers), pytest.raises(ControlError):
        ControlClient(path).call("start", worker=7)
    assert answers.calls == []


def test_a_finite_stream_comes_whole_however_long_it_is(path: str) -> None:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(*range(20_000))
    with serving(path, answers):
        assert values(list(ControlClient(path).stream("events"))) == list(range(20_000))


def test_a_stream_that_fails_ends_with_the_error(path: str) -> None:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(1, then="raise")
    with serving(path, answers):
        stream = ControlClient(path).stream("events")
        assert values([next(stream)]) == [1]
        with pytest.raises(ControlError, match="the tap is gone"):
            next(stream)


def test_a_stream_that_crashes_says_nothing_of_the_inside(path: str) -> None:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(then="crash")
    with serving(path, answers), pytest.raises(ControlError) as refused:
        list(ControlClient(path).stream("events"))
    assert refused.value.code == "internal"
    assert "secret" not in str(refused.value)


def test_a_follower_that_leaves_ends_its_stream(path: str) -> None:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(1, then="wait")
    with serving(path, answers):
        stream = ControlClient(path).stream("events", follow=True)
        assert values([next(stream)]) == [1]
        stream.close()
        assert answers.closed_streams.acquire(timeout=DEADLINE)


def test_a_follower_sees_the_end_marker_when_the_server_closes(path: str) -> None:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(1, then="wait")
    with serving(path, answers) as running:
        stream = ControlClient(path).stream("events", follow=True)
        assert values([next(stream)]) == [1]
        running.close()
        assert list(stream) == []
    assert answers.closed_streams.acquire(timeout=DEADLINE)


def test_a_follower_that_does_not_read_costs_no_memory_and_is_told_what_it_missed(path: str) -> None:
    total, answers = 20_000, Answers()
    payload = "x" * 500

    async def flood() -> AsyncIterator[object]:
        for number in range(total):
            yield {"n": number, "pad": payload}
        answers.closed_streams.release()

    answers.results["events"] = lambda **args: flood()
    answers.results["status"] = "alive"
    limits = ControlLimits(queue_items=100, queue_bytes=40_000)
    with serving(path, answers, limits=limits), connected(path) as sock:
        sock.sendall(b'{"op":"events","args":{"follow":true}}\n')
        # The iterator is drained although nobody reads, and others are served meanwhile.
        assert ControlClient(path).call("status") == "alive"
        assert answers.closed_streams.acquire(timeout=DEADLINE)
        lines = read_all(sock)
    assert lines[-1] == {"ok": True, "end": True}
    got = [line["item"]["n"] for line in lines if "item" in line]
    missed = sum(line.get("dropped", 0) for line in lines)
    assert missed > 0
    assert len(got) + missed == total
    assert got == sorted(got)


def test_the_server_closes_in_time_although_a_follower_does_not_read(path: str) -> None:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(*["x" * 1000] * 2000, then="wait")
    with serving(path, answers) as running, connected(path) as sock:
        sock.sendall(b'{"op":"events","args":{"follow":true}}\n')
        assert sock.recv(1, socket.MSG_PEEK) == b"{"
        running.run(lambda: running.server.close(0.1))
        assert running.server.connections == 0
        read_all(sock)


def test_a_reader_that_stalls_in_a_finite_stream_is_cut_off(path: str) -> None:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(*["x" * 1000] * 20_000)
    with serving(path, answers, limits=SHORT), connected(path) as sock:
        sock.sendall(b'{"op":"events","args":{}}\n')
        assert answers.closed_streams.acquire(timeout=DEADLINE)


def test_a_client_that_does_not_read_its_answer_is_cut_off(path: str) -> None:
    with serving(path, Answers(status="x" * 3_000_000), limits=SHORT) as running, connected(path) as sock:
        sock.sendall(b'{"op":"status"}\n')
        until(lambda: running.run(lambda: running.server.connections) == 0)


def until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\n", "bad_request"),
        (b"\x00\xff\xfe\x80\n", "bad_request"),
        (b"[]\n", "bad_request"),
        (b'{"op":1}\n', "bad_request"),
        (b'{"op":"' + b"x" * 70 + b'"}\n', "bad_request"),
        (b'{"op":"status"', "bad_request"),
        (b"x" * (MAX_REQUEST_BYTES * 4), "bad_request"),
        (b'{"op":"' + b"x" * MAX_REQUEST_BYTES + b'"}\n', "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad_request"),
    ],
)
def test_garbage_gets_one_error_and_the_door(path: str, data: bytes, code: str) -> None:
    with serving(path, Answers(status="fine")):
        replies = ask(path, data)
        assert [reply["error"]["code"] for reply in replies] == [code]
        assert ControlClient(path).call("status") == "fine"


def test_nothing_sent_gets_nothing(path: str) -> None:
    with serving(path, Answers()):
        assert ask(path, b"") == []


def test_a_request_that_does_not_come_is_not_waited_for(path: str) -> None:
    with serving(path, Answers(), limits=SHORT):
        replies = ask(path, b'{"op":', half_close=False)
    assert [reply["error"]["code"] for reply in replies] == ["timeout"]


def test_clients_beyond_the_limit_are_refused_and_served_again_later(path: str) -> None:
    limits = ControlLimits(connections=2)
    with serving(path, Answers(status="fine"), limits=limits) as running:
        with connected(path), connected(path):
            until(lambda: running.run(lambda: running.server.connections) == 2)
            with pytest.raises(ControlError) as refused:
                ControlClient(path).call("status")
            assert refused.value.code == "busy"
        until(lambda: running.run(lambda: running.server.connections) == 0)
        assert ControlClient(path).call("status") == "fine"


def test_forgotten_followers_leave_room_for_a_kill(path: str) -> None:
    answers = Answers(kill="killed")
    answers.results["events"] = lambda **args: answers.items(1, then="wait")
    with serving(path, answers, limits=SHORT):
        client = ControlClient(path)
        streams = [client.stream("events", follow=True) for _ in range(2)]
        assert [values([next(stream)]) for stream in streams] == [[1], [1]]
        with pytest.raises(ControlError) as refused:
            list(client.stream("events", follow=True))
        assert refused.value.code == "busy"
        assert client.call("kill") == "killed"
        for stream in streams:
            stream.close()


def test_the_socket_is_for_its_owner_only(path: str) -> None:
    with serving(path, Answers()):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) & 0o022 == 0
        assert os.listdir(os.path.dirname(path)) == ["control.sock"]


def test_the_socket_is_gone_after_the_close(path: str) -> None:
    with serving(path, Answers()):
        pass
    assert not os.path.exists(path)


def test_a_stale_socket_is_replaced(path: str) -> None:
    os.mkdir(os.path.dirname(path), 0o755)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with serving(path, Answers(status="new")):
        assert ControlClient(path).call("status") == "new"


def test_a_socket_on_which_somebody_listens_is_left_alone(path: str) -> None:
    with serving(path, Answers(status="first")):
        with pytest.raises(ControlSocketError, match="another agent listens"), serving(path, Answers()):
            pass
        assert ControlClient(path).call("status") == "first"


def test_a_socket_whose_listener_hangs_is_left_alone(path: str) -> None:
    os.mkdir(os.path.dirname(path), 0o755)
    with socket.socket(socket.AF_UNIX) as hung, contextlib.ExitStack() as stack:
        hung.bind(path)
        hung.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(path)
        with pytest.raises(ControlSocketError, match="another agent listens"), serving(path, Answers()):
            pass


def test_something_else_at_its_place_is_never_removed(path: str) -> None:
    os.mkdir(os.path.dirname(path), 0o755)
    Path(path).write_text("precious")
    with pytest.raises(ControlSocketError, match="no socket"), serving(path, Answers()):
        pass
    assert Path(path).read_text() == "precious"


def test_a_directory_that_others_can_write_to_is_refused(path: str) -> None:
    os.mkdir(os.path.dirname(path))
    os.chmod(os.path.dirname(path), 0o777)
    with pytest.raises(ControlSocketError, match="chmod 0755"), serving(path, Answers()):
        pass


def test_a_path_that_is_too_long_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ControlSocketError, match="107 bytes"), serving(str(tmp_path / ("x" * 120)), Answers()):
        pass


def test_the_successors_socket_survives_the_predecessors_close(path: str) -> None:
    with serving(path, Answers(status="old")) as old:
        os.unlink(path)
        with serving(path, Answers(status="new")):
            old.close()
            assert ControlClient(path).call("status") == "new"
    assert not os.path.exists(path)


# Imports come first: the interpreter's files may be closed to the other user.
AS_NOBODY = """
import os, sys
from garrison.supervisor.control.client import ControlClient, PermissionDeniedError
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    ControlClient(sys.argv[1]).call("status")
except PermissionDeniedError as error:
    print(f"{error.code}: {error}")
"""


def test_another_user_is_refused_even_where_the_socket_lets_it_in(path: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    # Below /tmp itself: pytest's own folder is closed to other users.
    with tempfile.TemporaryDirectory() as open_dir:
        os.chmod(open_dir, 0o755)
        path = os.path.join(open_dir, "control.sock")
        answers = Answers(status="secret")
        with serving(path, answers):
            os.chmod(path, 0o666)
            child = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, path], capture_output=True, text=True, timeout=DEADLINE
            )
        assert child.returncode == 0, child.stderr
        said = child.stdout
        assert said.startswith("not_allowed: uid 65534 may not control this agent")
        assert "sudo" in said
        assert answers.calls == []


def test_uids_can_be_chosen(path: str) -> None:
    with (
        serving(path, Answers(status=1), allowed_uids={os.getuid() + 1}),
        pytest.raises(PermissionDeniedError, match="may not control"),
    ):
        ControlClient(path).call("status")


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "control.sock")
        answers = Answers(status="alive", kill=lambda reason: reason, start=worker_unknown)
        answers.results["events"] = lambda **args: answers.items(1, 2)
        for op in ("stop", "freeze", "thaw", "reset", "release", "version"):
            answers.results[op] = lambda **args: args
        with serving(path, answers):
            yield path


VALID = st.sampled_from([
    b'{"op":"status"}\n', b'{"op":"events","args":{"last":2}}\n', b'{"op":"kill","args":{"reason":"\\u0000"}}\n',
    b'{"op":"start","args":{"worker":"x"}}\n', b'{"op":"events","args":{"follow":true}}\n', b"\n", b'{"op":',
])  # fmt: skip


@given(parts=st.lists(VALID | st.binary(max_size=80), max_size=6), half_close=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_end_or_confuse_the_server(fuzzed: str, parts: list[bytes], half_close: bool) -> None:
    with connected(fuzzed) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(b"".join(parts))
        if half_close:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            for reply in read_all(sock):
                assert isinstance(reply["ok"], bool)
                assert reply["ok"] or reply["error"]["message"]
    assert ControlClient(fuzzed).call("status") == "alive"


def test_no_socket_says_how_to_start_the_agent(path: str) -> None:
    with pytest.raises(AgentNotRunningError) as missing:
        ControlClient(path).call("status")
    assert path in missing.value.message
    assert "systemctl start garrison" in missing.value.remedy
    assert "garrisond --config" in missing.value.remedy


def test_a_socket_without_a_listener_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(AgentNotRunningError, match="nobody listens"):
        ControlClient(path).call("status")


def test_a_path_that_is_too_long_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="cannot connect"):
        ControlClient("/tmp/" + "x" * 200).call("status")


@contextlib.contextmanager
def raw_listener(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4)
        yield listener


def test_an_agent_that_hangs_is_a_timeout_with_what_to_check(tmp_path: Path) -> None:
    path = str(tmp_path / "hung.sock")
    with raw_listener(path), pytest.raises(AgentTimeoutError) as late:
        ControlClient(path, timeout=0.2).call("status")
    assert "0.2 s" in late.value.message
    assert "systemctl status garrison" in late.value.remedy


def test_a_trickle_does_not_prolong_the_timeout(tmp_path: Path) -> None:
    import threading

    path = str(tmp_path / "slow.sock")
    stop = threading.Event()

    def trickle(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            while not stop.wait(0.05):
                peer.sendall(b" ")

    with raw_listener(path) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        try:
            with pytest.raises(AgentTimeoutError):
                ControlClient(path, timeout=0.5).call("status")
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", ProtocolMismatchError),
        (b'{"ok":true}\n', ProtocolMismatchError),
        (b'{"ok":false}\n', ProtocolMismatchError),
        (b'{"ok":true,"result":', AgentNotRunningError),
        (b"", AgentNotRunningError),
        (b"x" * 4_200_000, ProtocolMismatchError),
    ],
)
def test_answers_that_are_none_are_told_apart(tmp_path: Path, answer: bytes, kind: type[ControlError]) -> None:
    import threading

    path = str(tmp_path / "odd.sock")

    def reply(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.recv(4096)
            peer.sendall(answer)

    with raw_listener(path) as listener:
        thread = threading.Thread(target=reply, args=(listener,))
        thread.start()
        try:
            with pytest.raises(kind):
                ControlClient(path).call("status")
        finally:
            thread.join()


def test_an_answer_of_another_shape_is_a_mismatch(path: str) -> None:
    class Shape(msgspec.Struct):
        must: int

    with serving(path, Answers(status={"other": 1})), pytest.raises(ProtocolMismatchError, match="another shape"):
        ControlClient(path).call_as(Shape, "status")


def test_a_server_can_be_closed_twice_and_before_its_start(path: str) -> None:
    with serving(path, Answers()) as running:
        running.close()
        running.close()

        async def unused() -> None:
            await ControlServer(path + "2", Answers()).close()

        running.run(unused)
