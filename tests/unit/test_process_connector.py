"""The proc connector's datagrams: what is understood, and that nothing else does harm."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.workers.process import connector
from garrison.workers.process.connector import ACK, EXEC, EXIT, FORK, DatagramError, ProcEvent, parse, socket_filter

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def message(what: int, fields: bytes, *, when: int = 7, ack: int = 0, idx: int = 1, val: int = 1) -> bytes:
    event = struct.pack("=IIQ", what, 0, when) + fields
    event = event.ljust(40, b"\0")
    body = struct.pack("=IIIIHH", idx, val, 1, ack, len(event), 0) + event
    return struct.pack("=IHHII", 16 + len(body), 3, 0, 0, 0) + body


def fork(parent: int, child: int, thread: int | None = None) -> bytes:
    return message(FORK, struct.pack("=IIII", parent, parent, child if thread is None else thread, child))


def execed(pid: int, thread: int | None = None) -> bytes:
    return message(EXEC, struct.pack("=II", pid if thread is None else thread, pid))


def exited(pid: int, code: int = 0, thread: int | None = None) -> bytes:
    return message(EXIT, struct.pack("=IIII", pid if thread is None else thread, pid, code, 17))


def test_a_recorded_exec_is_understood() -> None:
    recorded = bytes.fromhex(
        "4c000000030000000000000000000000"
        "0100000001000000230e000000000000"
        "28000000"
        "0200000000000000c28ef46238010000ac1a0000ac1a000000000000000000000000000000000000"
    )
    (event,) = parse(recorded)
    assert (event.what, event.pid) == (EXEC, 6828)


@given(st.integers(1, 2**22), st.integers(1, 2**22), st.integers(0, 0xFFFF))
def test_events_of_processes_are_given_in_order(first: int, second: int, code: int) -> None:
    datagram = fork(first, second) + execed(second) + exited(second, code)
    assert parse(datagram) == [
        ProcEvent(FORK, second, first, 0, 7),
        ProcEvent(EXEC, second, 0, 0, 7),
        ProcEvent(EXIT, second, 0, code, 7),
    ]


@given(st.integers(1, 2**22))
def test_threads_are_left_out(pid: int) -> None:
    assert parse(fork(1, pid, thread=pid + 1) + exited(pid, thread=pid + 1) + execed(pid, thread=pid + 1)) == []


def test_an_acknowledgement_carries_its_number_and_error() -> None:
    assert parse(message(ACK, struct.pack("=I", 1), ack=99)) == [ProcEvent(ACK, 99, 0, 1, 7)]


@pytest.mark.parametrize("what", [0x4, 0x40, 0x80, 0x100, 0x200, 0x40000000])
def test_kinds_that_nobody_reads_are_left_out(what: int) -> None:
    assert parse(message(what, b"\xff" * 24)) == []


def test_another_connector_s_message_is_left_out() -> None:
    assert parse(message(EXEC, struct.pack("=II", 5, 5), idx=3)) == []


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_but_its_own_error(data: bytes) -> None:
    try:
        parse(data)
    except DatagramError:
        return


@given(
    st.lists(st.sampled_from([fork(1, 2), execed(2), exited(2), message(ACK, b"\0\0\0\0")]), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 303), st.integers(0, 255)), max_size=8),
    st.integers(0, 304),
)
def test_damaged_messages_raise_nothing_but_their_own_error(
    parts: list[bytes], damage: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(b"".join(parts))
    for at, value in damage:
        data[at % len(data)] = value
    try:
        events = parse(bytes(data[:length]))
    except DatagramError:
        return
    # The smallest message that tells anything has 60 bytes.
    assert len(events) <= length // 60


@pytest.mark.parametrize("cut", range(1, 76))
def test_a_truncated_message_is_refused(cut: int) -> None:
    with pytest.raises(DatagramError):
        parse(execed(5)[:cut])


def run_filter(packet: bytes) -> bool:
    """A classic BPF machine with the six instructions that the filter uses."""
    program = socket_filter()
    a = x = at = 0
    for _ in range(len(program)):
        code, jump_true, jump_false, k = program[at]
        at += 1
        if code == 0x20:
            if k + 4 > len(packet):
                return False
            (a,) = struct.unpack_from(">I", packet, k)
        elif code == 0x07:
            x = a
        elif code == 0x15:
            at += jump_true if a == k else jump_false
        elif code == 0x1D:
            at += jump_true if a == x else jump_false
        elif code == 0x06:
            return bool(k)
        else:
            raise AssertionError(f"unknown instruction {code:#x}")
    raise AssertionError("the filter does not end")


@given(
    st.sampled_from([ACK, FORK, EXEC, EXIT, 0x4, 0x40, 0x100, 0x200]) | U32,
    st.tuples(*[st.integers(1, 4)] * 4),
    U64,
)
def test_the_kernel_filter_passes_what_the_parser_would_use(
    what: int, fields: tuple[int, int, int, int], when: int
) -> None:
    packet = message(what, struct.pack("=IIII", *fields), when=when)
    if what == EXEC:
        assert run_filter(packet)
    else:
        assert run_filter(packet) == bool(parse(packet))


def test_a_short_packet_does_not_pass_the_filter() -> None:
    assert not run_filter(b"\0" * 20)


def test_a_request_is_a_connector_message_to_the_process_group() -> None:
    data = connector.request(1, 77)
    assert struct.unpack_from("=I", data)[0] == len(data) == 40
    assert struct.unpack_from("=IIIIHH", data, 16) == (1, 1, 0, 77, 4, 0)


def test_datagrams_of_others_than_the_kernel_are_counted_and_not_used() -> None:
    class FakeSocket:
        def __init__(self) -> None:
            self.waiting: list[tuple[bytes, tuple[int, int]] | OSError] = [
                (execed(5), (4242, 1)),
                OSError(105, "No buffer space available"),
                (b"garbage", (0, 1)),
                (execed(6), (0, 1)),
            ]

        def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
            if not self.waiting:
                raise BlockingIOError
            item = self.waiting.pop(0)
            if isinstance(item, OSError):
                raise item
            return item

    listening = connector.Connector(FakeSocket())  # type: ignore[arg-type]
    events, more = listening.read()
    assert [event.pid for event in events] == [6]
    assert not more
    assert listening.malformed == 2
    assert listening.overruns == 1


def test_constants_are_swapped_for_the_filter() -> None:
    assert any(step[3] == socket.htonl(EXEC) for step in socket_filter())
