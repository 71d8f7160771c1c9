"""The uplink: several threads write one pipe, and what comes out is whole frames in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from garrison.ipc.channel import FrameReceiver
from garrison.ipc.frames import MAX_UP_BYTES
from garrison.ipc.messages import Beat, Events, Log, decode_up
from garrison.supervisor.events.checking import ProcessLedger
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.workers.runtime.emitter import Emitter
from garrison.workers.runtime.notices import Notices
from garrison.workers.runtime.outbox import FLUSH_BYTES, Outbox
from garrison.workers.runtime.uplink import Uplink

THREADS = 3
EVENTS = 3000


class Line:
    """A pipe with an uplink at one end and the master's checks at the other."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.read, self.write = os.pipe2(os.O_NONBLOCK)
        self.woken = threading.Event()
        self.notices = Notices(self.woken.set)
        self.outbox = Outbox(limit, self.woken.set)
        self.uplink = Uplink(self.write, self.notices, self.outbox, Beat)
        self.receiver = FrameReceiver(self.read, MAX_UP_BYTES, 1 << 20)
        self.worker = WorkerLedger()
        self.ledger = ProcessLedger(self.worker)
        self.kinds: list[str] = []

    def receive(self) -> int:
        """Take what is in the pipe and book it; returns how many events came."""
        count = 0
        for kind, payload in self.receiver.receive():
            message = decode_up(kind, payload)
            self.kinds.append(kind)
            if isinstance(message, Events):
                self.ledger.book(message)
                count += message.count
        return count


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    os.close(made.read)
    os.close(made.write)


def fill(line: Line, size: int = FLUSH_BYTES) -> None:
    """Queue so many bytes of events, as an emitter would."""
    for _ in range(-(-size // 1024)):
        line.outbox.put("event", b'{"a":"' + b"x" * 1015 + b'"}\n', 0.0)


def test_a_full_batch_is_written_by_whoever_filled_it(line: Line) -> None:
    fill(line)
    assert line.receive() >= FLUSH_BYTES // 1024


def test_less_than_a_batch_waits_for_the_writer_who_is_woken(line: Line) -> None:
    fill(line, 4096)
    assert line.receive() == 0
    assert line.woken.is_set()
    assert line.uplink.pump(force=True) is False
    assert line.receive() == 4


def test_notices_and_beats_are_never_overtaken_by_a_batch_from_another_thread(line: Line) -> None:
    line.notices.offer(Log(level="info", message="first"))
    line.uplink.beat_due = True
    line.woken.clear()
    fill(line)
    assert line.receive() == 0
    assert line.woken.is_set()
    line.uplink.pump()
    line.receive()
    assert line.kinds == ["log", "beat", "events"]


def test_a_full_pipe_wakes_the_writer_who_finishes_the_frame(line: Line) -> None:
    fill(line)  # a pipe of 64 KiB holds one batch and the beginning of another
    line.woken.clear()
    fill(line)
    assert line.uplink.blocked
    assert line.woken.is_set()
    came = 0
    for _ in range(4):
        came += line.receive()
        line.uplink.pump(force=True)
    assert came == 2 * FLUSH_BYTES // 1024
    assert line.uplink.empty


def test_a_reader_that_is_gone_is_left_to_the_main_thread() -> None:
    line = Line()
    os.close(line.read)
    fill(line)  # raises nothing here: a module asked for an event to be sent
    assert line.woken.is_set()
    os.close(line.write)


def test_threads_that_write_at_once_leave_no_gap_and_no_torn_frame(line: Line) -> None:
    emitter = Emitter(line.outbox, "source")
    refused: list[int] = []

    def emit(number: int) -> None:
        missed = 0
        for index in range(EVENTS):
            missed += not emitter.emit({"event": {}, "n": index, "pad": "x" * 300}, None, "t")
        refused.append(missed)

    def write() -> None:
        while not stop.is_set():
            line.uplink.pump(force=True)
            line.woken.wait(0.002)
            line.woken.clear()

    stop = threading.Event()
    emitters = [threading.Thread(target=emit, args=(number,)) for number in range(THREADS)]
    writer = threading.Thread(target=write)
    for thread in (*emitters, writer):
        thread.start()
    try:
        while any(thread.is_alive() for thread in emitters):
            line.receive()
        for thread in emitters:
            thread.join()
    finally:
        stop.set()
        writer.join()
    while not line.uplink.empty:
        line.uplink.pump(force=True)
        line.receive()
    line.receive()
    assert line.worker.emitted == THREADS * EVENTS
    assert line.worker.dropped.total() == sum(refused)
    assert len(refused) == THREADS
