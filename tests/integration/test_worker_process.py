"""The master's end of a worker's pipes: process, downlink, output. Real pipes, no process behind them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from garrison.ipc import frames
from garrison.ipc.channel import FrameReceiver
from garrison.ipc.messages import Beat, Config, Control, Events, Log, Ready, Task, Up, decode_down, kind_of
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.nursery.client import Child, NurseryClient
from garrison.supervisor.nursery.protocol import Exited
from garrison.supervisor.worker import process as process_module
from garrison.supervisor.worker.downlink import MAX_TASKS, Downlink
from garrison.supervisor.worker.output import LAST_LINES, OutputReader
from garrison.supervisor.worker.process import WorkerProcess
from tests.integration._nursery_support import eventually

LINE = b'{"a":1}\n'


def up(message: Up) -> bytes:
    return frames.encode(kind_of(message), message, limit=frames.MAX_UP_BYTES)


def config(number: int = 1, text: str = "") -> Config:
    return Config(revision=number, hash=str(number), settings={"text": text})


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name[3:], args[0] if args else None))

    def of(self, kind: str) -> list[object]:
        return [what for name, what in self.calls if name == kind]


class Rig:
    """A `WorkerProcess` whose other ends the test holds."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.ledger = WorkerLedger()
        self.hung = 0
        gate, config_pipe, events, output = (os.pipe() for _ in range(4))
        for fd in (config_pipe[1], events[0], output[0]):
            os.set_blocking(fd, False)
        fcntl.fcntl(events[0], fcntl.F_SETPIPE_SZ, 1024 * 1024)
        self.theirs = {"gate": gate[0], "config": config_pipe[0], "events": events[1], "output": output[1]}
        self.child = Child(NurseryClient(lambda: None), os.getpid(), None)
        self.process = WorkerProcess(
            child=self.child,
            epoch=1,
            gate=gate[1],
            config=config_pipe[1],
            events=events[0],
            output=output[0],
            ledger=self.ledger,
            listener=self.heard,
            on_hang=self._hang,
            congested=lambda: False,
            killed=lambda: False,
        )
        self.process.open_gate()

    def _hang(self) -> None:
        self.hung += 1

    def say(self, *messages: Up | bytes) -> None:
        for message in messages:
            os.write(self.theirs["events"], message if isinstance(message, bytes) else up(message))

    def shut(self, name: str) -> None:
        os.close(self.theirs.pop(name))

    def die(self) -> None:
        self.child.exit.set_result(Exited(pid=self.process.pid, status=0))


@contextlib.asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    try:
        yield made
    finally:
        made.process.close()
        for name in list(made.theirs):
            made.shut(name)


def with_rig(test: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with rig() as made:
            await test(made)

    asyncio.run(main())


# What comes up


def test_frames_become_calls_in_their_order_and_events_are_booked() -> None:
    async def test(made: Rig) -> None:
        made.say(
            Ready(modules=["m"]),
            Events(priority="event", first=1, count=2, data=LINE * 2),
            Log(level="info", message="x"),
        )
        made.say(Beat(emitted={"event": 2}))
        await eventually(lambda: made.heard.of("beat"), "all is heard")
        assert [name for name, _ in made.heard.calls] == ["ready", "events", "log", "beat"]
        assert made.ledger.emitted == 2
        assert made.process.ready_at is not None

    with_rig(test)


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff" * 64,
        b"\x00\x00\x00\x00",
        frames.HEADER.pack(5) + b"\x92\xa1x\x80\x80",
        frames.HEADER.pack(3) + b"\xc1\xc1\xc1",
        up(Events(priority="event", first=2, count=1, data=LINE)),
        up(Events(priority="event", first=1, count=3, data=LINE)),
        up(Ready()) + up(Ready()),
        up(Beat(emitted={"event": 5})) + up(Beat(emitted={"event": 4})),
    ],
)
def test_a_breach_is_told_once_and_nothing_behind_it_is_read(bad: bytes) -> None:
    async def test(made: Rig) -> None:
        made.say(bad)
        await eventually(lambda: made.heard.of("breach"), "it is noticed")
        made.say(Events(priority="alert", first=1, count=1, data=LINE))
        await asyncio.sleep(0.05)
        made.process.drain()
        assert len(made.heard.of("breach")) == 1
        assert made.heard.of("events") == []
        assert made.ledger.emitted == 0

    with_rig(test)


def test_good_frames_ahead_of_a_bad_one_still_count() -> None:
    async def test(made: Rig) -> None:
        made.say(up(Events(priority="event", first=1, count=1, data=LINE)) + b"\xff\xff\xff\xff")
        await eventually(lambda: made.heard.of("breach"), "it is noticed")
        assert made.ledger.emitted == 1

    with_rig(test)


def test_a_flood_of_small_frames_is_read_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "FRAMES_PER_SECOND", 100.0)

    async def test(made: Rig) -> None:
        beat = up(Beat())
        os.set_blocking(made.theirs["events"], False)
        loop = asyncio.get_running_loop()
        begin, written, turns = loop.time(), 0, 0
        while loop.time() - begin < 1.0:
            with contextlib.suppress(BlockingIOError):
                written += os.write(made.theirs["events"], beat * (65536 // len(beat)))
            turns += 1
            await asyncio.sleep(0.002)
        # One read beyond what the rate allows, and no more until that debt is paid: the worker's pipe is full.
        most = process_module.READ_BYTES // len(beat) + 100 * (process_module.BURST_SECONDS + 1) + 1
        assert 0 < len(made.heard.of("beat")) <= most
        assert written < 1024 * 1024 + 2 * process_module.READ_BYTES
        assert not made.heard.of("breach")

    with_rig(test)


def test_reading_goes_on_when_the_rate_allows_and_no_frame_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "FRAMES_PER_SECOND", 200.0)
    monkeypatch.setattr(process_module, "BURST_SECONDS", 0.1)

    async def test(made: Rig) -> None:
        for number in range(150):
            made.say(Beat(queued=number))
        await eventually(lambda: len(made.heard.of("beat")) == 150, "all of them come")
        for number in range(150):
            made.say(Beat(queued=number))
        await eventually(lambda: len(made.heard.of("beat")) == 300, "the rest comes, too")

    with_rig(test)


def test_a_process_that_closes_its_pipe_and_lives_on_breaks_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "CLOSED_SECONDS", 0.05)

    async def test(made: Rig) -> None:
        made.shut("events")
        await eventually(lambda: made.heard.of("breach"), "it is noticed")
        assert "closed its events pipe" in str(made.heard.of("breach")[0])

    with_rig(test)


def test_a_process_that_closes_its_pipe_and_ends_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "CLOSED_SECONDS", 0.05)

    async def test(made: Rig) -> None:
        made.shut("events")
        await asyncio.sleep(0.01)
        made.die()
        assert await made.process.wait_gone(1)
        await asyncio.sleep(0.1)
        assert [name for name, _ in made.heard.calls] == ["gone"]

    with_rig(test)


def test_what_a_dead_process_left_is_drained_and_what_it_only_claimed_is_lost_at_exit() -> None:
    async def main() -> None:
        made = Rig()
        made.say(Beat(emitted={"event": 7}), Events(priority="event", first=1, count=3, data=LINE * 3))
        made.die()
        made.process.drain()
        assert made.process.close() == 4
        assert made.ledger.emitted == 7
        assert made.ledger.dropped == {"lost_at_exit": 4}
        assert made.ledger.in_flight == 3
        for name in list(made.theirs):
            made.shut(name)

    asyncio.run(main())


# What goes down


@contextlib.asynccontextmanager
async def downlink() -> AsyncIterator[tuple[Downlink, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    made = Downlink(write)
    try:
        yield made, read
    finally:
        made.close()
        os.close(read)


def kinds(receiver: FrameReceiver) -> list[tuple[str, object]]:
    return [(kind, decode_down(kind, payload)) for kind, payload in receiver.receive()]


def test_a_worker_that_never_reads_costs_one_frame_and_the_latest_of_each_kind() -> None:
    async def main() -> None:
        async with downlink() as (down, read):
            for number in range(1, 200):
                down.configure(config(number, "x" * 200_000))
            accepted = sum(down.task(Task(id=str(number), task="t")) for number in range(100))
            assert accepted == MAX_TASKS
            for number in range(1, 1000):
                down.ack("event", number)
            down.stop("enough")
            receiver, got = FrameReceiver(read, frames.MAX_DOWN_BYTES), []
            while len(got) < 3 + MAX_TASKS + 1:
                await asyncio.sleep(0)
                got += kinds(receiver)
            names = [name for name, _ in got]
            # The frame that had begun is finished; then what is urgent; then the latest config.
            assert names == ["config", "stop", "config", *["task"] * MAX_TASKS, "ack"]
            assert [message.revision for name, message in got if name == "config"] == [1, 199]  # type: ignore[attr-defined]
            assert got[-1][1].through == 999  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_reset_takes_the_place_of_no_request_for_less_work_nor_the_other_way_round() -> None:
    async def main() -> None:
        async with downlink() as (down, read):
            down.configure(config(1, "x" * 200_000))  # more than the pipe takes: what follows has to wait
            for _ in range(100):
                for action in ("degrade", "normal", "reset", "degrade"):
                    down.control(Control(action))
            receiver, got = FrameReceiver(read, frames.MAX_DOWN_BYTES), []
            async with asyncio.timeout(30):
                while len(got) < 3:
                    await asyncio.sleep(0)
                    got += kinds(receiver)
            down.control(Control("normal"))
            got += kinds(receiver)
            # The latest of the one kind, and one of the other: a worker that never reads costs no more than these two.
            assert [message for _, message in got[1:]] == [Control("reset"), Control("degrade"), Control("normal")]

    asyncio.run(main())


def test_a_worker_that_has_closed_its_end_is_not_spoken_to_any_more() -> None:
    async def main() -> None:
        read, write = os.pipe()
        os.set_blocking(write, False)
        down = Downlink(write)
        os.close(read)
        down.configure(config())
        assert down.closed
        down.stop("nobody hears it")
        down.close()

    asyncio.run(main())


def test_a_configuration_that_does_not_fit_is_refused_and_the_pipe_stays_whole() -> None:
    async def main() -> None:
        async with downlink() as (down, read):
            with pytest.raises(frames.FrameTooLargeError):
                down.configure(config(1, "x" * frames.MAX_DOWN_BYTES))
            down.configure(config(2))
            assert [message.revision for _, message in kinds(FrameReceiver(read, frames.MAX_DOWN_BYTES))] == [2]  # type: ignore[attr-defined]

    asyncio.run(main())


# What it prints


@contextlib.asynccontextmanager
async def output() -> AsyncIterator[tuple[OutputReader, int, list[str]]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    lines: list[str] = []
    reader = OutputReader(read, lines.append)
    try:
        yield reader, write, lines
    finally:
        reader.close()
        os.close(write)


def test_lines_are_passed_on_without_their_end_and_long_ones_are_cut() -> None:
    async def main() -> None:
        async with output() as (_, write, lines):
            os.write(write, b"one\n\n  \ntw")
            await eventually(lambda: lines, "the first line")
            os.write(write, b"o\n\xff\xfe\n" + b"x" * 2500 + b"\n")
            await eventually(lambda: len(lines) == 6, "the rest")
            assert lines == ["one", "two", "\ufffd\ufffd", "x" * 1024, "x" * 1024, "x" * 452]

    asyncio.run(main())


def test_a_chatty_worker_waits_for_its_own_pipe() -> None:
    async def main() -> None:
        async with output() as (_, write, lines):
            os.set_blocking(write, False)
            written = 0
            for _ in range(100):
                with contextlib.suppress(BlockingIOError):
                    written += os.write(write, b"chatter\n" * 512)
                await asyncio.sleep(0.001)
            assert written <= 65536 + 2 * 4096
            assert len(lines) <= 1024

    asyncio.run(main())


def test_the_last_words_are_the_last_lines_however_much_was_printed_before_them() -> None:
    async def main() -> None:
        async with output() as (reader, write, lines):
            os.write(write, b"frame\n" * 9000 + b"the reason")
            reader.close()
            assert lines[-1] == "the reason"
            assert len(lines) == LAST_LINES + 1
            assert "left out" in lines[0]

    asyncio.run(main())
